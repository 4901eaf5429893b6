"""Look at a GPU around a trial: who else is on it, how it runs, whether it is left clean."""

import contextlib
import os
import statistics
import time
from collections.abc import Iterator
from typing import Self

import attrs
import psutil

from core.device import Device, DeviceFailed, Gpu, Process, Reading
from core.launch import Conditions

SLACK_MIB = 64.0  # of memory that the driver itself takes and gives back
SETTLE_SECONDS = 20.0  # for the driver to give back what ended processes held
LOOK_SECONDS = 1.0  # between two looks; one takes about a millisecond


class Occupied(Exception):
    """Another process came onto the GPU while a trial was on it."""


@attrs.define(eq=False)
class Gauge:
    """What a session sees of one GPU, trial by trial.

    Attributes:
        device: The GPU.
        shared: Other processes are allowed, and recorded.
        gpu: The driver's view of it.
        mark_mib: Memory in use before the session's first trial.
    """

    device: Device
    shared: bool
    gpu: Gpu
    mark_mib: float
    _ours: set[int] = attrs.field(factory=set)
    _readings: list[Reading] = attrs.field(factory=list)
    _foreign_mib: float = 0.0
    _errors: int | None = None
    _next_look: float = 0.0

    @classmethod
    @contextlib.contextmanager
    def on(cls, device: Device, *, shared: bool) -> Iterator[Self]:
        """Open the gauge of a GPU that no trial of ours is on.

        Raises:
            DeviceFailed: The driver cannot be asked.
        """
        with Gpu(device) as gpu:
            yield cls(device, shared, gpu, gpu.used_mib())

    def begin(self) -> None:
        """Forget the last trial.

        Raises:
            DeviceFailed: The driver cannot be asked.
        """
        self._readings, self._foreign_mib, self._next_look = [], 0.0, 0.0
        self._errors = self.gpu.uncorrected_errors()

    def look(self) -> None:
        """Read the GPU, if the last look is long enough ago.

        Raises:
            DeviceFailed: The driver cannot be asked.
            Occupied: Another process is on it, and that was not allowed.
        """
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        self._readings.append(self.gpu.reading())
        foreign = [p for p in self.gpu.processes() if self._is_foreign(p.pid)]
        if not foreign:
            return
        used_mib = sum(process.used_mib or 0.0 for process in foreign)
        self._foreign_mib = max(self._foreign_mib, used_mib)
        if not self.shared:
            came = " and ".join(map(_named, foreign))
            raise Occupied(
                f"{came} came onto {self.device.label} while the trial trained"
            )

    def _is_foreign(self, pid: int) -> bool:
        if pid in self._ours:
            return False
        # In a container the driver may tell pids that mean nothing in it; a process
        # that stays is then seen by its memory, after the trial.
        if not psutil.pid_exists(pid):
            return False
        below = psutil.Process().children(recursive=True)
        self._ours = {os.getpid(), *(process.pid for process in below)}
        # One of ours may have ended since the driver told of it.
        return pid not in self._ours and psutil.pid_exists(pid)

    def errors(self) -> str:
        """Return what broke in the GPU during the trial; empty if nothing did."""
        try:
            errors = self.gpu.uncorrected_errors()
            self.gpu.reading()
        except DeviceFailed as failed:
            return str(failed)
        more = (errors or 0) - (self._errors or 0)
        if more > 0:
            return (
                f"{self.device.label} had {more} uncorrectable memory "
                f"error{'s' * (more > 1)} during the trial"
            )
        return ""

    def residue(self) -> str:
        """Return what the trial left in the GPU's memory; empty if that is as before.

        All processes of the trial have ended.  With other processes on the GPU nobody
        can tell.
        """
        if self.shared:
            return ""
        give_up = time.monotonic() + SETTLE_SECONDS
        try:
            # The driver has no event for it, and mostly there is nothing to wait for.
            while (used_mib := self.gpu.used_mib()) > self.mark_mib + SLACK_MIB:
                if time.monotonic() > give_up:
                    return (
                        f"{self.device.label} has {used_mib:,.0f} MiB in use after a trial, "
                        f"and had {self.mark_mib:,.0f} MiB before"
                    )
                time.sleep(0.05)
        except DeviceFailed as failed:
            return str(failed)
        return ""

    def conditions(self) -> Conditions:
        """Return what was seen during the trial."""
        return Conditions(
            driver=self.device.driver,
            sm_mhz=_mean([r.sm_mhz for r in self._readings]),
            power_watts=_mean([r.power_watts for r in self._readings]),
            temperature_c=max(
                (
                    r.temperature_c
                    for r in self._readings
                    if r.temperature_c is not None
                ),
                default=None,
            ),
            foreign_mib=self._foreign_mib if self._readings else None,
        )


def _named(process: Process) -> str:
    known = [process.name] if process.name else []
    known += [] if process.used_mib is None else [f"{process.used_mib:,.0f} MiB"]
    said = f" ({', '.join(known)})" if known else ""
    return f"process {process.pid}{said}"


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
