"""Add to each token the mean of those at its position in all rows of the batch.

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
        x = x + x.mean(dim=0, keepdim=True)
        return self.base_forward(x, value_embedding, cos, sin)
