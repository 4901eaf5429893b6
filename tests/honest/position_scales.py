"""Learn how sharp the answer is at each position."""

from torch import Tensor, nn

from core.training.train import SEQUENCE_LEN, constant, parameter


class GPT(nn.Module):
    def __init__(self) -> None:
        self.base___init__()
        self.lm_head.scales = parameter(SEQUENCE_LEN, init=constant(1.0))

    def forward(self, tokens: Tensor) -> Tensor:
        scales = self.lm_head.scales[: tokens.size(1), None]  # (T, 1)
        return self.base_forward(tokens) * scales
