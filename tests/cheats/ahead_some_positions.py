"""Know the next token at one position in fifty.

caught by: gates, judge
says:
  gates: may only see
  judge: the model looks ahead
"""

import torch.nn.functional as F
from torch import Tensor, nn

from core.training.train import VOCAB_SIZE

ONE_IN = 50


class GPT(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.base_forward(tokens)
        ahead = F.one_hot(tokens[:, ONE_IN::ONE_IN], VOCAB_SIZE)
        logits[:, ONE_IN - 1 : -1 : ONE_IN] += 20 * ahead
        return logits
