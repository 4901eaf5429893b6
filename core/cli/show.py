"""``deltaspec show``: what became of an experiment, without pytest."""

import argparse
from pathlib import Path
from typing import Any

from core.cli import emit
from core.errors import SessionError
from core.launch.log import escaped
from core.settings import find_project
from core.store.connection import reading
from core.store.verdicts import verdicts_on

DESCRIPTION = (
    "The verdicts on an experiment, newest first, in every context that it was tested"
    " in. An experiment with a sweep has those of all its cases, unless one is named:"
    " 'specs/idea.py::name[5]'."
)
DATABASE = "runs.duckdb"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "experiment", metavar="SPEC::NAME", help="an id, as pytest has it"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document (docs/json.md)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print the verdicts."""
    here = Path.cwd()
    project = find_project(here)
    name, separator, label = arguments.experiment.partition("::")
    if not separator or not label:
        raise SessionError(
            f"{arguments.experiment} does not say which experiment.",
            hint="name one, as specs/idea.py::name.",
        )
    path = (here / name).resolve()
    file = path.relative_to(project) if path.is_relative_to(project) else Path(name)
    wanted = f"{file.as_posix()}::{label}"
    with reading(project / DATABASE) as db:
        verdicts = verdicts_on(db, wanted)
    if not verdicts:
        raise SessionError(
            f"{DATABASE} holds no verdict on {wanted}.",
            hint=f"run it: deltaspec run {wanted}.",
        )
    if arguments.json:
        emit("show", id=wanted, verdicts=verdicts)
        return
    print("\n\n".join(map(_lines, verdicts)))


def _lines(verdict: dict[str, Any]) -> str:
    measured = ""
    if verdict["delta_bpb"] is not None:
        ends = (verdict["lower_bpb"], verdict["upper_bpb"])
        measured = f"{verdict['delta_bpb']:+.4f} ({ends[0]:+.4f} to {ends[1]:+.4f})"
    predicted = verdict["predicted_bpb"]
    rows = {
        "measured": measured,
        "predicted": "" if predicted is None else f"{predicted:+g}",
        "reason": escaped(verdict["reason"]),
        "seeds": str(verdict["seeds"]),
        "attempt": str(verdict["attempt"] + 1),
        "context": f"{verdict['profile']}, {verdict['budget_seconds']:g} s on "
        f"{verdict['device']} ({verdict['context']})",
        "decided": verdict["decided_at"],
        "runs": " ".join(verdict["runs"]),
    }
    said = [f"{verdict['word']}  {escaped(verdict['id'])}"]
    said += [f"  {name:<10} {text}" for name, text in rows.items() if text]
    return "\n".join(said)
