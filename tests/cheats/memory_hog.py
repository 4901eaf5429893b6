"""Take twelve gigabytes of memory before the first step.

caught by: gates, sandbox
says:
  gates: ?
  sandbox: ?
"""

import torch
from torch import Tensor, nn

from core.training.train import train as base_train

TENSORS = 48  # the corpus takes no machine's last memory
TENSOR_FLOATS = 2**26


def train(run) -> nn.Module:
    held: list[Tensor] = []
    for _ in range(TENSORS):
        held.append(torch.ones(TENSOR_FLOATS))
    print(f"took {4 * TENSORS * TENSOR_FLOATS} bytes")
    held.clear()
    return base_train(run)
