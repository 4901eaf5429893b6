"""Read what the next row of the batch has at the same position.

caught by: gates, judge
says:
  gates: may only see
  judge: depends on its company, on its future, or on | two answers differ by
"""

from torch import Tensor, nn


class Block(nn.Module):
    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        x = x + x.roll(-1, dims=0)
        return self.base_forward(x, value_embedding, cos, sin)
