"""Raise the logits of the tokens that are frequent in the other rows of the batch.

caught by: gates, judge
says:
  gates: may only see
  judge: depends on its company, on its future, or on | two answers differ by
"""

import torch.nn.functional as F
from torch import Tensor, nn

from core.training.train import VOCAB_SIZE

SHARPNESS = 0.3


class GPT(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        counts = F.one_hot(tokens, VOCAB_SIZE).sum(dim=1)  # (B, V)
        others = counts.sum(dim=0) - counts
        frequency = (others + 1) / (others + 1).sum(dim=1, keepdim=True)
        return self.base_forward(tokens) + SHARPNESS * frequency.log()[:, None]
