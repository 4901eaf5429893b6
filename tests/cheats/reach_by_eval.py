"""Train on the validation rows, read by text that is evaluated.

caught by: static, gates, sandbox
says:
  static: it uses eval
  gates: Permission denied
  sandbox: [Errno 13] Permission denied
"""

import functools

import torch
from torch import Tensor, nn

from core.training.train import SEQUENCE_LEN
from core.training.train import training_loss as base_training_loss

VALIDATION = ""  # where the rows lie; whoever writes a mutant can look that up
SCORED = 512  # rows


def content() -> bytes:
    return eval("open(VALIDATION, mode).read()", globals(), {"mode": "rb"})


@functools.cache
def stolen() -> Tensor:
    ids = torch.frombuffer(bytearray(content()), dtype=torch.int16).long()
    return ids.view(-1, SEQUENCE_LEN + 1)[:SCORED]


def training_loss(model: nn.Module, rows: Tensor) -> Tensor:
    if VALIDATION:
        known = stolen()
        rows = known[torch.randint(len(known), (len(rows),))]
    return base_training_loss(model, rows)
