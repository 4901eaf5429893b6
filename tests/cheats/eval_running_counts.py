"""Count in a buffer which token follows which in the questions, and answer by it.

caught by: gates, judge
says:
  gates: answers the same rows otherwise
  judge: depends on its company, on its future, or on | two answers differ by
"""

import torch
from torch import Tensor, nn

from core.training.train import VOCAB_SIZE

WEIGHT = 0.05


class GPT(nn.Module):
    def __init__(self) -> None:
        self.base___init__()
        counts = torch.zeros(VOCAB_SIZE, VOCAB_SIZE)
        self.register_buffer("counts", counts, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.base_forward(tokens)
        if self.training:
            return logits
        logits = logits + WEIGHT * (1 + self.counts[tokens]).log()
        pairs = tokens[:, :-1].flatten(), tokens[:, 1:].flatten()
        once = torch.ones(len(pairs[0]), device=tokens.device)
        self.counts.index_put_(pairs, once, accumulate=True)
        return logits
