"""runs.duckdb: opened to insert what the journal holds, and closed again.

DuckDB lets nobody else open a file that a writer has open, not even to read.  So nothing
here keeps a connection, and a file that somebody else holds delays rows, never loses
them: they stay in the journal until the next time.
"""

import contextlib
import re
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import attrs
import duckdb
import pyarrow as pa

from core.store.journal import Journal

# DuckDB 2 writes files that 1.x and its command line cannot read, unless told otherwise.
STORAGE = {"storage_compatibility_version": "v1.0.0"}
RETRY_SECONDS = 0.1


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
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            db = duckdb.connect(str(path or ":memory:"), config=STORAGE)
            break
        except duckdb.IOException as error:
            holder = re.search(r"held in (\S+) (\(PID \d+\))", str(error))
            if holder is None:
                raise
            if time.monotonic() >= deadline:
                raise Held(" ".join(holder.groups())) from error
            time.sleep(RETRY_SECONDS)
    try:
        _migrate(db)
        yield db
    finally:
        db.close()


def _migrate(db: duckdb.DuckDBPyConnection) -> None:
    """Apply the migrations that the file has not seen, and renew the views."""
    sql = resources.files("core.store")
    db.execute("create table if not exists migrations (number integer, name varchar)")
    rows = db.execute("select coalesce(max(number), 0) from migrations").fetchall()
    for file in sorted((sql / "migrations").iterdir(), key=lambda file: file.name):
        number = int(file.name.split("_")[0])
        if number > rows[0][0]:
            db.execute("begin")
            db.execute(file.read_text())
            db.execute("insert into migrations values (?, ?)", [number, file.name])
            db.execute("commit")
    db.execute((sql / "views.sql").read_text())


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
    """Insert all that the journal has and the database has not, in one transaction.

    Raises:
        StoreError: A file of the journal is damaged.
    """
    runs = _missing(db, "runs", "run", journal.runs())
    verdicts = _missing(db, "verdicts", "verdict", journal.verdicts())
    if not runs and not verdicts:
        return Ingested(runs=0, verdicts=0)
    tables: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        record = journal.run(run)
        for table, key in (
            ("contexts", "context"),
            ("experiments", "experiment"),
            ("mutants", "mutant"),
        ):
            if record[key] is not None:
                tables.setdefault(table, []).append(record[key])
        tables.setdefault("symbol_changes", []).extend(record["changes"])
        tables.setdefault("runs", []).append(record["run"])
    for verdict in verdicts:
        record = journal.verdict(verdict)
        tables.setdefault("verdicts", []).append(record["verdict"])
        for table in ("context", "experiment", "mutant"):
            tables.setdefault(f"{table}s", []).append(record[table])
        tables.setdefault("symbol_changes", []).extend(record["changes"])
    db.execute("begin")
    for table, rows in tables.items():
        _insert(db, table, rows)
    for run in runs:
        _insert_curve(db, run, journal.curve(run))
    db.execute("commit")
    return Ingested(runs=len(runs), verdicts=len(verdicts))


def _missing(
    db: duckdb.DuckDBPyConnection, table: str, key: str, names: Iterator[str]
) -> list[str]:
    known = {name for (name,) in db.execute(f"select {key} from {table}").fetchall()}
    return [name for name in names if name not in known]


# Tables that describe: a row that is already there is not inserted again.
DESCRIBING = ("contexts", "experiments", "mutants", "symbol_changes")


def _insert(
    db: duckdb.DuckDBPyConnection, table: str, rows: list[dict[str, Any]]
) -> None:
    if not rows:
        return
    new = pa.Table.from_pylist(rows)
    db.register("new_rows", new)
    columns = ", ".join(new.column_names)
    known = f" except select {columns} from {table}" if table in DESCRIBING else ""
    db.execute(
        f"insert into {table} by name select * from"
        f" (select {'distinct' if known else ''} {columns} from new_rows{known})"
    )
    db.unregister("new_rows")


def _insert_curve(db: duckdb.DuckDBPyConnection, run: str, curve: pa.Table) -> None:
    db.register("new_curve", curve)
    db.execute("insert into curves by name select ? as run, * from new_curve", [run])
    db.unregister("new_curve")
