"""One session a project, and one a device: two on one would falsify both."""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock

from core.device import Device
from core.errors import SessionError

HINT = "wait until it has ended, or stop it."


def locked(project: Path, devices: Sequence[Device]) -> contextlib.ExitStack:
    """Take the locks of the project and of every device, until the stack is closed.

    A lock goes with its process, however that ends.

    Raises:
        SessionError: Another session has one of them, or runs/ cannot be written.
    """
    with contextlib.ExitStack() as stack:
        _lock_project(stack, project)
        for device in devices:
            _lock_device(stack, device)
        return stack.pop_all()


def project_lock(project: Path) -> filelock.FileLock:
    """Return the lock that a session of *project* holds; its folder may be missing."""
    return filelock.FileLock(project / "runs" / ".lock")


@contextlib.contextmanager
def agent_lock(project: Path) -> Iterator[None]:
    """Let one agent write codemods in a project: two would pay for the same.

    Raises:
        SessionError: Another one does, or runs/ cannot be written.
    """
    path = project / "runs" / ".agent.lock"
    lock = filelock.FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise SessionError(
            f"another agent writes codemods in {project}.", hint=HINT
        ) from error
    except OSError as error:
        raise SessionError(
            f"{path.parent} cannot be written: {error.strerror}.",
            hint="make it a folder that you can write to: each call is kept there.",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _lock_project(stack: contextlib.ExitStack, project: Path) -> None:
    lock = project_lock(project)
    path = Path(lock.lock_file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise SessionError(
            f"the project {project} is used by another session.", hint=HINT
        ) from error
    except OSError as error:
        raise SessionError(
            f"{path.parent} cannot be written: {error.strerror}.",
            hint="make it a folder that you can write to: each trial is kept there.",
        ) from error
    stack.callback(lock.release)


def _lock_device(stack: contextlib.ExitStack, device: Device) -> None:
    mine = stack.enter_context(socket.socket(socket.AF_UNIX))
    try:
        mine.bind(_name(device))
    except OSError as error:
        raise SessionError(
            f"the device {device.id} is used by {holder(device) or 'another session'}.",
            hint=HINT,
        ) from error
    mine.listen()


def _name(device: Device) -> str:
    """Return a name that the whole machine sees, whoever asks, and that needs no file.

    Such a name (unix(7), abstract sockets) is free again when its process ends.
    """
    return f"\0deltaspec/{device.id}"


def holder(device: Device) -> str | None:
    """Return which session has locked *device*, in words, or None if none has."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)
        try:
            asking.connect(_name(device))
        except BlockingIOError:  # so many have asked that it takes no more questions
            return "another session"
        except OSError:
            return None
        of_peer = asking.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
        )
        pid, _, _ = struct.unpack("3i", of_peer)
        return "another session" + ("" if pid == os.getpid() else f" (process {pid})")
