"""The loop for one experiment, and the check by a fresh reader."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from core.agent.calls import Answer, Correspondent, Question
from core.agent.candidate import Failure, bound
from core.agent.dryrun import Ground, Tried, dry_run, place
from core.agent.lookup import quoted, symbol, tried
from core.agent.prompt import (
    AGREEMENT,
    TOOLS,
    comparison,
    implementing,
    task,
    words,
)
from core.launch.log import escaped
from core.settings import AgentSettings
from core.spec import Case
from core.store.history import Trace

SHOWN_CHARACTERS = 400  # of a reason that a terminal shows

CUT_OFF = (
    "Your last answer was cut off at the limit of its length and is lost. Give a "
    "shorter one: find the site by a pattern, and write what changes there."
)
NO_TOOL = (
    "Nothing was handed in. Call dry_run with the whole file, or submit what the last "
    "dry run passed; if the spec cannot be done within the rules, say why, once more, "
    "and nothing else."
)


@attrs.frozen(kw_only=True)
class Assignment:
    """An experiment that has no codemod yet.

    Attributes:
        cases: All that it has: one, or those of its sweep.
        ordinal: How many attempts at what it asks for have come to an end.
        earlier: Their records, oldest first.
    """

    cases: tuple[Case, ...]
    ordinal: int
    earlier: tuple[Mapping[str, Any], ...] = ()

    @property
    def id(self) -> str:
        """The experiment, without swept values."""
        return f"{self.cases[0].file}::{self.cases[0].name}"

    @property
    def attempt(self) -> str:
        """The name of this attempt: the same after a session that was killed."""
        both = f"{self.id} {self.cases[0].asked}"
        digest = hashlib.sha256(both.encode()).hexdigest()[:16]
        return f"{digest}-{self.ordinal}"


@attrs.frozen(kw_only=True)
class Outcome:
    """What came of an assignment.

    Attributes:
        assignment: Which.
        path: The codemod; None if there is none.
        reason: Why not.
        rounds: Codemods that were dry-run.
        calls: Answers that it took.
        usd: What they cost now.
        is_over: The attempt has come to its end; if not, the same command goes on with
            it.
    """

    assignment: Assignment
    path: Path | None = None
    reason: str = ""
    rounds: int = 0
    calls: int = 0
    usd: float = 0.0
    is_over: bool = True


@attrs.define(kw_only=True)
class Conversation:
    """One attempt at one assignment.

    Attributes:
        assignment: What is to be written.
        ground: What it is tried on.
        correspondent: Who asks.
        settings: Limits.
        history: What was done to a symbol; raises LookupError where that is not known.
        show: Told what is going on, in a few words.
    """

    assignment: Assignment
    ground: Ground
    correspondent: Correspondent
    settings: AgentSettings
    history: Callable[[str], Sequence[Trace]]
    show: Callable[[str], None] = lambda text: None
    _messages: list[dict[str, Any]] = attrs.field(factory=list)
    _tried: Tried | None = None
    _is_checked: bool = False
    _rounds: int = 0
    _calls: int = 0
    _usd: float = 0.0

    def run(self) -> Outcome:
        """Return what came of it; a codemod that was accepted is written.

        Raises:
            Spent: The next call may cost more than is left.
            Unanswered: The server gives no answer.
            Barred: The server takes no question of ours.
            Stopped: The session ends.
        """
        a = self.assignment
        self._say(task(a.cases, a.earlier))
        why = f"no codemod after {self.settings.calls} answers"
        said_why = ""
        while self._calls < self.settings.calls:
            if self._rounds >= self.settings.rounds and not self._may_submit():
                s = "s" * (self._rounds != 1)
                why = f"no codemod after {self._rounds} round{s}"
                break
            self.show(f"round {self._rounds + 1} of {self.settings.rounds}")
            answer = self._ask("implement", implementing(self.ground.module))
            if answer.outcome == "refused":
                return self._ended("the model refused to answer")
            if answer.outcome == "truncated":
                self._rounds += 1  # each is as long as an answer may be
                self._say(CUT_OFF)
                continue
            uses = answer.tool_uses()
            if not uses:
                said = escaped(answer.text().strip())[:SHOWN_CHARACTERS] or "nothing"
                if said_why:  # asked again, it says so again
                    return self._ended(f"the model says: {said}")
                said_why = said
                if answer.content:
                    self._messages.append({
                        "role": "assistant",
                        "content": answer.content,
                    })
                self._say(NO_TOOL)
                continue
            self._messages.append({"role": "assistant", "content": answer.content})
            results = []
            for use in uses:
                result = self._result(use)
                if result is None:  # submitted, and agreed to
                    return self._written()
                results.append(result)
            self._messages.append({"role": "user", "content": results})
        return self._ended(f"{why}{self._last_failure()}")

    def _say(self, text: str) -> None:
        """Add a text to what was said to the model."""
        block = {"type": "text", "text": text}
        if self._messages and self._messages[-1]["role"] == "user":
            last = self._messages[-1]
            self._messages[-1] = {**last, "content": [*last["content"], block]}
        else:
            self._messages.append({"role": "user", "content": [block]})

    def _ask(
        self,
        purpose: str,
        system: tuple[str, ...],
        messages: Sequence[dict[str, Any]] | None = None,
    ) -> Answer:
        is_check = messages is not None
        answer = self.correspondent.ask(
            Question(
                purpose=purpose,
                id=self.assignment.id,
                attempt=self.assignment.attempt,
                system=system,
                messages=self._messages if messages is None else messages,
                tools=() if is_check else TOOLS,
                schema=AGREEMENT if is_check else None,
            )
        )
        self._calls += 1
        self._usd += answer.usd
        return answer

    def _result(self, use: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what a tool gives, or None if the codemod is accepted."""
        given = use["input"] if isinstance(use["input"], dict) else {}
        match use["name"], given:
            case "dry_run", {"source": str(source)}:
                content, is_error = self._dry_run(source)
            case "submit", _:
                content, is_error = self._submit()
                if not is_error:
                    return None
            case "read_symbol", {"name": str(name)}:
                content = symbol(name, self.ground.module)
                is_error = "error" in content
            case "tried", {"symbol": str(name)}:
                content, is_error = self._tried_on(name)
            case name, _:
                content = {
                    "error": f"there is no tool {name!r} with such an input",
                    "hint": "use one of: " + ", ".join(tool["name"] for tool in TOOLS),
                }
                is_error = True
        return {
            "type": "tool_result",
            "tool_use_id": use["id"],
            "content": quoted(content),
            "is_error": is_error,
        }

    def _dry_run(self, source: str) -> tuple[dict[str, Any], bool]:
        if self._rounds >= self.settings.rounds:
            return {"error": "no round is left"}, True
        self._rounds += 1
        self.show(f"dry run {self._rounds} of {self.settings.rounds}")
        self._tried, self._is_checked = (
            dry_run(source, self.assignment.cases, self.ground),
            False,
        )
        left = self.settings.rounds - self._rounds
        if self._tried.failures:
            return {
                "ok": False,
                "failures": [failure.to_json() for failure in self._tried.failures],
                "rounds_left": left,
            }, True
        return {
            "ok": True,
            "diffs": dict(self._tried.diffs),
            "notes": list(self._tried.notes),
            "rounds_left": left,
            "next": "submit, if the diff is what the spec asks for and nothing else",
        }, False

    def _may_submit(self) -> bool:
        """Whether the last dry run passed, and no reader has spoken against it."""
        return (
            self._tried is not None
            and not self._tried.failures
            and not self._is_checked
        )

    def _submit(self) -> tuple[dict[str, Any], bool]:
        """Let a reader who knows nothing else compare spec and diff."""
        if not self._may_submit():
            return {
                "error": "there is nothing to submit: the last dry run did not pass, "
                "or its codemod was submitted before",
                "hint": "call dry_run with a corrected file",
            }, True
        assert self._tried is not None
        self._is_checked = True
        self.show("check by a second reader")
        compared = comparison(self.assignment.cases, self._tried.diffs)
        message = {"role": "user", "content": [{"type": "text", "text": compared}]}
        answer = self._ask("check", (words("check"),), [message])
        match _read(answer):
            case {
                "does_what_is_asked": True,
                "does_nothing_else": True,
                "reason": str(),
            }:
                return {}, False
            case {
                "does_what_is_asked": bool(does_it),
                "does_nothing_else": bool(),
                "reason": str(reason),
            }:
                found = (
                    "the diff does more than the spec says"
                    if does_it
                    else "the diff does not do what the spec says"
                )
                reason = f"{found}: {escaped(reason)[:SHOWN_CHARACTERS]}"
            case _:
                reason = f"the reader gave no judgement ({answer.outcome})"
        failure = Failure(
            stage="check",
            reason=reason,
            hint="do what the spec says, wholly, and nothing else.",
        )
        self._tried = attrs.evolve(self._tried, failures=(failure,))
        left = self.settings.rounds - self._rounds
        return {
            "ok": False,
            "failures": [failure.to_json()],
            "rounds_left": left,
        }, True

    def _tried_on(self, name: str) -> tuple[dict[str, Any], bool]:
        try:
            return tried(self.history(name)), False
        except LookupError as error:
            return {"error": f"what was tried is not known: {error}"}, True

    def _last_failure(self) -> str:
        if self._tried is None:
            return "; none was dry-run"
        if not self._tried.failures:
            return "; the last dry run passed and was not submitted"
        last = self._tried.failures[0]
        case = f" ({last.case})" if last.case else ""
        said = escaped(last.reason.rstrip("."))[:SHOWN_CHARACTERS]
        return f"; the last one: {last.stage}{case}: {said}"

    def _written(self) -> Outcome:
        """Write the codemod that was accepted, whole or not at all."""
        assert self._tried is not None
        a = self.assignment
        case = a.cases[0]
        path = self.ground.project / place(case)
        path.parent.mkdir(parents=True, exist_ok=True)
        unnamed = path.with_name(f".{path.name}.tmp")
        unnamed.write_text(bound(self._tried.source, case.asked, a.id), "utf-8")
        os.replace(unnamed, path)
        # Behind the file: whoever is killed here has the codemod.
        self._record("implemented", None)
        return self._outcome(path=path)

    def _ended(self, reason: str) -> Outcome:
        self._record("unimplemented", reason)
        return self._outcome(reason=reason)

    def _record(self, outcome: str, reason: str | None) -> None:
        """Note that the attempt is over, for the next one and for SQL."""
        a = self.assignment
        row = {
            "attempt": a.attempt,
            "id": a.id,
            "spec": a.cases[0].asked,
            "model": self.settings.model,
            "outcome": outcome,
            "reason": reason,
            "rounds": self._rounds,
            "calls": self._calls,
            "codemod": None if self._tried is None else self._tried.source,
            "ended_at": datetime.now(UTC).replace(tzinfo=None).isoformat(),
        }
        journal = self.correspondent.journal
        journal.keep_note("attempt", a.attempt, {"attempt": row})

    def _outcome(self, **said: Any) -> Outcome:
        return Outcome(
            assignment=self.assignment,
            rounds=self._rounds,
            calls=self._calls,
            usd=self._usd,
            **said,
        )


def _read(answer: Answer) -> Any:
    """Return the data of an answer; None where it is none."""
    if answer.outcome != "answered":
        return None
    try:
        return json.loads(answer.text())
    except ValueError:
        return None
