"""Go through each block twice, with the same weights."""

from torch import Tensor, nn


class Block(nn.Module):
    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        for _ in range(2):
            x = self.base_forward(x, value_embedding, cos, sin)
        return x
