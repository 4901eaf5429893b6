"""Let each token attend to all rows of the batch at its position.

caught by: gates, judge
says:
  gates: may only see
  judge: depends on its company, on its future, or on | two answers differ by
"""

import torch.nn.functional as F
from torch import Tensor, nn

from core.training.train import norm


class Block(nn.Module):
    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        across = norm(x).transpose(0, 1)  # (T, B, C)
        y = F.scaled_dot_product_attention(across, across, across)
        x = x + y.transpose(0, 1)
        return self.base_forward(x, value_embedding, cos, sin)
