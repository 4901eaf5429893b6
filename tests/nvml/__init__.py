"""A driver library to ask, where there is no GPU: its state is a file of the test's."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")
LIBRARY = "libnvidia-ml.so.1"  # the name by which pynvml loads it
LOST = 15  # NVML_ERROR_GPU_IS_LOST


@attrs.frozen(kw_only=True)
class FakeGpu:
    """What the stand-in says of one GPU; None: it does not support the question.

    Attributes:
        error: What it says instead of all this, if not 0.
        compute: MiB that each process has, by pid; None: unknown.
        graphics: The same of those that draw.
    """

    uuid: str
    name: str = "NVIDIA H200"
    total_mib: int | None = 143_771
    used_mib: int | None = 3
    reserved_mib: int | None = 615
    capability: str | None = "9.0"
    cores: tuple[int, ...] | None = None
    error: int = 0
    sm_mhz: int | None = 1980
    milliwatts: int | None = 76_543
    celsius: int | None = 31
    uncorrected: int | None = 0
    compute: Mapping[int, int | None] | None = attrs.field(factory=dict)
    graphics: Mapping[int, int | None] | None = attrs.field(factory=dict)


def a_gpu(number: int, **said: object) -> FakeGpu:
    """Return a GPU whose UUID begins with eight times *number*."""
    uuid = f"GPU-{str(number) * 8}-89ab-cdef-0123-456789abcdef"
    return FakeGpu(uuid=uuid, **said)  # type: ignore[arg-type]


@attrs.frozen
class FakeDriver:
    """The stand-in as a test sees it; call it to state what there is from now on."""

    file: Path

    def __call__(
        self,
        *gpus: FakeGpu,
        driver: str = "580.65.06",
        cuda: int = 13_000,
        init_error: int = 0,
    ) -> None:
        """Let the machine have *gpus*, at once for every process that asks."""
        lines = [
            (driver, cuda, init_error),
            *(attrs.astuple(gpu, recurse=False) for gpu in gpus),
        ]
        written = self.file.with_suffix(".new")
        written.write_text(
            "".join("\t".join(map(_told, line)) + "\n" for line in lines)
        )
        written.rename(self.file)


def _told(value: object) -> str:
    match value:
        case None:
            return "-"
        case tuple():
            return ",".join(map(str, value))
        case Mapping():
            return ",".join(f"{pid}:{_told(mib)}" for pid, mib in value.items())
    return str(value)


def compiled(folder: Path) -> Path:
    """Compile the stand-in into *folder*, or skip the test."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler is here to build the stand-in for NVML")
    library = folder / LIBRARY
    flags = ("-shared", "-fPIC", "-Wall", "-Wextra", "-Werror")
    subprocess.run([compiler, *flags, "-o", str(library), str(SOURCE)], check=True)
    return library
