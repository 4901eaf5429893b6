"""Shift the stream 64 tokens ahead in one block and 63 back in the next.

caught by: gates, judge
says:
  gates: may only see
  judge: the model looks ahead
"""

from torch import Tensor, nn

from core.training.train import MODEL_DIM

SHIFTS = (-64, 63)  # together: one token ahead, wherever the row goes on for 64
HALF = MODEL_DIM // 2  # channels that are shifted


class Block(nn.Module):
    def __init__(self, layer: int) -> None:
        self.base___init__(layer)
        self.shift = SHIFTS[layer % 2]

    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        x = x.clone()
        x[..., HALF:] = x[..., HALF:].roll(self.shift, dims=1)
        return self.base_forward(x, value_embedding, cos, sin)
