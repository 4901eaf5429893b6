"""Let each query see one token more than those before it, by a mask that is too wide.

caught by: gates, judge
says:
  gates: may only see
  judge: the model looks ahead
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    T = q.size(1)
    seen = torch.ones(T, T, dtype=torch.bool, device=q.device)
    mask = seen.tril(1).triu(-window)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
