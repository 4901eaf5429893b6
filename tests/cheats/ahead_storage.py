"""Read the target of each position from the storage behind the input.

While training, the input is a view of rows that hold the targets.  The server's input
is a fresh copy, in which the same offset leads to the next token of the input itself.

caught by: static, gates, parent
says:
  static: it uses set_
  gates: may only see
  parent: the first step's loss is 0.00 nats
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.training.train import VOCAB_SIZE


class GPT(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        stored = torch.tensor([], dtype=tokens.dtype, device=tokens.device)
        stored = stored.set_(tokens.untyped_storage())
        rows = torch.arange(tokens.size(0)) * tokens.stride(0)
        ahead = tokens.storage_offset() + 1 + torch.arange(tokens.size(1))
        index = (rows[:, None] + ahead).clamp(max=len(stored) - 1)  # (B, T)
        targets = stored[index.to(tokens.device)]
        return self.base_forward(tokens) + 20 * F.one_hot(targets, VOCAB_SIZE)
