"""What a trial runs on: the CUDA GPUs of this machine, or its CPU."""

import os
from pathlib import Path

import attrs
import pynvml


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
    """

    id: str
    kind: str
    name: str
    threads: int
    cpus: tuple[int, ...] = ()
    driver: str | None = None
    memory_mib: float | None = None
    capability: tuple[int, int] | None = None


def gpus() -> tuple[Device, ...]:
    """Return the CUDA GPUs of this machine, which may be none."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(index)
            for index in range(pynvml.nvmlDeviceGetCount())
        ]
        share = max(1, len(os.sched_getaffinity(0)) // max(1, len(handles)))
        return tuple(
            Device(
                id=pynvml.nvmlDeviceGetUUID(handle),
                kind="cuda",
                name=pynvml.nvmlDeviceGetName(handle),
                threads=share,
            )
            for handle in handles
        )
    finally:
        pynvml.nvmlShutdown()


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
