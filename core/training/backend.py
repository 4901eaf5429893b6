"""Which kernels attend: part of a context, so known without torch."""

from importlib.metadata import PackageNotFoundError, version

FRONTEND = "nvidia-cudnn-frontend"  # the extra ``fast``
# Other packages bring older ones, without operators for torch.
OLDEST_FRONTEND = (1, 32)


def frontend_version() -> str | None:
    """Return the version of cuDNN's frontend, if one is installed that we can use."""
    try:
        found = version(FRONTEND)
    except PackageNotFoundError:
        return None
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdecimal())
    return found if numbers >= OLDEST_FRONTEND else None


def attention_backend(device_kind: str) -> str:
    """Return what the shipped training module attends with on ``cuda`` or ``cpu``."""
    if device_kind == "cpu":
        return "sdpa"
    found = frontend_version()
    return "sdpa + flex" if found is None else f"cudnn-frontend {found}"
