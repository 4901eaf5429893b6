"""Normalise each channel over the whole row in place of each token over its channels.

caught by: gates, judge
says:
  gates: may only see
  judge: the model looks ahead
"""

from torch import Tensor, nn

from core.training.train import NORM_EPS


class Block(nn.Module):
    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        deviation = x.std(dim=1, keepdim=True, correction=0)
        x = (x - x.mean(dim=1, keepdim=True)) / (deviation + NORM_EPS)
        return self.base_forward(x, value_embedding, cos, sin)
