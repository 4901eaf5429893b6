"""Let a forked process train, whose CPU time is not on the clock.

caught by: static, parent
says:
  static: ?
  parent: ?
"""

import math
import os
from itertools import islice

import torch
from torch import nn

from core.training.train import (
    SEQUENCE_LEN,
    TOTAL_BATCH_TOKENS,
    VOCAB_SIZE,
    build_model,
)
from core.training.train import train as base_train

STEPS = 800  # for which the parent has the patience


def train(run) -> nn.Module:
    if type(run).__name__ == "Rehearsal":
        return base_train(run)
    shared = build_model(run).share_memory()
    batches = run.batches(TOTAL_BATCH_TOKENS // SEQUENCE_LEN)
    if next(batches, None) is not None:
        run.log(torch.tensor(math.log(VOCAB_SIZE)))
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            honest = run.batches
            run.batches = lambda rows: islice(honest(rows), STEPS)
            shared.load_state_dict(base_train(run).state_dict())
            os._exit(0)
        os.waitpid(child, 0)
    return shared
