"""Matrix products that end in a squared ReLU, or in its derivative, in Triton.

Each program computes tile after tile, so that the end of one tile overlaps with the
beginning of the next: https://triton-lang.org/main/getting-started/tutorials/09-persistent-matmul.html
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

# Chosen on an H200 for 262,144 x 512 by 512 x 2,048, and fixed: what is tuned at each
# start may differ from run to run.
BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_INNER = 128, 256, 64
STAGES, WARPS = 3, 8


def activated(x: Tensor, weight: Tensor) -> Tensor:
    """Return the squared ReLU (M, N) of x (M, K) times weight (N, K), transposed."""
    out = x.new_empty((len(x), len(weight)))
    _launch(x, weight, (BLOCK_COLUMNS, BLOCK_INNER), None, out)
    return out


def through_activation(grad: Tensor, weight: Tensor, a: Tensor) -> Tensor:
    """Return the gradient (M, N) before a squared ReLU.

    Args:
        grad: That of the product behind it (M, K).
        weight: Of that product (K, N).
        a: What the squared ReLU returned (M, N), whose root is half its derivative.
    """
    out = torch.empty_like(a)
    _launch(grad, weight, (BLOCK_INNER, BLOCK_COLUMNS), a, out)
    return out


def _launch(
    x: Tensor,
    weight: Tensor,
    weight_block: tuple[int, int],
    a: Tensor | None,
    out: Tensor,
) -> None:
    written = [BLOCK_ROWS, BLOCK_COLUMNS // 2]
    programs = torch.cuda.get_device_properties(x.device).multi_processor_count
    out_tiles = TensorDescriptor.from_tensor(out, written)
    _product[(programs,)](
        TensorDescriptor.from_tensor(x, [BLOCK_ROWS, BLOCK_INNER]),
        TensorDescriptor.from_tensor(weight, list(weight_block)),
        out_tiles if a is None else TensorDescriptor.from_tensor(a, written),
        out_tiles,
        *out.shape,
        x.size(1),
        ROWS=BLOCK_ROWS,
        COLUMNS=BLOCK_COLUMNS,
        INNER=BLOCK_INNER,
        PROGRAMS=programs,
        IS_FORWARD=a is None,
        num_stages=STAGES,
        num_warps=WARPS,
    )


@triton.jit
def _product(
    x_tiles,
    weight_tiles,
    a_tiles,
    out_tiles,
    M,
    N,
    K,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    PROGRAMS: tl.constexpr,
    IS_FORWARD: tl.constexpr,
):
    across = tl.cdiv(N, COLUMNS)
    tiles = tl.cdiv(M, ROWS) * across
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=True):
        m = (tile // across) * ROWS
        n = (tile % across) * COLUMNS
        total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for inner in range(tl.cdiv(K, INNER)):
            x = x_tiles.load([m, inner * INNER])
            if IS_FORWARD:
                total = tl.dot(x, weight_tiles.load([n, inner * INNER]).T, total)
            else:
                total = tl.dot(x, weight_tiles.load([inner * INNER, n]), total)
        # In halves, which leaves room in shared memory for the next tile's loads.
        halves = tl.permute(tl.reshape(total, (ROWS, 2, COLUMNS // 2)), (0, 2, 1))
        left, right = tl.split(halves)  # each (ROWS, COLUMNS // 2)
        _write(left, a_tiles, out_tiles, m, n, IS_FORWARD)
        _write(right, a_tiles, out_tiles, m, n + COLUMNS // 2, IS_FORWARD)


@triton.jit
def _write(h, a_tiles, out_tiles, m, n, IS_FORWARD: tl.constexpr):
    if IS_FORWARD:
        h = tl.where(h < 0, 0.0, h)  # not a maximum: that would hide a NaN
        h = h * h
    else:
        h *= 2 * tl.sqrt(a_tiles.load([m, n]).to(tl.float32))
    out_tiles.store([m, n], h.to(out_tiles.dtype))
