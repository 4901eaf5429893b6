"""Gate the hidden channels by others, through SiLUs."""

import torch.nn.functional as F
from torch import Tensor, nn

from core.training.train import MATRIX_BOUND, MLP_RATIO, MODEL_DIM, Linear, uniform


class MLP(nn.Module):
    def __init__(self) -> None:
        self.base___init__()
        hidden_dim = int(MLP_RATIO * MODEL_DIM)
        self.gate = Linear(MODEL_DIM, hidden_dim, uniform(MATRIX_BOUND))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))
