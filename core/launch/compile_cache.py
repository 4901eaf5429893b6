"""What torch.compile keeps: only runs of the unedited base fill it.

A cached kernel is code that the next process executes, so no trial may write where
another reads.  Each process of a trial works on a copy of its own, which is removed after
it; a finished run of the base makes what is copied, and nobody adds to that.

    kept/<process>/    what the base compiled on this device
    own/<process>/     the copy of the trial that has the device

Both are kept by device and by process, because what torch.compile keeps holds the path
that it was made at: a copy at another path is not found, or written to in vain.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import attrs

from core.scratch import remove


@attrs.frozen
class CompileCache:
    """The compiled graphs of one base on one device, with one torch.

    Attributes:
        folder: Where they are, and nothing else.
    """

    folder: Path

    def own(self, process: str) -> Path:
        """Return the folder where *process* keeps what it compiles; it is there."""
        folder = self.folder / "own" / process
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def fill(self, process: str) -> None:
        """Give *process* of the trial that has the device its copy.

        It has not run anything that was edited so far.
        """
        own, kept = self.own(process), self.folder / "kept" / process
        _empty(own)
        for source in _files(kept):
            target = own / source.relative_to(kept)
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(source, target)

    def adopt(self) -> None:
        """Keep what a finished run of the base has compiled, if nothing is kept yet."""
        kept = self.folder / "kept"
        if kept.exists():
            return
        making = self.folder / "making"
        remove(making)
        for own in self._owns():
            for source in _files(own):
                target = making / own.name / source.relative_to(own)
                target.parent.mkdir(parents=True, exist_ok=True)
                source.rename(target)
        if making.exists():
            making.rename(kept)

    def clear(self) -> None:
        """Remove the copies.  Their folders stay: sandboxes know them by their inodes."""
        for own in self._owns():
            _empty(own)

    def _owns(self) -> list[Path]:
        with contextlib.suppress(FileNotFoundError):
            return sorted((self.folder / "own").iterdir())
        return []


def environment(own: Path) -> dict[str, str]:
    """Return how a process is told to keep in *own* what it compiles."""
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(own / "inductor"),
        "TRITON_CACHE_DIR": str(own / "triton"),
    }


def _empty(own: Path) -> None:
    for entry in list(os.scandir(own)):
        if entry.is_dir(follow_symlinks=False):
            remove(entry)
        else:
            os.unlink(entry)


def _files(folder: Path) -> Iterator[Path]:
    """Yield the plain files below *folder*; a link could lead anywhere."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if stat.S_ISREG(path.lstat().st_mode):
                yield path


def _copy(source: Path, target: Path) -> None:
    """Copy a file in the kernel, which shares its blocks where the disk can."""
    with source.open("rb") as reading, target.open("wb") as writing:
        left = os.fstat(reading.fileno()).st_size
        while left:
            copied = os.copy_file_range(reading.fileno(), writing.fileno(), left)
            if not copied:  # it was cut off meanwhile
                break
            left -= copied
