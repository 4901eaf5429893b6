"""The hyperbolic tangent in one instruction of the GPU, where torch.compile makes a kernel.

torch's takes about 25, a third of what softcap and cross-entropy of a large vocabulary
took: each logit's is computed twice, since to keep it would take 8 GiB.  This one is
within 2 ** -11 of its size, an eighth of the most that rounding a logit to bfloat16 moves
it: https://docs.nvidia.com/cuda/parallel-thread-execution/ (tanh).
"""

import functools

import torch
from torch._inductor.lowering import (
    ELEMENTWISE_TYPE_PROMOTION_KIND,
    lowerings,
    make_pointwise,
    register_lowering,
)
from torch._inductor.virtualized import ops

TANH = torch.ops.aten.tanh.default


def register_tanh() -> None:
    """Let torch.compile make float32's ``torch.tanh`` of it on GPUs, in this process."""
    by_torch = lowerings[TANH]
    in_one_instruction = make_pointwise(
        functools.partial(
            ops.inline_asm_elementwise,
            asm="tanh.approx.f32 $0, $1;",
            constraints="=f,f",
            dtype=torch.float32,
        )
    )

    def lowered_tanh(x):
        is_fast = x.get_device().type == "cuda" and x.get_dtype() is torch.float32
        return in_one_instruction(x) if is_fast else by_torch(x)

    # As torch promotes what it is given.
    kind = ELEMENTWISE_TYPE_PROMOTION_KIND.INT_TO_FLOAT
    register_lowering(TANH, type_promotion_kind=kind)(lowered_tanh)
