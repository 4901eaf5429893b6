"""The run folders: the journal that ``runs.duckdb`` can be rebuilt from at any time.

runs/<run>/            one finished trial, renamed into place when it is whole
runs/<name>.<kind>.json   a note: a verdict, a call of a model, an attempt to write a codemod
runs/.partial/<run>/   a trial under way; left behind only by a killed session
"""

import hashlib
import json
import os
import secrets
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import StoreError
from core.scratch import remove

RESULT = "result.json"
CURVE = "curve.parquet"
NOTES = ("verdict", "call", "attempt")  # kinds of notes
LEFT_BY_TRIALS = ("train.py", "log.txt", "judge.txt")  # and kept; the rest is scratch
DAMAGED_HINT = (
    "move what is damaged out of runs/: a trial is then run again where it is needed, "
    "and all else is kept."
)
CURVE_SCHEMA = pa.schema([
    ("step", pa.int32()),
    ("seconds", pa.float64()),
    ("tokens", pa.int64()),
    ("loss_nats", pa.float64()),
])


def new_id() -> str:
    """Return a name that sorts by time and never repeats."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


@attrs.frozen
class Journal:
    """The folder ``runs/`` of a project.

    Attributes:
        folder: Made when the first trial starts.
    """

    folder: Path

    @property
    def partial(self) -> Path:
        """Where trials under way keep their files."""
        return self.folder / ".partial"

    def begin(self, run: str) -> Path:
        """Return an empty folder for the trial *run*."""
        folder = self.partial / run
        folder.mkdir(parents=True)
        return folder

    def sweep(self) -> int:
        """Remove what a killed session left half made; return how many trials."""
        left = list(self.partial.iterdir()) if self.partial.is_dir() else []
        for folder in left:  # what cannot be removed now is tried again next time
            remove(folder)
        for unnamed in self.folder.glob(".*.tmp"):
            unnamed.unlink()
        return len(left)

    def discard(self, run: str) -> None:
        """Remove the files of a trial that the session's end cut short."""
        remove(self.partial / run)

    def keep_run(
        self, run: str, record: dict[str, Any], curve: list[dict[str, Any]]
    ) -> None:
        """Make the trial *run* part of the journal, whole or not at all.

        One that is part of it already stays as it is.

        Args:
            run: The trial.
            record: What becomes rows, by table.
            curve: One mapping for each step, as CURVE_SCHEMA has it.
        """
        if (self.folder / run).exists():  # and the session was stopped just then
            return
        folder = self.partial / run
        _clear(folder)
        steps = pa.Table.from_pylist(curve, CURVE_SCHEMA)
        pq.write_table(steps, folder / CURVE, write_page_checksum=True)
        # Not the file that the trial ran from: it could have been rewritten since.
        (folder / "train.py").write_text(record["mutant"]["source"])
        (folder / "train.diff").write_text(record["mutant"]["diff"])
        (folder / "spec.json").write_text(json.dumps(record["experiment"], indent=2))
        (folder / RESULT).write_text(_sealed(record))
        for name in (CURVE, "train.diff", "spec.json", RESULT, *LEFT_BY_TRIALS):
            if (folder / name).exists():
                _sync(folder / name)
        _sync(folder)
        folder.rename(self.folder / run)
        _sync(self.folder)

    def keep_note(self, kind: str, name: str, record: dict[str, Any]) -> None:
        """Make a note part of the journal, whole or not at all.

        Args:
            kind: One of NOTES.
            name: As ``record[kind][kind]`` has it.
            record: What becomes rows, by table.
        """
        self.folder.mkdir(exist_ok=True)
        unnamed = self.folder / f".{name}.tmp"
        while True:
            unnamed.write_text(_sealed(record))
            try:
                _sync(unnamed)
                unnamed.rename(self.folder / f"{name}.{kind}.json")
                break
            except FileNotFoundError:  # a session that starts has swept it: once more
                continue
        _sync(self.folder)

    def runs(self, known: Collection[str] = ()) -> Iterator[str]:
        """Yield the names of finished trials that are not *known*, oldest first."""
        for name in sorted(set(self._listed()).difference(known)):
            if not name.startswith(".") and (self.folder / name / RESULT).exists():
                yield name

    def notes(self, kind: str, known: Collection[str] = ()) -> Iterator[str]:
        """Yield the names of notes of a *kind* that are not *known*, oldest first."""
        for file in sorted(self._listed()):
            name = file.removesuffix(f".{kind}.json")
            if name not in (file, "") and name not in known:
                yield name

    def run(self, run: str) -> dict[str, Any]:
        """Return the record of a finished trial.

        Raises:
            StoreError: It is damaged, or that of another trial.
        """
        return _opened(self.folder / run / RESULT, "run", run)

    def curve(self, run: str) -> pa.Table:
        """Return the training curve of a finished trial.

        Raises:
            StoreError: It is damaged.
        """
        path = self.folder / run / CURVE
        try:
            return pq.read_table(
                path, schema=CURVE_SCHEMA, page_checksum_verification=True
            )
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path, str(error).splitlines()[0].rstrip(".")) from error

    def note(self, kind: str, name: str) -> dict[str, Any]:
        """Return the record of a note.

        Raises:
            StoreError: It is damaged, or that of another note.
        """
        return _opened(self.folder / f"{name}.{kind}.json", kind, name)

    def _listed(self) -> list[str]:
        return os.listdir(self.folder) if self.folder.is_dir() else []


def _clear(folder: Path) -> None:
    """Remove what a trial left in its folder, but for its module and its logs.

    The trial may have put anything there: where we write, a link that leads elsewhere.
    """
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            remove(entry)
        elif entry.name not in LEFT_BY_TRIALS or not entry.is_file(
            follow_symlinks=False
        ):
            os.unlink(entry)


def _sealed(record: dict[str, Any]) -> str:
    """Return *record* as JSON with its own digest: a damaged file is then noticed."""
    # What a child said may hold half a surrogate pair, which no database takes.
    plain = json.dumps(record, allow_nan=False, ensure_ascii=False)
    record = json.loads(plain.encode(errors="replace"))
    return json.dumps(
        {"sha256": _digest(record), "record": record}, indent=1, sort_keys=True
    )


def _opened(path: Path, table: str, name: str) -> dict[str, Any]:
    """Return the sealed record in *path*, which must be that of *name*."""
    try:
        sealed = json.loads(path.read_text())
        whole = _digest(sealed["record"]) == sealed["sha256"]
    except OSError as error:
        raise _damaged(path, str(error)) from error
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise _damaged(path, "its content does not match its digest")
    record = sealed["record"]
    if record[table][table] != name:
        raise _damaged(path, f"it is the record of {record[table][table]}")
    return record


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, why: str) -> StoreError:
    return StoreError(f"{path} is damaged: {why}.", hint=DAMAGED_HINT)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
