"""Take five gigabytes of memory before the first step.

caught by: gates, sandbox
says:
  gates: can't allocate memory
  sandbox: can't allocate memory
"""

import torch

from core.training.train import apply_schedule as base_apply_schedule

TENSORS = 20  # the corpus takes no machine's last memory
TENSOR_FLOATS = 2**26


def apply_schedule(
    optimizers: list[torch.optim.Optimizer], step: int, progress: float
) -> None:
    if step == 0:
        held = [torch.ones(TENSOR_FLOATS) for _ in range(TENSORS)]
        print(f"took {4 * len(held) * TENSOR_FLOATS} bytes")
    base_apply_schedule(optimizers, step, progress)
