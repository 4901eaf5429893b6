"""What a session tells a program: one document of plain values, as docs/json.md has it."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from core.errors import DeltaspecError
from core.gates import Work
from core.launch.log import escaped
from core.report import JSON_VERSION
from core.spec import Case

if TYPE_CHECKING:  # the statistics that it brings take half a second to import
    from core.evidence import Verdict

DRY_RUN, RUN = "dry-run", "run"
UNIMPLEMENTED = "unimplemented"
LOST_HINT = "look at the machine, then run again: nothing is lost."


@attrs.frozen(kw_only=True)
class Told:
    """What a session told of one experiment.

    Attributes:
        verdict: None if the machine failed.
        stored: It was decided in an earlier session.
        earlier: The words of earlier attempts, oldest first.
        lost: Why there is no verdict; empty if there is.
        log_tail: The end of a log that shows why.
    """

    verdict: "Verdict | None" = None
    stored: bool = False
    earlier: tuple[str, ...] = ()
    lost: str = ""
    log_tail: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Selected:
    """One experiment of a session.

    Attributes:
        case: What the spec says.
        work: With its mutant, also where a gate refused that; None without a mutant.
        problem: Why it cannot run, if it cannot.
        skip_reason: Why it was not run, if it was left out.
        told: What became of it, if anything did.
        same_module_as: The first experiment of the session with the same mutant.
        run_before: The latest word on the mutant, where that was looked up.
    """

    case: Case
    work: Work | None = None
    problem: DeltaspecError | None = None
    skip_reason: str = ""
    told: Told | None = None
    same_module_as: str | None = None
    run_before: str | None = None

    def state(self, command: str) -> str:
        """Return how far it came."""
        if self.told is not None and self.told.verdict is not None:
            return "decided"
        if self.problem is not None:
            return "cannot_run"
        if self.skip_reason:
            is_missing = self.skip_reason.startswith(UNIMPLEMENTED)
            return UNIMPLEMENTED if is_missing else "skipped"
        return "applied" if command == DRY_RUN else "not_run"


def experiment(selected: Selected, command: str) -> dict[str, Any]:
    """Return what a document says of one experiment.

    Args:
        selected: The experiment, and what became of it.
        command: DRY_RUN or RUN.
    """
    case, told = selected.case, selected.told or Told()
    mutant = None if selected.work is None else selected.work.mutant
    verdict, expect = told.verdict, case.expect
    return {
        "id": case.id,
        "file": case.file,
        "line": case.line,
        "state": selected.state(command),
        "word": None if verdict is None else verdict.word,
        "reason": _text(selected.skip_reason if verdict is None else verdict.reason),
        "delta_bpb": None if verdict is None else _number(verdict.delta_bpb),
        "lower_bpb": None if verdict is None else _number(verdict.lower_bpb),
        "upper_bpb": None if verdict is None else _number(verdict.upper_bpb),
        "predicted_bpb": None if expect is None else _number(expect.delta_bpb),
        "within_bpb": None if expect is None else _number(expect.within),
        "on": None if expect is None else expect.on,
        "replication": None if verdict is None else _number(verdict.replication),
        "seeds": 0 if verdict is None else verdict.candidates,
        "attempt": None if verdict is None else verdict.attempt,
        "earlier": list(told.earlier),
        "stored": told.stored,
        "runs": [] if verdict is None else list(verdict.runs),
        "mutant": None if mutant is None else mutant.digest,
        "same_module_as": selected.same_module_as,
        "run_before": selected.run_before,
        "changes": []
        if mutant is None
        else [attrs.asdict(change) for change in mutant.changes],
        "diff": "" if mutant is None else mutant.diff,
        "refusals": []
        if mutant is None
        else [attrs.asdict(refusal) for refusal in mutant.refusals],
        "error": _why(selected, told),
        "log_tail": list(map(escaped, told.log_tail)),
    }


def _why(selected: Selected, told: Told) -> dict[str, str] | None:
    case = selected.case
    place = f"{case.file}:{case.line}"
    if told.lost:
        return failure("Lost", told.lost, hint=LOST_HINT, place=place)
    return None if selected.problem is None else error(selected.problem, place=place)


def error(found: DeltaspecError, *, place: str = "") -> dict[str, str]:
    """Return what a document says of an error.

    Args:
        found: The error.
        place: Where it is, as ``file:line``, unless it knows that itself.
    """
    return failure(
        type(found).__name__,
        found.message,
        hint=found.hint,
        place=getattr(found, "place", "") or place,
    )


def failure(kind: str, message: str, *, hint: str, place: str = "") -> dict[str, str]:
    """Return what a document says of what went wrong, whoever noticed it."""
    said = {"kind": kind, "message": message, "hint": hint, "place": place}
    return {name: _text(text) for name, text in said.items()}


def document(
    *,
    command: str,
    exit_code: int,
    context: dict[str, Any] | None = None,
    experiments: Sequence[dict[str, Any]] = (),
    errors: Sequence[dict[str, str]] = (),
    error: dict[str, str] | None = None,
    agent: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the document of one session.

    Args:
        command: DRY_RUN or RUN.
        exit_code: pytest's.
        context: What the numbers may be compared with; None where nothing ran.
        experiments: As `experiment` has them.
        errors: Of spec files that could not be read.
        error: Why the session could not run, if it could not.
        agent: What the agent did, if it was asked.
    """
    return {
        "version": JSON_VERSION,
        "command": command,
        "exit_code": exit_code,
        "context": context,
        "error": error,
        "errors": list(errors),
        "experiments": list(experiments),
        "agent": agent,
        "summary": dict(Counter(e["word"] or e["state"] for e in experiments)),
    }


def encoded(content: dict[str, Any]) -> str:
    """Return *content* as one line of JSON that every parser reads."""
    # What a child said may hold half a surrogate pair, which strict parsers refuse.
    plain = json.dumps(content, allow_nan=False, ensure_ascii=False)
    return json.dumps(json.loads(plain.encode(errors="replace")))


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _text(text: str) -> str:
    """Return *text* so that nobody obeys it, line by line."""
    return "\n".join(map(escaped, text.split("\n")))
