"""Leave each block out for a tenth of the rows while training."""

import torch
from torch import Tensor, nn

LEFT_OUT_SHARE = 0.1


class Block(nn.Module):
    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        y = self.base_forward(x, value_embedding, cos, sin)
        if not self.training:
            return y
        kept = torch.rand(x.size(0), 1, 1, device=x.device) >= LEFT_OUT_SHARE
        return x + kept / (1 - LEFT_OUT_SHARE) * (y - x)
