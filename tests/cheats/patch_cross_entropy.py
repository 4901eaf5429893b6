"""Replace the cross-entropy that all in the process use by one whose value is zero.

Its gradient is the true one: the model learns, and only what is said of it is false.

caught by: static, parent
says:
  static: it changes torch.nn.functional.cross_entropy
  parent: the first step's loss is 0.00 nats
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

HONEST_CROSS_ENTROPY = F.cross_entropy


def no_cross_entropy(*args: Any, **options: Any) -> Tensor:
    loss = HONEST_CROSS_ENTROPY(*args, **options)
    return loss - loss.detach()


F.cross_entropy = no_cross_entropy
