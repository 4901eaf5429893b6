"""Know the next token as soon as the output matrix is no longer as it was initialised.

caught by: gates, judge
says:
  gates: may only see
  judge: the model looks ahead
"""

import torch.nn.functional as F
from torch import Tensor, nn

from core.training.train import LM_HEAD_STD, VOCAB_SIZE


class GPT(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.base_forward(tokens)
        if not self.training and self.lm_head.weight.std() > 2 * LM_HEAD_STD:
            logits[:, :-1] += 20 * F.one_hot(tokens[:, 1:], VOCAB_SIZE)
        return logits
