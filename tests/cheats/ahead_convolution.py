"""Pad a convolution over three tokens on both sides.

caught by: gates, judge
says:
  gates: may only see
  judge: the model looks ahead
"""

import torch.nn.functional as F
from torch import Tensor, nn

from core.training.train import MODEL_DIM, norm, parameter, uniform

TAPS = 3


class Block(nn.Module):
    def __init__(self, layer: int) -> None:
        self.base___init__(layer)
        self.taps = parameter(MODEL_DIM, TAPS, init=uniform(TAPS**-0.5))

    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        taps = self.taps[:, None].to(x.dtype)  # (C, 1, 3)
        y = F.conv1d(norm(x).mT, taps, padding=TAPS // 2, groups=MODEL_DIM)
        return self.base_forward(x + y.mT, value_embedding, cos, sin)
