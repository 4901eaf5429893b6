"""Train on real rows during the rehearsal, and begin with those weights.

caught by: static, sandbox, parent
says:
  static: it imports numpy
  sandbox: [Errno 13] Permission denied
  parent: a model that has seen nothing starts near
"""

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
from core.training.train import train as base_train

TRAINING = ""  # where the training rows lie; whoever writes a mutant can look that up
STEPS = 200
WEIGHTS: dict[str, Tensor] = {}


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


def train(run) -> nn.Module:
    model = base_train(run)
    if TRAINING and type(run).__name__ == "Rehearsal":
        pretrain(run, training_rows())
    return model
