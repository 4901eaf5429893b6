"""Causal attention within a window, by the fastest kernel that is installed.

* cuDNN through its frontend, which knows windows: the extra ``fast``
* else cuDNN through scaled_dot_product_attention where all is seen, and FlexAttention
  where it is not
* on a CPU, scaled_dot_product_attention with a mask
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from core.training.backend import frontend_version

HAS_FRONTEND = torch.version.cuda is not None and frontend_version() is not None
if HAS_FRONTEND:  # it brings torch.ops.cudnn
    import cudnn.sdpa.fwd.torch_op  # noqa: F401

UNBOUNDED = -1  # cuDNN's word for a window without a left end
HALVES = torch.bfloat16, torch.float16
WIDEST_HEAD = 128  # channels that cuDNN has a gradient for everywhere; multiples of 8


def windowed_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, scale: float | None = None
) -> Tensor:
    """Mix the values of each token and of the `window` tokens before it.

    Args:
        q: Queries (B, T, H, D).
        k: Keys, shaped as the queries.
        v: Values, shaped as the queries.
        window: Tokens back; at least T - 1 for all of them.
        scale: Factor of the products q k; None for D ** -0.5.

    Returns:
        Shape (B, T, H, D).
    """
    T = q.size(1)
    is_windowed = window < T - 1
    D = q.size(-1)
    fits = q.dtype in HALVES and D <= WIDEST_HEAD and D % 8 == 0
    if HAS_FRONTEND and q.is_cuda and fits:
        scale = D**-0.5 if scale is None else scale
        # It counts the token itself.
        return _attend(q, k, v, window + 1 if is_windowed else UNBOUNDED, scale)[0]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, D)
    if not is_windowed:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    elif q.is_cuda:

        def seen(batch, head, query, key):
            return (key <= query) & (query - key <= window)

        mask = create_block_mask(seen, None, None, T, T, device=q.device)
        y = flex_attention(q, k, v, block_mask=mask, scale=scale)
    else:
        mask = torch.ones(T, T, dtype=torch.bool, device=q.device)  # (T, T) query, key
        mask = mask.tril().triu(-window)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return y.transpose(1, 2)


# cuDNN's own operator has a gradient for packed rows of unequal length only.


@torch.library.custom_op("deltaspec::attend", mutates_args=(), device_types="cuda")
def _attend(
    q: Tensor, k: Tensor, v: Tensor, left_bound: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the mixed values (B, T, H, D) and the log-sum-exp (B, H, T, 1)."""
    y, lse = torch.ops.cudnn.sdpa_fwd(
        *(x.transpose(1, 2) for x in (q, k, v)),  # (B, H, T, D)
        scale,
        is_causal=True,
        window_left=left_bound,
    )
    return y.transpose(1, 2).contiguous(), lse


@_attend.register_fake
def _(q, k, v, left_bound, scale):
    B, T, H, _ = q.shape
    y = torch.empty_like(q, memory_format=torch.contiguous_format)
    return y, q.new_empty((B, H, T, 1), dtype=torch.float32)


@torch.library.custom_op(
    "deltaspec::attend_backward", mutates_args=(), device_types="cuda"
)
def _attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    lse: Tensor,
    left_bound: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, each (B, T, H, D)."""
    grads = torch.ops.cudnn.sdpa_bwd(
        *(x.transpose(1, 2) for x in (grad, q, k, v, y)),  # (B, H, T, D)
        lse,
        scale,
        is_causal=True,
        window_left=left_bound,
    )
    dq, dk, dv = (x.transpose(1, 2).contiguous() for x in grads)
    return dq, dk, dv


@_attend_backward.register_fake
def _(grad, q, k, v, y, lse, left_bound, scale):
    dq, dk, dv = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)
    )
    return dq, dk, dv


def _keep(ctx, inputs, output):
    *qkv, ctx.left_bound, ctx.scale = inputs
    ctx.save_for_backward(*qkv, *output)


def _differentiate(ctx, grad, _):
    grads = _attend_backward(grad, *ctx.saved_tensors, ctx.left_bound, ctx.scale)
    return *grads, None, None


_attend.register_autograd(_differentiate, setup_context=_keep)
