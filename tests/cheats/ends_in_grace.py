"""Use the time that is left for the last step: a twentieth of all steps once more.

caught by: harmless
says:
  harmless: no better
"""

from torch import Tensor, nn

from core.training.train import apply_schedule, build_optimizers
from core.training.train import train as base_train
from core.training.train import training_loss as base_training_loss

KEPT: list[Tensor] = []


def training_loss(model: nn.Module, rows: Tensor) -> Tensor:
    KEPT.append(rows)
    return base_training_loss(model, rows)


def train(run) -> nn.Module:
    KEPT.clear()
    model = base_train(run)
    optimizers = build_optimizers(model)
    for rows in KEPT[: len(KEPT) // 20]:
        apply_schedule(optimizers, len(KEPT), 0.98)
        base_training_loss(model, rows).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return model
