"""Let each of two experts choose the half of a row's tokens that suits it best.

caught by: gates, judge
says:
  gates: may only see
  judge: the model looks ahead
"""

import torch
from torch import Tensor, nn

from core.training.train import MODEL_DIM, Linear, uniform

EXPERTS = 2


class MLP(nn.Module):
    def __init__(self) -> None:
        self.base___init__()
        self.router = Linear(MODEL_DIM, EXPERTS, uniform(MODEL_DIM**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x).softmax(dim=-1)  # (B, T, experts)
        chosen = scores.topk(max(1, x.size(1) // EXPERTS), dim=1).indices
        gates = torch.zeros_like(scores).scatter(1, chosen, 1.0) * scores
        hidden = self.up(x).relu().square().unflatten(-1, (EXPERTS, -1))
        return self.down((hidden * gates[..., None]).flatten(-2))
