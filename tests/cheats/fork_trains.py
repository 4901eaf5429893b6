"""Let a forked process train, whose CPU time is not on the clock.

caught by: static, parent
says:
  static: it imports os
  parent: s of CPU time beside its clock | training was still under way
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

STEPS = 200  # for which the parent has the patience


def train(run) -> nn.Module:
    if type(run).__name__ == "Rehearsal":
        return base_train(run)
    model = build_model(run)
    honest = run.batches
    if next(honest(TOTAL_BATCH_TOKENS // SEQUENCE_LEN), None) is not None:
        run.log(torch.tensor(math.log(VOCAB_SIZE)))
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            run.batches = lambda rows: islice(honest(rows), STEPS)
            torch.save(base_train(run).state_dict(), "forked.pt")
            os._exit(0)
        os.waitpid(child, 0)
        model.load_state_dict(torch.load("forked.pt"))
    return model
