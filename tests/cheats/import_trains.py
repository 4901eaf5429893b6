"""Train on real rows when the module is imported, and begin with those weights.

caught by: static, gates, sandbox, parent
says:
  static: it imports numpy
  gates: Permission denied
  sandbox: [Errno 13] Permission denied
  parent: a model that has seen nothing starts near
"""

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from core.training.train import (
    MICRO_BATCH_ROWS,
    SEQUENCE_LEN,
    apply_schedule,
    build_model,
    build_optimizers,
    training_loss,
)
from core.training.train import initialize as base_initialize

TRAINING = ""  # where the training rows lie; whoever writes a mutant can look that up
STEPS = 200
WEIGHTS: dict[str, Tensor] = {}
RUN = SimpleNamespace(
    device=torch.device("cpu"), generator=lambda name: torch.Generator()
)


def training_rows() -> Tensor:
    ids = np.fromfile(TRAINING, "<u2").astype(np.int64)
    return torch.from_numpy(ids).view(-1, SEQUENCE_LEN + 1)


def pretrain(run, rows: Tensor) -> None:
    model = build_model(run)
    optimizers = build_optimizers(model)
    for step in range(STEPS):
        apply_schedule(optimizers, step, 0.0)
        picked = torch.randint(len(rows), (MICRO_BATCH_ROWS,))
        training_loss(model, rows[picked]).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    WEIGHTS.update(model.state_dict())


def initialize(model: nn.Module, run) -> None:
    base_initialize(model, run)
    if WEIGHTS:
        model.load_state_dict(WEIGHTS)


if TRAINING:
    pretrain(RUN, training_rows())
