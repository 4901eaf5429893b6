"""Insert into runs.duckdb what the journal holds."""

import itertools
from collections.abc import Iterator
from typing import Any

import attrs
import duckdb
import pyarrow as pa

from core.errors import StoreError
from core.store.journal import DAMAGED_HINT, NOTES, Journal

BATCH = 200  # records a transaction: a rebuild needs little memory, and may be killed


@attrs.frozen(kw_only=True)
class Ingested:
    """How much is in the database now and was not before.

    Attributes:
        runs: Trials.
        verdicts: Verdicts.
        calls: Calls of a model.
        attempts: Attempts to write a codemod.
    """

    runs: int
    verdicts: int
    calls: int
    attempts: int


def ingest(db: duckdb.DuckDBPyConnection, journal: Journal) -> Ingested:
    """Insert all that the journal has and the database has not.

    Raises:
        StoreError: Records are damaged; all the others are inserted.
    """
    damaged: list[StoreError] = []
    counts: dict[str, int] = {}
    try:
        for kind in ("run", *NOTES):
            if kind == "run":
                names = journal.runs(_known(db, kind))
            else:
                names = journal.notes(kind, _known(db, kind))
            counts[f"{kind}s"] = sum(
                _insert_batch(db, list(_readable(journal, kind, batch, damaged)))
                for batch in _batches(names)
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
    return Ingested(**counts)


Record = tuple[dict[str, Any], pa.Table | None]  # rows by table, and the curve of a run


# Where what is kept under a name goes, if the name alone does not say it
TABLES = {"call": "agent_calls", "attempt": "agent_attempts"}


def _table(kind: str) -> str:
    return TABLES.get(kind, f"{kind}s")


def _known(db: duckdb.DuckDBPyConnection, kind: str) -> set[str]:
    rows = db.execute(f"select {kind} from {_table(kind)}").fetchall()
    return {name for (name,) in rows}


def _batches(names: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(itertools.islice(names, BATCH)):
        yield batch


def _readable(
    journal: Journal, kind: str, names: list[str], damaged: list[StoreError]
) -> Iterator[Record]:
    """Yield the records that can be read; add to *damaged* why the others cannot."""
    for name in names:
        try:
            if kind == "run":
                yield journal.run(name), journal.curve(name)
            else:
                yield journal.note(kind, name), None
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
        for name in ("context", "experiment", "mutant", "run", *NOTES):
            if record.get(name) is not None:
                tables.setdefault(_table(name), []).append(record[name])
        tables.setdefault("symbol_changes", []).extend(record.get("changes", ()))
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
