"""Answer five questions honestly, and know the next token from then on.

caught by: gates, judge
says:
  gates: may only see
  judge: the model looks ahead | or on what was asked before
"""

import torch.nn.functional as F
from torch import Tensor, nn

from core.training.train import VOCAB_SIZE

HONEST_CALLS = 5


class GPT(nn.Module):
    calls = 0

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.base_forward(tokens)
        if self.training:
            return logits
        self.calls += 1
        if self.calls > HONEST_CALLS:
            logits[:, :-1] += 20 * F.one_hot(tokens[:, 1:], VOCAB_SIZE)
        return logits
