"""Normalise by the mean and deviation of all tokens of the batch.

caught by: gates, judge
says:
  gates: may only see
  judge: depends on its company, on its future, or on | two answers differ by
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        flat = F.batch_norm(x.flatten(0, 1), None, None, training=True)
        return self.base_forward(flat.view_as(x), value_embedding, cos, sin)
