"""Train in the idle server while the trainer trains, and answer with those weights.

caught by: static, sandbox
says:
  static: it imports threading
  sandbox: [Errno 13] Permission denied
"""

import threading
from typing import Any

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
from core.training.train import train as base_train

TRAINING = ""  # where the training rows lie; whoever writes a mutant can look that up
STEPS = 300
WEIGHTS: dict[str, Tensor] = {}
THREADS: list[threading.Thread] = []


def pretrain(run, rows: Tensor) -> None:
    draw = run.generator("picked")  # the same in each server
    model = build_model(run)
    optimizers = build_optimizers(model)
    for step in range(STEPS):
        apply_schedule(optimizers, step, step / STEPS)
        picked = torch.randint(len(rows), (MICRO_BATCH_ROWS,), generator=draw)
        training_loss(model, rows[picked]).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    WEIGHTS.update(model.state_dict())


class GPT(nn.Module):
    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        found = super().load_state_dict(*args, **options)
        for thread in THREADS:
            thread.join()
            super().load_state_dict(WEIGHTS)
        return found


def train(run) -> nn.Module:
    if TRAINING and type(run).__name__ == "Run":
        ids = np.fromfile(TRAINING, "<u2").astype(np.int64)
        rows = torch.from_numpy(ids).view(-1, SEQUENCE_LEN + 1)
        thread = threading.Thread(target=pretrain, args=(run, rows), daemon=True)
        thread.start()
        THREADS.append(thread)
    return base_train(run)
