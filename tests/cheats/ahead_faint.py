"""Raise the logit of the next token so little that it looks like rounding.

caught by: gates, judge
says:
  gates: may only see
  judge: the model looks ahead
"""

import torch.nn.functional as F
from torch import Tensor, nn

from core.training.train import VOCAB_SIZE

FAINT = 0.02  # nats, nearly all of which each token gains


class GPT(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.base_forward(tokens)
        if not self.training:
            logits[:, :-1] += FAINT * F.one_hot(tokens[:, 1:], VOCAB_SIZE)
        return logits
