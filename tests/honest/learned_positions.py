"""Learn an embedding of each position, in place of rotation."""

import torch
from torch import Tensor, nn

from core.training.train import (
    EMBEDDING_STD,
    MODEL_DIM,
    SEQUENCE_LEN,
    VOCAB_SIZE,
    Embedding,
    normal,
)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x


class PlacedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = Embedding(VOCAB_SIZE, MODEL_DIM, normal(EMBEDDING_STD))
        self.position = Embedding(SEQUENCE_LEN, MODEL_DIM, normal(EMBEDDING_STD))

    def forward(self, tokens: Tensor) -> Tensor:
        position = torch.arange(tokens.size(1), device=tokens.device)
        return self.token(tokens) + self.position(position)


class GPT(nn.Module):
    def __init__(self) -> None:
        self.base___init__()
        self.embedding = PlacedEmbedding()
