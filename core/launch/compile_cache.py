"""What torch.compile keeps: only runs of the unedited base fill it.

A cached kernel is code that the next process executes, so no trial may write where
another reads.  Each process of a trial gets a copy of its own; a finished run of the base
makes the first, and nobody adds to it.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

PARTS = ("inductor", "triton")


@attrs.frozen
class CompileCache:
    """The compiled graphs of one base, on one model of GPU, with one torch.

    Attributes:
        folder: Where they are, once there are any.
    """

    folder: Path

    def copy_to(self, own: Path) -> None:
        """Give a process that has not started yet a copy, in the folder *own*."""
        for part in PARTS:
            (own / part).mkdir(parents=True)
        for source in _files(self.folder):
            target = own / source.relative_to(self.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(source, target)

    def adopt(self, owns: Iterable[Path]) -> None:
        """Keep what a finished run of the base has compiled, if nothing is kept yet.

        Args:
            owns: The folders of its processes, all of which have ended.
        """
        if self.folder.exists():
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder.parent) as unnamed:
            made = Path(unnamed) / "made"
            for own in owns:
                for source in _files(own):
                    target = made / source.relative_to(own)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if not target.exists():
                        shutil.move(source, target)
            if made.exists():
                with contextlib.suppress(OSError):  # another session was first
                    made.rename(self.folder)


def environment(own: Path) -> dict[str, str]:
    """Return how a process is told to keep in *own* what it compiles."""
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(own / "inductor"),
        "TRITON_CACHE_DIR": str(own / "triton"),
    }


def _files(folder: Path) -> Iterator[Path]:
    """Yield the plain files below *folder*; a link could lead anywhere."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
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
