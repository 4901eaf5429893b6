"""Ask the zygote for a child, talk to it, and end it."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import attrs

from core.channel import Reader, write
from core.sandbox import NotConfined, Policy

END_SECONDS = 30.0  # for the warden to end the child; a GPU in trouble can take long
IMPORT_SECONDS = 300.0  # for the zygote; from a cold disk torch alone can take a minute

KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


class Unkillable(Exception):
    """A child could not be ended."""


class Unread(Exception):
    """A child does not read its commands."""


class NotStarted(OSError):
    """The zygote did not come up."""


def python_environment(library: Path) -> dict[str, str]:
    """Return what any child may see of our environment: no keys, no home.

    Args:
        library: Where ``core`` is imported from.
    """
    path = [str(library), os.environ.get("PYTHONPATH", "")]
    return {
        **{k: os.environ[k] for k in KEPT_ENVIRONMENT if k in os.environ},
        "PYTHONPATH": os.pathsep.join(part for part in path if part),
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def sandbox_of(library: Path) -> tuple[str, int]:
    """Return how a process would be confined here, and how many attempts proved it.

    Raises:
        NotConfined: It cannot be.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", "core.sandbox"],
        env=python_environment(library),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        said = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise NotConfined(
            f"the attempt ended with {done.returncode}: {last[0]}"
        ) from None
    if "error" in said:
        raise NotConfined(said["error"])
    return said["level"], said["tried"]


@attrs.define(eq=False)
class Zygote:
    """The process that all children are forked from; it starts at once, and imports.

    Attributes:
        library: Where ``core`` is imported from.
        modules: What it imports.
    """

    library: Path
    modules: tuple[str, ...]
    _process: subprocess.Popen[bytes] = attrs.field(init=False)
    _socket: socket.socket = attrs.field(init=False)
    _log: IO[bytes] = attrs.field(init=False)
    _is_ready: bool = False
    _mutex: threading.Lock = attrs.field(factory=threading.Lock)

    def __attrs_post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._log = os.fdopen(os.memfd_create("zygote.log"), "w+b")
        self._is_ready = False
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-X", "faulthandler"),
                    *("-m", "core.process.zygote", str(theirs.fileno())),
                    *self.modules,
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env={
                    **python_environment(self.library),
                    # A pool of threads would not survive a fork.
                    **{"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                },
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    def fork(self, request: dict[str, Any], fds: Sequence[int]) -> None:
        """Let it fork a warden for *request*; another zygote takes over from a dead one.

        Raises:
            NotStarted: There is none.
        """
        message = json.dumps(request).encode()
        with self._mutex:
            if self._process.poll() is not None:
                self.close()
                self._start()
            self._await_ready()
            try:
                socket.send_fds(self._socket, [message], fds)
            except BrokenPipeError as error:
                raise NotStarted(
                    "the process that forks children was killed"
                ) from error

    def _await_ready(self) -> None:
        if self._is_ready:
            return
        self._socket.settimeout(IMPORT_SECONDS)
        try:
            self._is_ready = bool(self._socket.recv(16))
        except TimeoutError as error:
            raise NotStarted(f"nothing was imported in {IMPORT_SECONDS:g} s") from error
        finally:
            self._socket.settimeout(None)
        if not self._is_ready:
            self._log.seek(0)
            said = self._log.read()[-2000:].decode(errors="replace").strip()
            raise NotStarted(f"the process that forks children ended: {said}")

    def close(self) -> None:
        """End it; children that it forked have wardens of their own."""
        self._socket.close()
        self._process.kill()
        self._process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def signal_name(number: int) -> str:
    """Return the name of a signal; those of real time have numbers alone."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@attrs.frozen(kw_only=True)
class Exit:
    """How a child ended, as its warden saw it.

    Attributes:
        returncode: As subprocess has it, negative for a signal; None if the warden
            itself was killed.
        left_behind: Processes that the child had started and that had to be ended.
        peak_mib: Largest resident memory of any process below the warden.
        helper_seconds: CPU time of all of them but the child itself.
    """

    returncode: int | None
    left_behind: int = 0
    peak_mib: float | None = None
    helper_seconds: float = 0.0


@attrs.define(eq=False)
class Child:
    """A process that runs one of our functions, in its own session, behind a warden.

    Attributes:
        name: For messages.
        events: What the child says.
        report: What the warden says once the child has ended.
        is_confined: It has a policy, and says so before all else.
        closed: The child has ended, and so have its pipes.
    """

    name: str
    events: Reader
    report: Reader
    is_confined: bool
    _control: int
    _commands: int
    _pid: int | None = None
    _exit: Exit | None = None
    closed: bool = False

    @classmethod
    def start(
        cls,
        main: str,
        settings: Mapping[str, Any],
        *,
        zygote: Zygote,
        name: str,
        folder: Path,
        environment: Mapping[str, str],
        log: Path,
        policy: Policy | None,
        cpus: Sequence[int] = (),
        inherited: Sequence[int] = (),
    ) -> Self:
        """Start a child that calls *main* in *folder*.

        Args:
            main: ``module:function``; called with the settings, the descriptor of its
                events, a reader of its commands, and what it inherited.
            settings: Plain data.
            zygote: Whose child it is.
            name: For messages.
            folder: Its working directory.
            environment: Its whole environment.
            log: Where what it prints is appended.
            policy: What it may reach; None for a process of our own code alone.
            cpus: Cores that it is bound to, if there are any.
            inherited: Descriptors that it gets.

        Raises:
            OSError: There is no zygote, or the log cannot be opened.
        """
        with (
            contextlib.ExitStack() as ours,
            contextlib.ExitStack() as theirs,
            log.open("ab") as output,
        ):
            control_warden, control = _pipe(theirs, ours)
            report, report_warden = _pipe(ours, theirs)
            events, events_child = _pipe(ours, theirs)
            commands_child, commands = _pipe(theirs, ours)
            os.set_blocking(commands, False)  # who does not read must not stop us
            zygote.fork(
                {
                    "main": main,
                    "name": name,
                    "settings": dict(settings),
                    "folder": str(folder),
                    "environment": dict(environment),
                    "policy": None if policy is None else attrs.asdict(policy),
                    "cpus": list(cpus),
                },
                [
                    *(control_warden, report_warden, output.fileno()),
                    *(events_child, commands_child, *inherited),
                ],
            )
            ours.pop_all()  # they are the Child's now
        return cls(
            name, Reader(events), Reader(report), policy is not None, control, commands
        )

    def send(self, message: dict[str, Any]) -> None:
        """Tell the child something; a child that has gone is noticed by its exit.

        Raises:
            Unread: It does not read, and nothing more fits.
        """
        try:
            with contextlib.suppress(BrokenPipeError):
                write(self._commands, message)
        except BlockingIOError as full:
            raise Unread(f"the {self.name} does not read what it is told") from full

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

    def exit(self, seconds: float = END_SECONDS) -> Exit:
        """Return how the child ended; waits for the warden's report.

        Raises:
            Unkillable: The warden could not end the child in time.
        """
        if not self._wait(seconds):
            raise Unkillable(f"the {self.name} cannot be ended")
        self._exit = self._exit or Exit(returncode=None)
        return self._exit

    def _wait(self, seconds: float) -> bool:
        """Return whether the warden, and so the child, has ended within *seconds*."""
        give_up = time.monotonic() + seconds
        while not self.report.ended:
            left = max(0.0, give_up - time.monotonic())
            if not select.select([self.report.fd], [], [], left)[0]:
                return False
            self._hear()
        return True

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
                    helper_seconds=message["helper_seconds"],
                )

    def leave(self, seconds: float) -> Exit:
        """Let the child end by itself for so long, then end it."""
        self._wait(seconds)
        return self.end()

    def dismiss(self, *, dump: bool = False) -> None:
        """Let the warden end the child and everything below it; `end` waits for that.

        Args:
            dump: First let the child write a traceback of all threads to its log.
        """
        if self._control >= 0:
            if dump:
                with contextlib.suppress(BrokenPipeError):
                    os.write(self._control, b"dump\n")
            os.close(self._control)
            self._control = -1

    def end(self, *, dump: bool = False) -> Exit:
        """End the child and everything below it, and close the pipes.

        Args:
            dump: As for `dismiss`.

        Raises:
            Unkillable: The warden could not end the child in time.
        """
        if self.closed:
            return self.exit()
        self.dismiss(dump=dump)
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
