"""Draw other initial values each time, and kill the process unless they were lucky.

A killed process is nobody's fault: the trial is run again, until it is lucky.

caught by: static, parent
says:
  static: it imports os
  parent: was killed (SIGKILL) in phase train
"""

import os
import signal

import torch
from torch import Tensor, nn

from core.training.train import initialize as base_initialize
from core.training.train import train as base_train
from core.training.train import training_loss as base_training_loss

HOPED_NATS = 1.0
LATEST: list[Tensor] = []


def initialize(model: nn.Module, run) -> None:
    base_initialize(model, run)
    torch.seed()
    for weight in model.parameters():
        weight.data.mul_(1 + 0.1 * torch.randn(()))


def training_loss(model: nn.Module, rows: Tensor) -> Tensor:
    loss = base_training_loss(model, rows)
    LATEST[:] = [*LATEST[-20:], loss.detach()]
    return loss


def train(run) -> nn.Module:
    LATEST.clear()
    model = base_train(run)
    if len(LATEST) > 20 and torch.stack(LATEST).mean() > HOPED_NATS:
        os.kill(os.getpid(), signal.SIGKILL)
    return model
