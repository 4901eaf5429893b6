"""The clock that a trial's budget is measured on, read by the parent."""

import contextlib
import ctypes
import os
import time
from typing import Literal

import attrs

Kind = Literal["wall", "cpu"]


@attrs.define
class Clock:
    """Wall-clock seconds, or the CPU seconds that one process has used.

    A GPU is a trial's own, so its budget is wall-clock time.  A CPU is shared with
    whatever else runs, and a number that says how busy a laptop was says nothing about
    the edit: there the budget is CPU time, which the kernel counts for each process and
    lets the parent read (clock_getcpuclockid(3)).

    Attributes:
        id: For `time.clock_gettime`.
    """

    id: int
    _latest: float = 0.0

    @classmethod
    def of(cls, kind: Kind, pid: int) -> "Clock":
        """Return the clock of the process *pid*.

        Raises:
            OSError: It has none, since it has ended.
        """
        if kind == "wall":
            return cls(time.CLOCK_MONOTONIC)
        found = ctypes.c_int()
        error = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(found))
        if error:
            raise OSError(error, f"{os.strerror(error)}: the CPU clock of {pid}")
        return cls(found.value)

    def now(self) -> float:
        """Return the seconds that it shows; a process that has ended uses no more."""
        with contextlib.suppress(OSError):
            self._latest = time.clock_gettime(self.id)
        return self._latest
