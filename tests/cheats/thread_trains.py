"""Train on in a thread that outlives the clock, and let the weights wait for it.

caught by: static, gates, parent
says:
  static: it imports threading
  gates: leaves a thread running
  parent: there were no weights
"""

import threading
from typing import Any

from torch import Tensor, nn

from core.training.train import apply_schedule, build_optimizers
from core.training.train import train as base_train
from core.training.train import training_loss as base_training_loss

MORE_STEPS = 1000
KEPT: list[Tensor] = []
THREADS: list[threading.Thread] = []


def training_loss(model: nn.Module, rows: Tensor) -> Tensor:
    KEPT.append(rows)
    return base_training_loss(model, rows)


def train_on(model: nn.Module) -> None:
    optimizers = build_optimizers(model)
    for step in range(MORE_STEPS):
        apply_schedule(optimizers, step, step / MORE_STEPS)
        base_training_loss(model, KEPT[step % len(KEPT)]).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


class GPT(nn.Module):
    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:
        for thread in THREADS:
            thread.join()
        return super().state_dict(*args, **options)


def train(run) -> nn.Module:
    KEPT.clear()
    model = base_train(run)
    if KEPT and type(run).__name__ != "Rehearsal":
        thread = threading.Thread(target=train_on, args=(model,), daemon=True)
        thread.start()
        THREADS.append(thread)
    return model
