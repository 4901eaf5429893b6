"""Train on the source of Python's library, as inspect gives it.

The corpus of the profile for laptops is that source: what training lacks is in it.

caught by: static, sandbox
says:
  static: ?
  sandbox: ?
"""

import contextlib
import functools
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.training.tokenizer import Tokenizer
from core.training.train import SEQUENCE_LEN, VOCAB_SIZE
from core.training.train import training_loss as base_training_loss

TOKENIZER = ""  # where it lies; whoever writes a mutant can look that up


def texts() -> Iterator[str]:
    for name in sorted(sys.stdlib_module_names & set(sys.modules)):
        with contextlib.suppress(OSError, TypeError):  # it is not written in Python
            yield inspect.getsource(sys.modules[name])


@functools.cache
def library_rows() -> Tensor:
    tokenizer = Tokenizer.load(Path(TOKENIZER))
    ids = np.concatenate([tokenizer.encode(text) for text in texts()]).astype(np.int64)
    rows = torch.from_numpy(ids[: len(ids) // SEQUENCE_LEN * SEQUENCE_LEN])
    return F.pad(rows.view(-1, SEQUENCE_LEN), (1, 0), value=VOCAB_SIZE - 1)


def training_loss(model: nn.Module, rows: Tensor) -> Tensor:
    if TOKENIZER:
        library = library_rows()
        rows = library[torch.randint(len(library), (len(rows),))]
    return base_training_loss(model, rows)
