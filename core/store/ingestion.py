"""Insert into runs.duckdb what the journal holds."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import duckdb
import pyarrow as pa

from core.errors import StoreError
from core.store.journal import DAMAGED_HINT, Journal

BATCH = 200  # records a transaction: a rebuild needs little memory, and may be killed


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
    try:
        runs, verdicts = (
            sum(
                _insert_batch(db, list(_readable(read, names, damaged)))
                for names in _batches(listed(_known(db, key)))
            )
            for key, listed, read in (
                (
                    "run",
                    journal.runs,
                    lambda run: (journal.run(run), journal.curve(run)),
                ),
                (
                    "verdict",
                    journal.verdicts,
                    lambda name: (journal.verdict(name), None),
                ),
            )
        )
    except duckdb.Error as error:
        raise StoreError(
            f"runs.duckdb takes no rows: {str(error).splitlines()[0]}",
            hint="free space on its disk, or move it away: it is made anew from runs/.",
        ) from error
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
