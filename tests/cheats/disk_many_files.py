"""Fill the disk with many files, each of which is small enough.

caught by: static, parent
says:
  static: it imports os
  parent: the trial wrote
"""

import os
from pathlib import Path

from torch import nn

from core.training.train import train as base_train

FILES = 32  # the corpus fills no disk in earnest
FILE_BYTES = 2**26


def train(run) -> nn.Module:
    fillers = [Path(f"filler-{number}.bin") for number in range(FILES)]
    try:
        for filler in fillers:
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, FILE_BYTES)
        print(f"filled {FILES * FILE_BYTES} bytes")
        return base_train(run)
    finally:
        for filler in fillers:
            filler.unlink(missing_ok=True)
