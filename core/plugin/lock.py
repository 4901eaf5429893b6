"""One session a project, and one a device: two on one would falsify both."""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import filelock
import platformdirs

from core.errors import SessionError
from core.profile import Device


def locked(project: Path, devices: Sequence[Device]) -> contextlib.ExitStack:
    """Take the locks of the project and of every device, until the stack is closed.

    A lock goes with its process, however that ends.

    Raises:
        SessionError: Another session has one of them.
    """
    devices_folder = platformdirs.user_cache_path("deltaspec") / "locks"
    with contextlib.ExitStack() as stack:
        _lock(stack, project / "runs" / ".lock", f"the project {project}")
        for device in devices:
            _lock(
                stack, devices_folder / f"{device.id}.lock", f"the device {device.id}"
            )
        return stack.pop_all()


def _lock(stack: contextlib.ExitStack, path: Path, what: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    owner = path.with_suffix(".owner.json")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        with contextlib.suppress(OSError, ValueError, KeyError):
            process = json.loads(owner.read_text())["pid"]
            what += f" is used by another session (process {process})"
        raise SessionError(
            f"{what}." if "used by" in what else f"{what} is used by another session.",
            hint="wait until it has ended, or stop it.",
        ) from error
    stack.callback(lock.release)
    owner.write_text(json.dumps({"pid": os.getpid()}))
