"""Which kernels attend: part of a context, so known without torch."""

from importlib.metadata import PackageNotFoundError, version

FRONTEND = "nvidia-cudnn-frontend"  # the extra ``fast``


def frontend_version() -> str | None:
    """Return the version of cuDNN's frontend that is installed, if one is."""
    try:
        return version(FRONTEND)
    except PackageNotFoundError:
        return None


def attention_backend(device_kind: str) -> str:
    """Return what the shipped training module attends with on ``cuda`` or ``cpu``."""
    if device_kind == "cpu":
        return "sdpa"
    found = frontend_version()
    return "sdpa + flex" if found is None else f"cudnn-frontend {found}"
