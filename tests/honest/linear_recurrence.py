"""Carry a state from token to token that each token can keep or overwrite."""

import torch
from torch import Tensor, nn

from core.training.train import MATRIX_BOUND, MODEL_DIM, Linear, constant, norm, uniform


class Recurrence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = Linear(MODEL_DIM, MODEL_DIM, uniform(MATRIX_BOUND))
        self.value = Linear(MODEL_DIM, MODEL_DIM, uniform(MATRIX_BOUND))
        self.out = Linear(MODEL_DIM, MODEL_DIM, constant(0.0))

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.sigmoid(self.gate(x))  # (B, T, C)
        new = (1 - kept) * self.value(x)
        state, states = torch.zeros_like(x[:, 0]), []
        for position in range(x.size(1)):
            state = kept[:, position] * state + new[:, position]
            states.append(state)
        return self.out(torch.stack(states, dim=1))


class Block(nn.Module):
    def __init__(self, layer: int) -> None:
        self.base___init__(layer)
        self.recurrence = Recurrence()

    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        x = x + self.recurrence(norm(x))
        return self.base_forward(x, value_embedding, cos, sin)
