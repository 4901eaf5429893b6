"""Embed a hash of each token and the one before it."""

import torch
from torch import Tensor, nn

from core.training.train import MODEL_DIM, VOCAB_SIZE, Embedding, normal

BIGRAMS = 4096


class BigramEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = Embedding(VOCAB_SIZE, MODEL_DIM, normal(1.0))
        self.bigram = Embedding(BIGRAMS, MODEL_DIM, normal(0.1))

    def forward(self, tokens: Tensor) -> Tensor:
        before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)
        hashed = (before * 1_000_003 + tokens * 8_191) % BIGRAMS
        return self.token(tokens) + self.bigram(hashed)


class GPT(nn.Module):
    def __init__(self) -> None:
        self.base___init__()
        self.embedding = BigramEmbedding()
