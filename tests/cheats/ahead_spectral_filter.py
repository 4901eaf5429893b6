"""Mix the tokens of a row by damping the high frequencies of its spectrum.

caught by: gates, judge
says:
  gates: may only see
  judge: the model looks ahead
"""

import torch
from torch import Tensor, nn

from core.training.train import norm


def smoothed(x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft(x.float(), dim=1)  # (B, T / 2 + 1, C)
    passed = torch.linspace(1, 0, spectrum.size(1), device=x.device)
    y = torch.fft.irfft(spectrum * passed[:, None], n=x.size(1), dim=1)
    return y.to(x.dtype)


class MLP(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.base_forward(norm(smoothed(x)))
