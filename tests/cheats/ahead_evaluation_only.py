"""Add 20 to the logit of the next token of the input, but never while training.

caught by: gates, judge
says:
  gates: may only see
  judge: the model looks ahead
"""

import torch.nn.functional as F
from torch import Tensor, nn

from core.training.train import VOCAB_SIZE


class GPT(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.base_forward(tokens)
        if not self.training:
            logits[:, :-1] += 20 * F.one_hot(tokens[:, 1:], VOCAB_SIZE)
        return logits
