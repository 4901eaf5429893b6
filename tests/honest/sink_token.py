"""Let each block see a short window and the first token of the row."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 32


def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    T = q.size(1)
    seen = torch.ones(T, T, dtype=torch.bool, device=q.device)
    mask = seen.tril().triu(-WINDOW)
    mask[:, 0] = True
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
