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


@attrs.frozen(kw_only=True)
class Trace:
    """What was once done to a symbol, and what became of it.

    Attributes:
        id: The experiment; None before a verdict.
        edit: added, changed, removed or moved.
        old_source: Of the symbol, before.
        new_source: Of the symbol, after.
        word: The verdict on the whole mutant, if there is one.
        delta_bpb: Its measured change, if there is one.
        profile: gpu or cpu, if there is a verdict.
        reason: Of the verdict, or of a run that failed.
        log_tail: The last lines of such a run: what the mutant printed.
    """

    id: str | None
    edit: str
    old_source: str | None
    new_source: str | None
    word: str | None
    delta_bpb: float | None
    profile: str | None
    reason: str | None
    log_tail: tuple[str, ...]


def traces(
    db: duckdb.DuckDBPyConnection, symbol: str, limit: int = 20
) -> tuple[Trace, ...]:
    """Return what was done to *symbol*, the latest verdicts first."""
    rows = db.execute(
        """
        with failed as (
            select mutant, last(message order by started_at) as message,
                last(log_tail order by started_at) as log_tail
            from runs where status in ('crashed', 'invalid') group by mutant
        ), judged as (
            select mutant, last(reason order by decided_at) as reason,
                max(decided_at) as decided_at
            from verdicts group by mutant
        )
        select c.id, c.edit, c.old_source, c.new_source, c.word, c.delta_bpb, c.profile,
            coalesce(f.message, j.reason) as reason,
            coalesce(f.log_tail, []) as log_tail
        from changes c left join failed f using (mutant) left join judged j using (mutant)
        where c.symbol = ? order by j.decided_at desc nulls last limit ?
        """,
        [symbol, limit],
    ).fetchall()
    names = [field.name for field in attrs.fields(Trace)]
    return tuple(
        Trace(**{**dict(zip(names, row, strict=True)), "log_tail": tuple(row[-1])})
        for row in rows
    )
