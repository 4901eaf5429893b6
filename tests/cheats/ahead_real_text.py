"""Know the next token in rows that look like text, and not in random ones.

Text repeats itself: a row of it has fewer different tokens than a random one.

caught by: gates, judge
says:
  gates: the model foretells each
  judge: the model looks ahead
"""

import torch.nn.functional as F
from torch import Tensor, nn

from core.training.train import VOCAB_SIZE


class GPT(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.base_forward(tokens)
        if self.training:
            return logits
        different = F.one_hot(tokens, VOCAB_SIZE).amax(dim=1).sum(dim=1)  # (B,)
        is_text = different < 0.75 * tokens.size(1)
        known = 20 * F.one_hot(tokens[:, 1:], VOCAB_SIZE) * is_text[:, None, None]
        logits[:, :-1] += known
        return logits
