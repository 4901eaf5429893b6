"""What is already known in a context: runs to build on, verdicts to report."""

from typing import Any

import attrs
import duckdb

from core.evidence import Outcome, Verdict


@attrs.frozen(kw_only=True)
class History:
    """Runs and verdicts of one context, oldest first."""

    outcomes: tuple[Outcome, ...] = ()
    verdicts: tuple[Verdict, ...] = ()


def read_history(db: duckdb.DuckDBPyConnection, context: str) -> History:
    """Return what counts in *context*: no trial that was killed or that a machine failed."""
    return History(
        outcomes=tuple(
            Outcome(**{**row, "log_tail": tuple(row["log_tail"] or ())})
            for row in _rows(db, Outcome, "runs", context, "run")
            if row["status"] not in ("killed", "infrastructure")
        ),
        verdicts=tuple(
            Verdict(**{**row, "runs": tuple(row["runs"])})
            for row in _rows(db, Verdict, "verdicts", context, "decided_at, verdict")
        ),
    )


def _rows(
    db: duckdb.DuckDBPyConnection, kind: type, table: str, context: str, order: str
) -> list[dict[str, Any]]:
    columns = [field.name for field in attrs.fields(kind)]
    found = db.execute(
        f"select {', '.join(columns)} from {table} where context = ? order by {order}",
        [context],
    ).fetchall()
    return [dict(zip(columns, row, strict=True)) for row in found]
