"""What became of one experiment, in every context."""

from typing import Any

import duckdb

FIELDS = {
    "id": "e.id",
    "word": "v.word",
    "reason": "v.reason",
    "delta_bpb": "v.delta_bpb",
    "lower_bpb": "v.lower_bpb",
    "upper_bpb": "v.upper_bpb",
    "predicted_bpb": "v.predicted_bpb",
    "replication": "v.replication",
    "seeds": "v.candidates",
    "attempt": "v.attempt",
    "profile": "c.profile",
    "budget_seconds": "c.budget_seconds",
    "device": "c.device",
    "context": "v.context",
    "mutant": "v.mutant",
    "decided_at": "strftime(v.decided_at, '%Y-%m-%dT%H:%M:%S.%f+00:00')",
    "runs": "v.runs",
}


def verdicts_on(db: duckdb.DuckDBPyConnection, id: str) -> list[dict[str, Any]]:
    """Return the verdicts on an experiment, newest first, as plain values.

    Args:
        db: To read.
        id: The pytest id; without swept values, all cases of the experiment.
    """
    fields = ", ".join(f"{text} as {name}" for name, text in FIELDS.items())
    try:
        found = db.execute(
            f"""
            select {fields}
            from verdicts v
            join (select distinct on (experiment) * from experiments) e using (experiment)
            join (select distinct on (context) * from contexts) c using (context)
            where e.id = ? or starts_with(e.id, ? || '[')
            order by v.decided_at desc, v.verdict desc
            """,
            [id, id],
        ).fetchall()
    except duckdb.CatalogException:  # made by somebody else, and still empty
        return []
    return [dict(zip(FIELDS, row, strict=True)) for row in found]
