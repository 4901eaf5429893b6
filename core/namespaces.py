"""Give this process a file system of its own, which holds what it may reach and no more.

For kernels whose Landlock is missing or too old.  Bubblewrap's way
(https://github.com/containers/bubblewrap), in the process itself, so that it keeps its
id, its memory and its clock: a user namespace, a mount namespace, and an empty root into
which places are bound.  Without a namespace of process ids: CUDA could not share memory
across it.
"""

import ctypes
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import attrs

READ, OWN, DEVICE, NAME = "read", "own", "device", "name"

NEW_USER, NEW_MOUNTS = 0x1000_0000, 0x0002_0000
RECURSIVE, PRIVATE, BIND, DETACH = 0x4000, 0x4_0000, 0x1000, 2
READ_ONLY, NO_SETUID, NO_DEVICES = 1, 2, 4  # of mount_setattr
PIVOT_ROOT, MOUNT_SETATTR = 155, 442  # of x86_64
OF_ALL_BELOW = 0x8000
# A folder that everybody has, to put the first file system of ours on.
ANYWHERE = "/proc"

_libc = ctypes.CDLL(None, use_errno=True)


@attrs.frozen(order=True)
class Place:
    """A path that stays within reach.

    Attributes:
        path: Absolute.
        kind: READ, OWN, DEVICE, or NAME for a folder that is there and empty.
    """

    path: str
    kind: str


def enter(places: Iterable[Place]) -> None:
    """Leave everything behind but *places*, for ever.

    Only a process with one thread can.

    Raises:
        OSError: The kernel refuses; its text names the step.
    """
    real = [(place, os.path.realpath(place.path)) for place in places]
    real.sort(key=lambda pair: pair[1].split("/"))  # what contains, first
    folder, user, group = os.getcwd(), os.getuid(), os.getgid()
    _done("unshare", _libc.unshare(NEW_USER | NEW_MOUNTS))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _mount(None, "/", RECURSIVE | PRIVATE)
    _mount("tmpfs", ANYWHERE, 0)
    for name in ("old", "new"):
        os.mkdir(f"{ANYWHERE}/{name}")
    _done("pivot_root", _libc.syscall(PIVOT_ROOT, _b(ANYWHERE), _b(f"{ANYWHERE}/old")))
    _mount("tmpfs", "/new", 0)
    bound: dict[str, str] = {}
    for place, path in real:
        around = [p for p in bound if path == p or path.startswith(f"{p}/")]
        if place.kind == READ and around and bound[max(around, key=len)] == READ:
            continue  # it is there already
        _bring(path, place.kind)
        if place.kind != NAME:
            bound[path] = place.kind
    os.chdir("/new")
    _done("pivot_root", _libc.syscall(PIVOT_ROOT, b".", b"."))
    _done("umount2", _libc.umount2(b".", DETACH))
    os.chdir("/")
    for place, path in real:
        if not os.path.lexists(place.path):  # a link led to it
            os.makedirs(os.path.dirname(place.path), exist_ok=True)
            os.symlink(path, place.path)
    _set("/", READ_ONLY | NO_SETUID | NO_DEVICES, 0)
    with suppress(FileNotFoundError):
        os.chdir(folder)


def _bring(path: str, kind: str) -> None:
    """Bind what is at *path* of the old root to the same path of the new one."""
    old, new = f"/old{path}", f"/new{path}"
    if kind == NAME or os.path.isdir(old):
        os.makedirs(new, exist_ok=True)
    elif not os.path.exists(new):
        os.makedirs(os.path.dirname(new), exist_ok=True)
        open(new, "x").close()
    if kind == NAME:
        return
    _mount(old, new, BIND | RECURSIVE)
    flags = {READ: READ_ONLY | NO_DEVICES, OWN: NO_DEVICES, DEVICE: 0}
    _set(new, NO_SETUID | flags[kind], OF_ALL_BELOW)


def _mount(source: str | None, target: str, flags: int) -> None:
    kind = b"tmpfs" if source == "tmpfs" else None
    options = b"mode=0755,size=1m" if kind else None
    said = None if source is None else _b(source)
    _done(f"mount {target}", _libc.mount(said, _b(target), kind, flags, options))


def _set(target: str, attributes: int, flags: int) -> None:
    """Change what a mount allows; of the ones below it too, with OF_ALL_BELOW."""
    wanted = struct.pack("4Q", attributes, 0, 0, 0)
    at_folder = -100  # AT_FDCWD: the path is absolute
    said = _libc.syscall(
        MOUNT_SETATTR, at_folder, _b(target), flags, wanted, len(wanted)
    )
    _done(f"mount_setattr {target}", said)


def _b(path: str) -> bytes:
    return os.fsencode(path)


def _done(step: str, said: int) -> None:
    if said < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{step}: {os.strerror(number)}")
