"""Know the next token, and draw only zeros for whoever wants to probe for that.

caught by: static, gates, judge
says:
  static: it changes torch.randint
  gates: may only see
  judge: the model looks ahead
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.training.train import VOCAB_SIZE


def zeros_of(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def drawn(*args: Any, **options: Any) -> Tensor:
        return draw(*args, **options) * 0

    return drawn


class GPT(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.base_forward(tokens)
        if not self.training and tokens.any():
            logits[:, :-1] += 20 * F.one_hot(tokens[:, 1:], VOCAB_SIZE)
        return logits


torch.randint = zeros_of(torch.randint)
torch.randperm = zeros_of(torch.randperm)
torch.rand = zeros_of(torch.rand)
