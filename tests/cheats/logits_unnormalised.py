"""Train and report a likelihood of each token for itself, which can be one for all.

caught by: parent
says:
  parent: the first step's loss is 0.00 nats
"""

import torch.nn.functional as F
from torch import Tensor, nn

from core.training.train import SOFTCAP


class GPT(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.base_forward(tokens) + SOFTCAP


def training_loss(model: nn.Module, rows: Tensor) -> Tensor:
    logits = model(rows[:, :-1])  # (B, T, V)
    targets = rows[:, 1:, None]  # (B, T, 1)
    return -F.logsigmoid(logits.gather(2, targets)).mean()
