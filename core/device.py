"""What a trial runs on: the CUDA GPUs of this machine, as NVML knows them, or its CPU."""

import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import attrs
import psutil
import pynvml

# A machine without a GPU has no such library, or no such driver.
NO_GPU = (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded)
# The GPU is well, and this is nothing that it tells, or tells us.
UNTOLD = (
    pynvml.NVMLError_NotSupported,
    pynvml.NVMLError_VgpuEccNotSupported,
    pynvml.NVMLError_FunctionNotFound,
    pynvml.NVMLError_NoPermission,
)
MIB = 2**20
AFFINITY_WORDS = 64  # of 64 cores each


class DeviceFailed(Exception):
    """A GPU, or its driver, no longer answers.

    Args:
        device: Which.
        said: What NVML says instead.
    """

    def __init__(self, device: str, said: str) -> None:
        super().__init__(f"{device}: NVML says {said}")
        self.device = device
        self.said = said


@attrs.frozen(kw_only=True)
class Device:
    """What one trial at a time runs on.

    Attributes:
        id: Names the device's lock: ``cpu``, or a GPU's UUID.
        kind: ``cpu`` or ``cuda``.
        name: The model, as ``NVIDIA H200``; runs are compared within one model only.
        threads: CPU threads that a trial may use.
        cpus: The cores that its trials are bound to; empty: they are not bound.
        driver: The version of a GPU's driver.
        memory_mib: A GPU's memory.
        capability: A GPU's compute capability, as (9, 0).
        minor: A GPU's number in ``/dev/nvidia<minor>``.
    """

    id: str
    kind: str
    name: str
    threads: int
    cpus: tuple[int, ...] = ()
    driver: str | None = None
    memory_mib: float | None = None
    capability: tuple[int, int] | None = None
    minor: int | None = None

    @property
    def label(self) -> str:
        """The device as people name it; CUDA_VISIBLE_DEVICES takes the first word."""
        return f"{self.id[: len('GPU-01234567')]} ({self.name})"


@attrs.frozen(kw_only=True)
class Machine:
    """What NVML says of this machine.

    Attributes:
        gpus: The CUDA GPUs that CUDA_VISIBLE_DEVICES lets us see, in its order.
        failed: What should be one of them, and does not answer.
        hidden: How many others there are.
        driver: The driver's version.
        cuda: The newest CUDA that the driver runs, as (13, 0).
    """

    gpus: tuple[Device, ...] = ()
    failed: tuple[DeviceFailed, ...] = ()
    hidden: int = 0
    driver: str | None = None
    cuda: tuple[int, int] | None = None


@attrs.frozen(kw_only=True)
class Process:
    """A process that uses a GPU.

    Attributes:
        pid: As this process would name it.
        used_mib: GPU memory that it has, where the driver says so.
        name: Of its program; empty if it cannot be seen from here.
    """

    pid: int
    used_mib: float | None
    name: str


@attrs.frozen(kw_only=True)
class Reading:
    """How a GPU does at one moment; None where this model does not tell."""

    sm_mhz: int | None
    power_watts: float | None
    temperature_c: int | None


class Gpu:
    """One GPU to ask, for as long as the context is open; from any thread.

    Every method raises `DeviceFailed` when the GPU does not answer.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._opened = contextlib.ExitStack()
        self._handle: Any = None

    def __enter__(self) -> Self:
        with _answering(self.device.label), contextlib.ExitStack() as stack:
            pynvml.nvmlInit()
            stack.callback(pynvml.nvmlShutdown)
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(self.device.id)
            self._opened = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with _answering(self.device.label):
            self._opened.close()

    def used_mib(self) -> float:
        """Return the memory in use, without what the driver keeps for itself."""
        with _answering(self.device.label):
            return _memory(self._handle).used / MIB

    def processes(self) -> tuple[Process, ...]:
        """Return the processes that use the GPU, each once."""
        ask = (
            pynvml.nvmlDeviceGetComputeRunningProcesses_v3,
            pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
        )
        with _answering(self.device.label):
            found = [p for each in ask for p in _told(each, self._handle) or ()]
        used = {p.pid: p.usedGpuMemory for p in reversed(found)}
        return tuple(
            Process(
                pid=pid,
                used_mib=None if used[pid] is None else used[pid] / MIB,
                name=_process_name(pid),
            )
            for pid in sorted(used)
        )

    def reading(self) -> Reading:
        """Return clock, power and temperature as they are now."""
        with _answering(self.device.label):
            milliwatts = _told(pynvml.nvmlDeviceGetPowerUsage, self._handle)
            return Reading(
                sm_mhz=_told(
                    pynvml.nvmlDeviceGetClockInfo, self._handle, pynvml.NVML_CLOCK_SM
                ),
                power_watts=None if milliwatts is None else milliwatts / 1000,
                temperature_c=_told(
                    pynvml.nvmlDeviceGetTemperature,
                    self._handle,
                    pynvml.NVML_TEMPERATURE_GPU,
                ),
            )

    def uncorrected_errors(self) -> int | None:
        """Return how many memory errors ECC could not correct since the driver loaded.

        None: this GPU does not count them.
        """
        with _answering(self.device.label):
            return _told(
                pynvml.nvmlDeviceGetTotalEccErrors,
                self._handle,
                pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                pynvml.NVML_VOLATILE_ECC,
            )


def gpus() -> tuple[Device, ...]:
    """Return the CUDA GPUs that we may use and that answer, which may be none."""
    return look().gpus


def look() -> Machine:
    """Return what NVML says of this machine.

    The cores are shared out among all of its GPUs, whether we may use them or not: so
    two sessions on two GPUs have two sets of cores, and a GPU always has the same.
    """
    try:
        with _answering("the driver"), contextlib.ExitStack() as stack:
            try:
                pynvml.nvmlInit()
            except NO_GPU:
                return Machine()
            stack.callback(pynvml.nvmlShutdown)
            driver = pynvml.nvmlSystemGetDriverVersion()
            cuda = _told(pynvml.nvmlSystemGetCudaDriverVersion_v2)
            asked = [_ask(i, driver) for i in range(pynvml.nvmlDeviceGetCount())]
    except DeviceFailed as failed:
        return Machine(failed=(failed,))
    answered = [found for found in asked if not isinstance(found, DeviceFailed)]
    shares = iter(
        share_cores(
            [near for _, near in answered], frozenset(os.sched_getaffinity(0)), _core
        )
    )
    found = [
        each
        if isinstance(each, DeviceFailed)
        else attrs.evolve(each[0], cpus=(cpus := next(shares)), threads=len(cpus))
        for each in asked
    ]
    ours = [
        found[index]
        for index in visible(
            os.environ.get("CUDA_VISIBLE_DEVICES"),
            [each.id if isinstance(each, Device) else "" for each in found],
        )
    ]
    return Machine(
        gpus=tuple(each for each in ours if isinstance(each, Device)),
        failed=tuple(each for each in ours if isinstance(each, DeviceFailed)),
        hidden=len(found) - len(ours),
        driver=driver,
        cuda=None if cuda is None else (cuda // 1000, cuda % 1000 // 10),
    )


def visible(setting: str | None, uuids: Sequence[str]) -> tuple[int, ...]:
    """Return which GPUs CUDA_VISIBLE_DEVICES names, as CUDA reads it.

    The list ends at the first entry that names none, such as -1; one that names a GPU
    twice names none at all. An index counts in NVML's order (CUDA_DEVICE_ORDER
    PCI_BUS_ID), whichever CUDA would count in.

    Args:
        setting: The variable; None if it is not set.
        uuids: Of the machine's GPUs.
    """
    if setting is None:
        return tuple(range(len(uuids)))
    chosen: list[int] = []
    for entry in setting.split(","):
        index = _index(entry.strip(), uuids)
        if index is None:
            break
        if index in chosen:
            return ()
        chosen.append(index)
    return tuple(chosen)


def _index(entry: str, uuids: Sequence[str]) -> int | None:
    if entry.isascii() and entry.isdigit():
        return int(entry) if int(entry) < len(uuids) else None
    named = [
        index
        for index, uuid in enumerate(uuids)
        if entry.startswith("GPU-") and uuid.startswith(entry)
    ]
    return named[0] if len(named) == 1 else None


def share_cores(
    near: Sequence[frozenset[int]],
    ours: frozenset[int],
    place: Callable[[int], object] = int,
) -> tuple[tuple[int, ...], ...]:
    """Return the cores of each GPU: at least one, and disjoint if there are enough.

    Each gets cores near to it, unless cores would then belong to two GPUs.

    Args:
        near: The cores near to each GPU; none if that is not known.
        ours: The cores that this process may use.
        place: What to order the cores by, so that neighbours come to one GPU.
    """
    near = [cores & ours or ours for cores in near]
    sharing = Counter(near)
    apart = sum(map(len, sharing)) == len(frozenset().union(*sharing))
    if not apart or any(len(cores) < many for cores, many in sharing.items()):
        near = [ours] * len(near)
        sharing = Counter(near)
    parts = {
        cores: iter(_split(sorted(cores, key=place), many))
        for cores, many in sharing.items()
    }
    return tuple(tuple(sorted(next(parts[cores]))) for cores in near)


def _split(cores: Sequence[int], parts: int) -> list[Sequence[int]]:
    if len(cores) < parts:
        return [(cores[part % len(cores)],) for part in range(parts)]
    ends = [len(cores) * part // parts for part in range(parts + 1)]
    return [cores[start:end] for start, end in itertools.pairwise(ends)]


def _core(cpu: int) -> tuple[int, int]:
    """Return what sorts the two threads of one physical core beside each other."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list")
    try:
        first = path.read_text().replace("-", ",").split(",")[0]
    except OSError:  # not everywhere is this told
        return cpu, cpu
    return int(first), cpu


def cpu() -> Device:
    """Return this machine's CPU as one device.

    One thread: the sizes are small, and a second thread waits for the first whenever
    anything else runs, which would be most of what a time-budgeted number says.
    """
    models = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    model = models[0] if models else os.uname().machine
    return Device(id="cpu", kind="cpu", name=f"{model}, 1 thread", threads=1)


def _ask(index: int, driver: str) -> tuple[Device, frozenset[int]] | DeviceFailed:
    """Return a GPU, without its cores, and the cores near to it."""
    try:
        with _answering(f"GPU {index}"):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = _told(_memory, handle)
            device = Device(
                id=pynvml.nvmlDeviceGetUUID(handle),
                kind="cuda",
                name=pynvml.nvmlDeviceGetName(handle),
                threads=1,
                driver=driver,
                memory_mib=None if memory is None else memory.total / MIB,
                capability=_told(pynvml.nvmlDeviceGetCudaComputeCapability, handle),
                minor=_told(pynvml.nvmlDeviceGetMinorNumber, handle),
            )
    except DeviceFailed as failed:
        return failed
    return device, _near(handle)


def _near(handle: Any) -> frozenset[int]:
    """Return the cores near to a GPU; none if NVML does not know."""
    try:
        words = pynvml.nvmlDeviceGetCpuAffinity(handle, AFFINITY_WORDS)
    except pynvml.NVMLError:  # a virtual machine often has no map of its cores
        return frozenset()
    return frozenset(
        64 * index + bit
        for index, word in enumerate(words)
        for bit in range(64)
        if word >> bit & 1
    )


def _memory(handle: Any) -> Any:
    # The first version of this question counts the driver's own memory as used.
    return pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)


def _told(ask: Callable[..., Any], *args: Any) -> Any:
    """Return the answer, or None if this is nothing that the GPU tells."""
    try:
        return ask(*args)
    except UNTOLD:
        return None


@contextlib.contextmanager
def _answering(device: str) -> Iterator[None]:
    try:
        yield
    except pynvml.NVMLError as error:
        raise DeviceFailed(device, str(error).rstrip(".")) from error


def _process_name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return ""
