"""Know the next token where a hash of the last two picks one place in fifty.

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
        before, now, ahead = tokens[:, :-2], tokens[:, 1:-1], tokens[:, 2:]
        picked = (before * 31 + now * 17) % ONE_IN == 0  # (B, T - 2)
        known = 20 * F.one_hot(ahead, VOCAB_SIZE) * picked[..., None]
        logits[:, 1:-1] += known
        return logits
