"""Measure and remove what a trial wrote, however deep it nested its folders."""

import contextlib
import errno
import os
import shutil
import subprocess


def remove(folder: str | os.PathLike[str]) -> None:
    """Remove *folder* with all below it; what cannot be removed stays."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:  # a trial may nest thousands; rm has no stack to fill
        subprocess.run(["rm", "-rf", "--", os.fspath(folder)], check=False)


def size_mib(folder: str | os.PathLike[str]) -> float:
    """Return the MiB of all files below *folder*; what is gone by then counts for nothing.

    Raises:
        OSError: The folders are nested deeper than a path is long (ENAMETOOLONG).
    """
    size, waiting = 0, [os.fspath(folder)]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            else:
                with contextlib.suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    # Space can be had without a length, and a length without space.
                    size += max(found.st_size, 512 * found.st_blocks)
    return size / 2**20
