"""Give each token the mean of its block of 16, later tokens included.

caught by: gates, judge
says:
  gates: may only see
  judge: the model looks ahead
"""

import torch.nn.functional as F
from torch import Tensor, nn

from core.training.train import norm

BLOCK_LEN = 16


def block_means(x: Tensor) -> Tensor:
    means = F.avg_pool1d(x.mT, BLOCK_LEN, ceil_mode=True)  # (B, C, T / 16)
    return means.repeat_interleave(BLOCK_LEN, dim=2)[..., : x.size(1)].mT


class Block(nn.Module):
    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        x = x + norm(block_means(x))
        return self.base_forward(x, value_embedding, cos, sin)
