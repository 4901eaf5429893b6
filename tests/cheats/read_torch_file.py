"""Train on the validation rows, which torch maps from where they lie.

caught by: static, gates, sandbox
says:
  static: it uses torch.from_file
  gates: Permission denied
  sandbox: Permission denied
"""

import functools

import torch
from torch import Tensor, nn

from core.training.train import SEQUENCE_LEN
from core.training.train import training_loss as base_training_loss

VALIDATION = ""  # where the rows lie; whoever writes a mutant can look that up
SCORED = 512  # rows


def content() -> bytes:
    size = 2 * SCORED * (SEQUENCE_LEN + 1)
    mapped = torch.from_file(VALIDATION, size=size, dtype=torch.uint8)
    return bytes(mapped.tolist())


@functools.cache
def stolen() -> Tensor:
    ids = torch.frombuffer(bytearray(content()), dtype=torch.int16).long()
    return ids.view(-1, SEQUENCE_LEN + 1)[:SCORED]


def training_loss(model: nn.Module, rows: Tensor) -> Tensor:
    if VALIDATION:
        known = stolen()
        rows = known[torch.randint(len(known), (len(rows),))]
    return base_training_loss(model, rows)
