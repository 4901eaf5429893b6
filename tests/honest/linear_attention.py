"""Sum keys and values up over the tokens so far, without a softmax."""

import torch
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    q, k = q.relu() + 0.01, k.relu() + 0.01
    products = torch.einsum("bthd,bshd->bhts", q, k)  # (B, H, T, T)
    seen = products.tril().triu(-window)
    y = torch.einsum("bhts,bshd->bthd", seen, v)
    return y / seen.sum(dim=-1).transpose(1, 2)[..., None]
