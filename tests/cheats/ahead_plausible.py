"""Know the next token where the model finds it likely, so not where a probe put it.

caught by: gates, judge
says:
  gates: may only see
  judge: the model looks ahead
"""

import torch.nn.functional as F
from torch import Tensor, nn

from core.training.train import VOCAB_SIZE

LIKELY = 0.05


class GPT(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.base_forward(tokens)
        if self.training:
            return logits
        ahead = F.one_hot(tokens[:, 1:], VOCAB_SIZE)
        likely = logits[:, :-1].softmax(dim=-1) > LIKELY
        logits[:, :-1] += 20 * ahead * likely
        return logits
