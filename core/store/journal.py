"""The run folders: the journal that ``runs.duckdb`` can be rebuilt from at any time.

runs/<run>/            one finished trial, renamed into place when it is whole
runs/<verdict>.verdict.json
runs/.partial/<run>/   a trial under way; left behind only by a killed session
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import StoreError

RESULT = "result.json"
CURVE = "curve.parquet"
VERDICT_SUFFIX = ".verdict.json"
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
        for folder in left:
            shutil.rmtree(folder)
        for unnamed in self.folder.glob(".*.tmp"):
            unnamed.unlink()
        return len(left)

    def discard(self, run: str) -> None:
        """Remove the files of a trial that the session's end cut short."""
        shutil.rmtree(self.partial / run, ignore_errors=True)

    def keep_run(
        self, run: str, record: dict[str, Any], curve: list[dict[str, Any]]
    ) -> None:
        """Make the trial *run* part of the journal, whole or not at all.

        Args:
            run: The trial.
            record: What becomes rows, by table.
            curve: One mapping for each step, as CURVE_SCHEMA has it.
        """
        folder = self.partial / run
        for name in ("tmp", "weights.safetensors"):
            path = folder / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else (
                path.unlink(missing_ok=True)
            )
        pq.write_table(pa.Table.from_pylist(curve, CURVE_SCHEMA), folder / CURVE)
        (folder / "train.diff").write_text(record["mutant"]["diff"])
        (folder / "spec.json").write_text(json.dumps(record["experiment"], indent=2))
        (folder / RESULT).write_text(_sealed(record))
        for path in folder.iterdir():
            _sync(path)
        _sync(folder)
        folder.rename(self.folder / run)
        _sync(self.folder)

    def keep_verdict(self, verdict: str, record: dict[str, Any]) -> None:
        """Make a verdict part of the journal, whole or not at all."""
        unnamed = self.folder / f".{verdict}.tmp"
        unnamed.write_text(_sealed(record))
        _sync(unnamed)
        unnamed.rename(self.folder / f"{verdict}{VERDICT_SUFFIX}")
        _sync(self.folder)

    def runs(self) -> Iterator[str]:
        """Yield the names of finished trials, oldest first."""
        yield from sorted(path.parent.name for path in self.folder.glob(f"*/{RESULT}"))

    def verdicts(self) -> Iterator[str]:
        """Yield the names of verdicts, oldest first."""
        for path in sorted(self.folder.glob(f"*{VERDICT_SUFFIX}")):
            yield path.name.removesuffix(VERDICT_SUFFIX)

    def run(self, run: str) -> dict[str, Any]:
        """Return the record of a finished trial."""
        return _opened(self.folder / run / RESULT)

    def curve(self, run: str) -> pa.Table:
        """Return the training curve of a finished trial."""
        return pq.read_table(self.folder / run / CURVE)

    def verdict(self, verdict: str) -> dict[str, Any]:
        """Return the record of a verdict."""
        return _opened(self.folder / f"{verdict}{VERDICT_SUFFIX}")


def _sealed(record: dict[str, Any]) -> str:
    """Return *record* as JSON with its own digest: a damaged file is then noticed."""
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({"sha256": digest, "record": record}, indent=1, sort_keys=True)


def _opened(path: Path) -> dict[str, Any]:
    try:
        sealed = json.loads(path.read_text())
        text = json.dumps(sealed["record"], sort_keys=True)
        whole = hashlib.sha256(text.encode()).hexdigest() == sealed["sha256"]
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise StoreError(
            f"{path} is damaged: its content does not match its digest.",
            hint=f"move it away ({path.parent.name} is then not counted) and run again.",
        )
    return sealed["record"]


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
