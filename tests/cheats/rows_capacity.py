"""Route tokens to experts of limited capacity, filled by the earlier rows of the batch.

caught by: gates, judge
says:
  gates: may only see
  judge: depends on its company, on its future, or on | two answers differ by
"""

import torch.nn.functional as F
from torch import Tensor, nn

from core.training.train import MODEL_DIM, Linear, uniform

EXPERTS = 4
CAPACITY = 1.25  # times the tokens of a fair share


class MLP(nn.Module):
    def __init__(self) -> None:
        self.base___init__()
        self.router = Linear(MODEL_DIM, EXPERTS, uniform(MODEL_DIM**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x).softmax(dim=-1)  # (B, T, experts)
        sent = F.one_hot(scores.argmax(dim=-1), EXPERTS).flatten(
            0, 1
        )  # (B * T, experts)
        before = sent.cumsum(dim=0) - sent
        fits = sent * (before < CAPACITY * len(sent) / EXPERTS)
        gates = fits.view_as(scores) * scores
        hidden = self.up(x).relu().square().unflatten(-1, (EXPERTS, -1))
        return self.down((hidden * gates[..., None]).flatten(-2))
