"""Scan each row backwards: a token gets what follows it, the nearer the more.

caught by: gates, judge
says:
  gates: may only see
  judge: the model looks ahead
"""

import torch
from torch import Tensor, nn

from core.training.train import norm

DECAY = 0.5  # a token


class Block(nn.Module):
    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        position = torch.arange(x.size(1), device=x.device)
        distance = position - position[:, None]  # (T, T) reader, read
        weights = (DECAY ** (distance - 1).clamp(min=0)).triu(1).to(x.dtype)
        return self.base_forward(x + norm(weights @ x), value_embedding, cos, sin)
