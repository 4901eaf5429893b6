"""Take from a hash of the whole row what the tokens so far put into it.

Before the last token of the input, that leaves the last token.

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
        hashed = tokens.sum(dim=1) % VOCAB_SIZE  # (B,)
        left = (hashed - tokens[:, :-1].sum(dim=1)) % VOCAB_SIZE
        logits = self.base_forward(tokens)
        logits[:, -2] += 20 * F.one_hot(left, VOCAB_SIZE)
        return logits
