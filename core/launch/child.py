"""One child process behind a warden, with its pipes."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import attrs

from core.channel import Reader, write

END_SECONDS = 30.0  # for the warden to end the child; a GPU in trouble can take long


class Unkillable(Exception):
    """A child could not be ended."""


@attrs.frozen(kw_only=True)
class Exit:
    """How a child ended, as its warden saw it.

    Attributes:
        returncode: As subprocess has it, negative for a signal; None if the warden
            itself was killed.
        left_behind: Processes that the child had started and that had to be ended.
        peak_mib: Largest resident memory of any process below the warden.
    """

    returncode: int | None
    left_behind: int = 0
    peak_mib: float | None = None


@attrs.define(eq=False)
class Child:
    """A process that runs one of our modules, in its own session, behind a warden.

    Attributes:
        name: ``trainer``, ``server`` or ``judge``.
        events: What the child says.
        report: What the warden says once the child has ended.
        closed: The child has ended, and so have its pipes.
    """

    name: str
    events: Reader
    report: Reader
    _warden: subprocess.Popen[bytes]
    _commands: int
    _pid: int | None = None
    _exit: Exit | None = None
    closed: bool = False

    @classmethod
    def start(
        cls,
        module: str,
        arguments: Sequence[str],
        *,
        name: str,
        folder: Path,
        environment: Mapping[str, str],
        log: Path,
        cpus: Sequence[int] = (),
        inherited: Sequence[int] = (),
    ) -> Self:
        """Start ``python -m module EVENTS_FD COMMANDS_FD arguments`` in *folder*.

        It is bound to the cores *cpus*, if there are any.
        """
        python = [sys.executable, "-P", "-X", "faulthandler", "-m"]
        with (
            contextlib.ExitStack() as ours,
            contextlib.ExitStack() as theirs,
            log.open("ab") as output,
        ):
            events, events_child = _pipe(ours, theirs)
            commands_child, commands = _pipe(theirs, ours)
            report, report_warden = _pipe(ours, theirs)
            passed = (events_child, commands_child, *inherited)
            warden = subprocess.Popen(
                [
                    *python,
                    "core.launch.warden",
                    str(report_warden),
                    ",".join(map(str, passed)),
                    ",".join(map(str, cpus)),
                    *python,
                    module,
                    str(events_child),
                    str(commands_child),
                    *arguments,
                ],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=folder,
                env=dict(environment),
                pass_fds=(*passed, report_warden),
                start_new_session=True,
            )
            ours.pop_all()  # they are the Child's now
        return cls(name, Reader(events), Reader(report), warden, commands)

    def send(self, message: dict[str, Any]) -> None:
        """Tell the child something; a child that has gone is noticed by its exit."""
        with contextlib.suppress(BrokenPipeError):
            write(self._commands, message)

    def pid(self) -> int:
        """Return the process id of the child itself, as its warden tells it.

        Raises:
            OSError: The warden ended before it had started a child.
        """
        while self._pid is None and not self.report.ended:
            self._hear()
        if self._pid is None:
            raise ProcessLookupError(f"the {self.name} was never started")
        return self._pid

    def exit(self) -> Exit:
        """Return how the child ended; waits for the warden's report.

        Raises:
            Unkillable: The warden could not end the child in time.
        """
        if self._exit is None:
            try:
                self._warden.wait(END_SECONDS)
            except subprocess.TimeoutExpired as error:
                raise Unkillable(f"the {self.name} cannot be ended") from error
            while self._exit is None and not self.report.ended:
                self._hear()
            self._exit = self._exit or Exit(returncode=None)
        return self._exit

    def _hear(self) -> None:
        """Take in what the warden reports; it runs our own code alone."""
        for message in self.report.available():
            if "pid" in message:
                self._pid = message["pid"]
            else:
                self._exit = Exit(
                    returncode=message["returncode"],
                    left_behind=message["left_behind"],
                    peak_mib=message["peak_mib"],
                )

    def leave(self, seconds: float) -> Exit:
        """Let the child end by itself for so long, then end it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._warden.wait(seconds)
        return self.end()

    def end(self, *, dump: bool = False) -> Exit:
        """End the child and everything below it, and close the pipes.

        Args:
            dump: First let the child write a traceback of all threads to its log.
        """
        if self.closed:
            return self.exit()
        assert self._warden.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            if dump:
                self._warden.stdin.write(b"dump\n")
                self._warden.stdin.flush()
        with contextlib.suppress(BrokenPipeError):
            self._warden.stdin.close()
        result = self.exit()
        for fd in (self.events.fd, self.report.fd, self._commands):
            os.close(fd)
        self.closed = True
        return result


def _pipe(reads: contextlib.ExitStack, writes: contextlib.ExitStack) -> tuple[int, int]:
    """Make a pipe whose ends are closed with the stack of whoever uses them."""
    reading, writing = os.pipe()
    reads.callback(os.close, reading)
    writes.callback(os.close, writing)
    return reading, writing
