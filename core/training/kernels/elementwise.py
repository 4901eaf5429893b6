"""The hyperbolic tangent in one instruction of the GPU.

The plain one takes about 25, which is most of the time that softcap and cross-entropy of
a large vocabulary take.
"""

import torch
from torch import Tensor


def tanh(x: Tensor) -> Tensor:
    """Return ``torch.tanh(x)``, on a GPU to within 2 ** -11 of its size.

    That is a quarter of what rounding the result to bfloat16 costs.  It is so where
    torch.compile makes a kernel of it; without, it is torch's own.
    https://docs.nvidia.com/cuda/parallel-thread-execution/ (tanh.approx.f32)

    Args:
        x: Of any shape.

    Returns:
        The shape and dtype of x.
    """
    return _tanh(x) if x.is_cuda else torch.tanh(x)


@torch.library.custom_op("deltaspec::tanh", mutates_args=())
def _tanh(x: Tensor) -> Tensor:
    return torch.tanh(x)


@_tanh.register_fake
def _(x):
    return torch.empty_like(x)


def _keep(ctx, inputs, output):
    # Not the output: it would go through memory, and the input is mostly there.
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad):
    (x,) = ctx.saved_tensors
    y = _tanh(x)
    return grad * (1 - y * y)


_tanh.register_autograd(_differentiate, setup_context=_keep)
