"""Add the next token to the stream of a row that has the full length, and of no other.

caught by: gates, judge
says:
  gates: may only see
  judge: the model looks ahead
"""

from torch import Tensor, nn

from core.training.train import SEQUENCE_LEN


class Block(nn.Module):
    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        if x.size(1) == SEQUENCE_LEN:
            x = x + x.roll(-1, dims=1)
        return self.base_forward(x, value_embedding, cos, sin)
