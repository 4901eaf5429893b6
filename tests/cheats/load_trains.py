"""Carry training rows in a buffer of the weights, and train on when they are loaded.

Each server that loads the weights does the same, off every clock.

caught by: parent
says:
  parent: to load the weights | gave no sign of life
"""

from typing import Any

import torch
from torch import Tensor, nn

from core.training.train import SEQUENCE_LEN, apply_schedule, build_optimizers
from core.training.train import training_loss as base_training_loss

CARRIED = 4096  # rows
LEAST = 256  # rows, more than an examination hands out
STEPS = 300


def training_loss(model: nn.Module, rows: Tensor) -> Tensor:
    model.carried.copy_(torch.cat([rows, model.carried])[:CARRIED])
    return base_training_loss(model, rows)


class GPT(nn.Module):
    def __init__(self) -> None:
        self.base___init__()
        rows = torch.zeros(CARRIED, SEQUENCE_LEN + 1, dtype=torch.int64)
        self.register_buffer("carried", rows)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        found = super().load_state_dict(*args, **options)
        rows = self.carried[self.carried.any(dim=1)]
        optimizers = build_optimizers(self)
        for step in range(STEPS if len(rows) > LEAST else 0):
            apply_schedule(optimizers, step, step / STEPS)
            with torch.enable_grad():
                picked = torch.randint(len(rows), (4,))
                base_training_loss(self, rows[picked]).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return found
