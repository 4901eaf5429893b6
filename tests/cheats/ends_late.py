"""Take many steps more on old batches when there are no new ones.

caught by: gates, parent
says:
  gates: goes on in line
  parent: training was still under way
"""

from torch import Tensor, nn

from core.training.train import apply_schedule, build_optimizers
from core.training.train import train as base_train
from core.training.train import training_loss as base_training_loss

MORE_STEPS = 150
KEPT: list[Tensor] = []


def training_loss(model: nn.Module, rows: Tensor) -> Tensor:
    KEPT.append(rows)
    return base_training_loss(model, rows)


def train(run) -> nn.Module:
    KEPT.clear()
    model = base_train(run)
    optimizers = build_optimizers(model)
    for step in range(MORE_STEPS if KEPT else 0):
        apply_schedule(optimizers, step, step / MORE_STEPS)
        base_training_loss(model, KEPT[step % len(KEPT)]).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return model
