"""Files that are whole or not there: locks, digests, writes that reach the disk."""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import filelock
import numpy as np

from core.errors import DataError
from core.training.data.source import Source

Progress = Callable[[str, float], None]

# A file that was written this shortly before it was read may change again without a
# new time stamp, so its digest is not kept.
RACY_NS = 2_000_000_000

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def corpus_digest(source: Source, cache: Path, report: Progress) -> str:
    """Return the digest of what the files hold, in order, and which are pinned.

    A manifest in the cache remembers the digest of each file by path, size and time, so
    that files that did not change are not read again.
    """
    name = short_digest(str(source.root.absolute()), source.name)
    manifest = cache / f"manifest-{name}.json"
    known = _read_manifest(manifest)
    now = time.time_ns()
    total = sum(file.size for file in source.files) or 1
    read = 0
    entries, digests, changed = {}, [], False
    for file in source.files:
        state = [file.size, file.mtime_ns]
        entry = known.get(str(file.path))
        if isinstance(entry, list) and entry[:2] == state and len(entry) == 3:
            digest = entry[2]
        else:
            changed = True
            try:
                digest = file_digest(file.path)
            except OSError as error:
                raise DataError(
                    f"{file.path} cannot be read: {error.strerror}.",
                    hint="make it readable, or take it out of the corpus.",
                ) from error
            report("reading the corpus", (read + file.size) / total)
        read += file.size
        digests.append((digest, file.validation))
        if file.mtime_ns < now - RACY_NS:
            entries[str(file.path)] = [*state, digest]
    if changed:
        draft = manifest.with_suffix(".draft")
        with writing(cache), filelock.FileLock(manifest.with_suffix(".lock")):
            write_text(draft, json.dumps(entries))
            draft.replace(manifest)
    return short_digest(digests)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_digest(*parts: object) -> str:
    """Return 16 hexadecimal digits that stand for *parts*."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@contextmanager
def locked(working: Path, report: Progress) -> Iterator[None]:
    """Hold the lock of one build; the system drops it when its holder dies."""
    lock = filelock.FileLock(working.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        report("waiting for another process that prepares the same", 0.0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def remove_dead_builds(cache: Path) -> None:
    """Remove the folders of builds whose lock nobody holds any more."""
    for folder in cache.glob("building-*/"):
        lock = filelock.FileLock(folder.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            continue
        try:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            lock.release()


@attrs.define
class Written:
    """How far a build came, for the error that says that it ran out of room."""

    bytes: int = 0
    fraction: float = 0.0


@contextmanager
def writing(folder: Path) -> Iterator[Written]:
    """Turn what the system says about writing into an error that a user can act on."""
    written = Written()
    try:
        yield written
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise DataError(
                f"{folder} cannot be written: {error.strerror}.",
                hint="name another folder as the cache.",
            ) from error
        raise DataError(
            f"No room is left for {folder}: {written.bytes:,} bytes were written, at"
            f" {written.fraction:.0%} of the corpus.",
            hint="free space or raise the quota there, or name another folder as the"
            " cache.",
        ) from error


class MapFile:
    """One file of rows while it is written."""

    def __init__(self, file: BinaryIO, written: Written) -> None:
        self._file = file
        self._written = written
        self._digest = hashlib.sha256()

    def write(self, rows: np.ndarray) -> None:
        """Append *rows*, little-endian whatever the machine is."""
        content = rows.astype("<u2", copy=False).data.cast("B")
        self._file.write(content)
        self._digest.update(content)
        self._written.bytes += len(content)

    def finish(self) -> str:
        """Bring the file to the disk and return its SHA-256."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
