"""runs.duckdb: opened to insert what the journal holds, and closed again.

DuckDB lets nobody else open a file that a writer has open, not even to read.  So nothing
here keeps a connection, and a file that somebody else holds delays rows, never loses
them: they stay in the journal until the next time.
"""

import contextlib
import itertools
import re
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import attrs
import duckdb
import pyarrow as pa

from core.errors import StoreError
from core.store.journal import DAMAGED_HINT, Journal

# DuckDB 2 writes files that 1.x and its command line cannot read, unless told otherwise.
STORAGE = {"storage_compatibility_version": "v1.0.0"}
RETRY_SECONDS = 0.1
BATCH = 200  # records a transaction: a rebuild needs little memory, and may be killed


class Held(Exception):
    """Somebody else has the file open.

    Args:
        holder: Who, as DuckDB names it.
    """

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


@contextlib.contextmanager
def opened(
    path: Path | None, patience_seconds: float
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the database for writing, with its schema up to date.

    Args:
        path: The file, made when missing; None for a database in memory.
        patience_seconds: How long to wait for somebody who has it open.

    Raises:
        Held: They still have it.
        StoreError: It is damaged, or a newer deltaspec made it.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            db = duckdb.connect(str(path or ":memory:"), config=STORAGE)
            break
        except duckdb.Error as error:
            if "Could not set lock on file" not in str(error):
                raise StoreError(
                    f"{path} cannot be opened: {str(error).splitlines()[0]}",
                    hint=f"if it is damaged, move it and {path}.wal away: the next "
                    "command makes it anew from runs/.",
                ) from error
            if time.monotonic() >= deadline:
                raise Held(_holder(str(error))) from error
            time.sleep(RETRY_SECONDS)
    try:
        _migrate(db, path)
        yield db
    finally:
        db.close()


def _holder(message: str) -> str:
    """Return who has the file open, as far as DuckDB could find out."""
    found = re.search(r"held in (.+?)(?: by user |\. See |$)", message)
    return found.group(1) if found else "another process"


def _migrate(db: duckdb.DuckDBPyConnection, path: Path | None) -> None:
    """Apply the migrations that the file has not seen, and renew the views."""
    sql = resources.files("core.store")
    files = {
        int(file.name.split("_")[0]): file for file in (sql / "migrations").iterdir()
    }
    db.execute("create table if not exists migrations (number integer, name varchar)")
    ((seen,),) = db.execute("select max(number) from migrations").fetchall()
    if (seen or 0) > max(files):
        raise StoreError(
            f"{path} was made by a newer deltaspec: it has seen migration {seen}, and "
            f"this one knows {max(files)}.",
            hint="update deltaspec, or move the file away: it is then made anew from "
            "runs/.",
        )
    for number in sorted(files):
        if number > (seen or 0):
            db.execute("begin")
            db.execute(files[number].read_text())
            db.execute(
                "insert into migrations values (?, ?)", [number, files[number].name]
            )
            db.execute("commit")
    db.execute("begin")  # one write to disk in place of forty
    db.execute((sql / "views.sql").read_text())
    db.execute("commit")


@attrs.frozen(kw_only=True)
class Ingested:
    """What an ingestion did.

    Attributes:
        runs: Trials that are in the database now and were not before.
        verdicts: Verdicts, likewise.
    """

    runs: int
    verdicts: int


def ingest(db: duckdb.DuckDBPyConnection, journal: Journal) -> Ingested:
    """Insert all that the journal has and the database has not.

    Raises:
        StoreError: Records are damaged; all the others are inserted.
    """
    damaged: list[StoreError] = []
    runs, verdicts = (
        sum(
            _insert_batch(db, list(_readable(read, names, damaged)))
            for names in _batches(listed(_known(db, key)))
        )
        for key, listed, read in (
            ("run", journal.runs, lambda run: (journal.run(run), journal.curve(run))),
            ("verdict", journal.verdicts, lambda name: (journal.verdict(name), None)),
        )
    )
    if damaged:
        raise StoreError(
            "\n".join(error.message for error in damaged), hint=DAMAGED_HINT
        )
    return Ingested(runs=runs, verdicts=verdicts)


Record = tuple[dict[str, Any], pa.Table | None]  # rows by table, and the curve of a run


def _known(db: duckdb.DuckDBPyConnection, key: str) -> set[str]:
    return {name for (name,) in db.execute(f"select {key} from {key}s").fetchall()}


def _batches(names: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(itertools.islice(names, BATCH)):
        yield batch


def _readable(
    read: Callable[[str], Record], names: list[str], damaged: list[StoreError]
) -> Iterator[Record]:
    """Yield the records that can be read; add to *damaged* why the others cannot."""
    for name in names:
        try:
            yield read(name)
        except StoreError as error:
            damaged.append(error)


# What describes is repeated in each record, and inserted once; found again by its key.
KEYS = {
    "contexts": "context",
    "experiments": "experiment",
    "mutants": "mutant",
    "symbol_changes": "mutant",
}


def _insert_batch(db: duckdb.DuckDBPyConnection, records: list[Record]) -> int:
    """Insert *records* in one transaction; return how many there are."""
    tables: dict[str, list[dict[str, Any]]] = {}
    curves = []
    for record, curve in records:
        for name in ("context", "experiment", "mutant", "run", "verdict"):
            if record.get(name) is not None:
                tables.setdefault(f"{name}s", []).append(record[name])
        tables.setdefault("symbol_changes", []).extend(record["changes"])
        if curve is not None:
            run = pa.repeat(record["run"]["run"], len(curve))
            curves.append(curve.append_column("run", run))
    db.execute("begin")
    for table, rows in tables.items():
        # Not as the first row has them: older records lack the columns of newer ones.
        columns = dict.fromkeys(column for row in rows for column in row)
        _insert(db, table, pa.table({c: [row.get(c) for row in rows] for c in columns}))
    if curves:
        _insert(db, "curves", pa.concat_tables(curves))
    db.execute("commit")
    return len(records)


def _insert(db: duckdb.DuckDBPyConnection, table: str, new: pa.Table) -> None:
    if not len(new):
        return
    columns, key = ", ".join(new.column_names), KEYS.get(table)
    select = f"select {columns} from new_rows"
    if key is not None:
        select = (
            f"select distinct {columns} from new_rows except select {columns}"
            f" from {table} where {key} in (select {key} from new_rows)"
        )
    db.register("new_rows", new)
    db.execute(f"insert into {table} by name {select}")
    db.unregister("new_rows")
