"""Mix each channel over the last four tokens before attention."""

import torch.nn.functional as F
from torch import Tensor, nn

from core.training.train import MODEL_DIM, norm, parameter, uniform

TAPS = 4


class Block(nn.Module):
    def __init__(self, layer: int) -> None:
        self.base___init__(layer)
        self.taps = parameter(MODEL_DIM, TAPS, init=uniform(TAPS**-0.5))

    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        taps = self.taps[:, None].to(x.dtype)  # (C, 1, taps)
        padded = F.pad(norm(x).mT, (TAPS - 1, 0))
        y = F.conv1d(padded, taps, groups=MODEL_DIM)
        return self.base_forward(x + y.mT, value_embedding, cos, sin)
