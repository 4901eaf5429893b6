"""GPU memory that two processes share, through CUDA IPC: nothing is copied.

The one that reads allocates it and names it to the one that writes, by the 64 bytes of
a handle as hexadecimal digits; so a process that runs edited code describes nothing.
https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__DEVICE.html
"""

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from cuda.bindings import runtime
from torch import Tensor


class SharingFailed(RuntimeError):
    """CUDA refused to share memory between processes."""


def allocate(shape: Sequence[int]) -> tuple[Tensor, str]:
    """Return float32 memory of *shape* on the current GPU, with its handle.

    Raises:
        SharingFailed: CUDA gives no memory, or no handle.
    """
    _make_current()
    pointer = _checked("cudaMalloc", runtime.cudaMalloc(4 * _size(shape)))
    handle = _checked("cudaIpcGetMemHandle", runtime.cudaIpcGetMemHandle(pointer))
    return _tensor(pointer, shape), bytes(handle.reserved).hex()


def opened(handle: str, shape: Sequence[int]) -> Tensor:
    """Return the float32 memory of *shape* that another process calls *handle*.

    Raises:
        SharingFailed: CUDA does not open it.
    """
    _make_current()
    raw = runtime.cudaIpcMemHandle_t()
    raw.reserved = bytes.fromhex(handle)
    flags = runtime.cudaIpcMemLazyEnablePeerAccess
    pointer = _checked("cudaIpcOpenMemHandle", runtime.cudaIpcOpenMemHandle(raw, flags))
    return _tensor(pointer, shape)


def _make_current() -> None:
    torch.cuda.init()
    torch.cuda.synchronize()


def _checked(function: str, answer: tuple[Any, ...]) -> Any:
    error, *values = answer
    if error != runtime.cudaError_t.cudaSuccess:
        raise SharingFailed(f"{function}: {error.name}")
    return values[0]


@attrs.frozen
class _Buffer:
    """https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html."""

    __cuda_array_interface__: dict[str, Any]


def _tensor(pointer: Any, shape: Sequence[int]) -> Tensor:
    interface = {
        "shape": tuple(shape),
        "typestr": "<f4",
        "data": (int(pointer), False),
        "version": 3,
        "strides": None,
    }
    return torch.as_tensor(_Buffer(interface), device="cuda")


def _size(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()
