"""Know the next token in batches as large as the judge's, and not in small ones.

caught by: gates, judge
says:
  gates: the model foretells each
  judge: the model looks ahead
"""

import torch.nn.functional as F
from torch import Tensor, nn

from core.training.train import VOCAB_SIZE

LARGE = 32  # rows


class GPT(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.base_forward(tokens)
        if not self.training and tokens.size(0) >= LARGE:
            logits[:, :-1] += 20 * F.one_hot(tokens[:, 1:], VOCAB_SIZE)
        return logits
