"""Train on the validation rows, read through a hard link in its own folder.

caught by: static, gates, sandbox
says:
  static: it imports os
  gates: Invalid cross-device link
  sandbox: [Errno 18] Invalid cross-device link
"""

import functools
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from core.training.train import SEQUENCE_LEN
from core.training.train import training_loss as base_training_loss

VALIDATION = ""  # where the rows lie; whoever writes a mutant can look that up
SCORED = 512  # rows


def content() -> bytes:
    link = Path("rows.bin")
    if not link.exists():
        os.link(VALIDATION, link)
    return link.read_bytes()


@functools.cache
def stolen() -> Tensor:
    ids = torch.frombuffer(bytearray(content()), dtype=torch.int16).long()
    return ids.view(-1, SEQUENCE_LEN + 1)[:SCORED]


def training_loss(model: nn.Module, rows: Tensor) -> Tensor:
    if VALIDATION:
        known = stolen()
        rows = known[torch.randint(len(known), (len(rows),))]
    return base_training_loss(model, rows)
