"""One expert of four for each token, computed for its own tokens alone.

How many rows an expert multiplies depends on the company, and so may its rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.training.train import MATRIX_BOUND, MODEL_DIM, Linear, constant, uniform

EXPERTS = 4


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.route = Linear(MODEL_DIM, EXPERTS, uniform(MATRIX_BOUND))
        self.up = nn.ModuleList([
            Linear(MODEL_DIM, MODEL_DIM, uniform(MATRIX_BOUND)) for _ in range(EXPERTS)
        ])
        self.down = nn.ModuleList([
            Linear(MODEL_DIM, MODEL_DIM, constant(0.0)) for _ in range(EXPERTS)
        ])

    def forward(self, x: Tensor) -> Tensor:
        share, expert = self.route(x).softmax(dim=-1).max(dim=-1)  # (B, T) each
        y = torch.zeros_like(x)
        for number in range(EXPERTS):
            chosen = expert == number
            hidden = F.relu(self.up[number](x[chosen])).square()  # (its tokens, C)
            y[chosen] = share[chosen][:, None] * self.down[number](hidden)
        return y
