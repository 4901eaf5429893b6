"""Attend less the farther back, by a slope for each head, in place of rotation.

https://arxiv.org/abs/2108.12409
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x


def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    T, H = q.size(1), q.size(2)
    position = torch.arange(T, device=q.device)
    back = position[:, None] - position  # (T, T) query, key
    slopes = 2.0 ** -(8 / H * torch.arange(1, H + 1, device=q.device))
    bias = -slopes[:, None, None] * back  # (H, T, T)
    bias = bias.masked_fill((back < 0) | (back > window), -torch.inf).to(q.dtype)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)
