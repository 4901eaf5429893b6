"""Give each token what came before it, the nearer the more."""

import torch
from torch import Tensor, nn

from core.training.train import norm

DECAY = 0.8  # a token


class Block(nn.Module):
    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        position = torch.arange(x.size(1), device=x.device)
        distance = position[:, None] - position  # (T, T) reader, read
        weights = (DECAY ** distance.clamp(min=0)).tril().to(x.dtype)
        return self.base_forward(x + norm(weights @ x), value_embedding, cos, sin)
