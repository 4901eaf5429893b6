"""An MLP whose squared ReLU never goes through memory by itself.

It is computed where a product leaves the tensor cores, in both directions: what is
written is the activation alone, from whose root its derivative follows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST_SHARED_BYTES = 200 * 2**10  # for the tiles of a product; Hopper has 227 KiB


def squared_relu_mlp(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Return ``F.linear(F.relu(F.linear(x, up)).square(), down)``.

    Args:
        x: Shape (..., C).
        up: Matrix (hidden, C).
        down: Matrix (C, hidden).

    Returns:
        Shape (..., C).
    """
    if x.is_cuda and _fits(x.get_device(), x.dtype, *up.shape):
        return _mlp(x, up, down)[0]
    return F.linear(F.relu(F.linear(x, up)).square(), down)


@torch.compiler.assume_constant_result
def _fits(device: int, dtype: torch.dtype, hidden: int, channels: int) -> bool:
    """Say whether the tiles are made for this GPU and these sizes."""
    properties = torch.cuda.get_device_properties(device)
    return (
        dtype is torch.bfloat16
        and properties.major >= 9  # which copy tiles by themselves,
        and hidden % 8 == channels % 8 == 0  # in rows of multiples of 16 bytes
        and properties.shared_memory_per_block_optin >= FEWEST_SHARED_BYTES
    )


@torch.library.custom_op("deltaspec::mlp", mutates_args=(), device_types="cuda")
def _mlp(x: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output (..., C), and the activation (rows, hidden) for the gradient."""
    # Optional: a torch without CUDA comes without Triton.
    from core.training.kernels.gemm import activated

    a = activated(x.flatten(0, -2).contiguous(), up.contiguous())  # (rows, hidden)
    return F.linear(a, down).view(x.shape), a


@_mlp.register_fake
def _(x, up, down):
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty((x.numel() // x.size(-1), up.size(0)))


@torch.library.custom_op(
    "deltaspec::mlp_backward", mutates_args=(), device_types="cuda"
)
def _mlp_backward(
    grad: Tensor, x: Tensor, up: Tensor, down: Tensor, a: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, up and down."""
    from core.training.kernels.gemm import through_activation

    grad, flat = grad.flatten(0, -2).contiguous(), x.flatten(0, -2)  # (rows, C)
    dh = through_activation(grad, down.contiguous(), a)  # (rows, hidden)
    return (dh @ up).view(x.shape), dh.T @ flat, grad.T @ a


@_mlp_backward.register_fake
def _(grad, x, up, down, a):
    dx, dup, ddown = (
        torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in (x, up, down)
    )
    return dx, dup, ddown


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])


def _differentiate(ctx, grad, _):
    return _mlp_backward(grad, *ctx.saved_tensors)


_mlp.register_autograd(_differentiate, setup_context=_keep)
