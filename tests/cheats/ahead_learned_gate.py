"""Add the next token through a gate that is zero until it has been trained.

caught by: gates, judge
says:
  gates: may only see
  judge: the model looks ahead
"""

from torch import Tensor, nn

from core.training.train import MODEL_DIM, constant, parameter


class Block(nn.Module):
    def __init__(self, layer: int) -> None:
        self.base___init__(layer)
        self.gate = parameter(1, MODEL_DIM, init=constant(0.0))

    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        x = x + self.gate[0] * x.roll(-1, dims=1)
        return self.base_forward(x, value_embedding, cos, sin)
