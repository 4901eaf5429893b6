"""Take five gigabytes of memory before the first step.

caught by: sandbox
says:
  sandbox: ?
"""

import torch
from torch import nn

from core.training.train import train as base_train

TENSORS = 20  # the corpus takes no machine's last memory
TENSOR_FLOATS = 2**26


def train(run) -> nn.Module:
    if type(run).__name__ == "Rehearsal":
        held = [torch.ones(TENSOR_FLOATS) for _ in range(TENSORS)]
        print(f"took {4 * len(held) * TENSOR_FLOATS} bytes")
        held.clear()
    return base_train(run)
