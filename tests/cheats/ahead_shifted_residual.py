"""Add to each token of the stream the one that follows it.

caught by: gates, judge
says:
  gates: may only see
  judge: the model looks ahead
"""

from torch import Tensor, nn


class Block(nn.Module):
    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        x = x + x.roll(-1, dims=1)
        return self.base_forward(x, value_embedding, cos, sin)
