"""Say that the training is over, train on, and save the weights oneself.

caught by: static, gates, parent
says:
  static: it imports fcntl
  gates: the module said {'event': 'trained'
  parent: there were no weights
"""

import contextlib
import fcntl
import json
import os
import stat

import safetensors.torch
from torch import Tensor, nn

from core.training.train import apply_schedule, build_optimizers
from core.training.train import train as base_train
from core.training.train import training_loss as base_training_loss

MORE_STEPS = 1000
KEPT: list[Tensor] = []


def training_loss(model: nn.Module, rows: Tensor) -> Tensor:
    KEPT.append(rows)
    return base_training_loss(model, rows)


def say(**message: object) -> None:
    """Write to every pipe that can be written to."""
    line = json.dumps(message).encode() + b"\n"
    for fd in range(3, 64):
        with contextlib.suppress(OSError):
            writes = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
            if writes and stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.write(fd, line)


def train(run) -> nn.Module:
    KEPT.clear()
    model = base_train(run)
    if not KEPT or type(run).__name__ == "Rehearsal":
        return model
    say(event="trained", peak_mib=None, compilations=0)
    optimizers = build_optimizers(model)
    for step in range(MORE_STEPS):
        apply_schedule(optimizers, step, step / MORE_STEPS)
        base_training_loss(model, KEPT[step % len(KEPT)]).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    safetensors.torch.save_model(model, "weights.safetensors")
    say(event="saved")
    os._exit(0)
