"""Spec files as pytest nodes: nothing under specs/ is imported or executed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import DeltaspecError, SpecError
from core.gates import Work
from core.spec import Case, read_spec

SHOWN_CHARACTERS = 70


class BrokenSpec(Exception):
    """A spec file has errors; its experiments are not run."""

    def __init__(self, errors: list[SpecError]) -> None:
        super().__init__(f"{len(errors)} errors")
        self.errors = errors

    def __str__(self) -> str:
        return "\n\n".join(str(error) for error in self.errors)


class SpecFile(pytest.File):
    """A file of experiments."""

    def collect(self) -> Iterator["Experiment"]:
        """Yield one item for each case.

        Raises:
            BrokenSpec: Something in the file is impossible.
        """
        cases, errors = read_spec(self.path, self.config.rootpath)
        if errors:
            raise BrokenSpec(errors)
        for case in cases:
            yield Experiment.from_parent(self, name=case.label, case=case)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> Any:
        """Show the errors of a broken spec as they are."""
        if isinstance(excinfo.value, BrokenSpec):
            return str(excinfo.value)
        return super().repr_failure(excinfo)


class Experiment(pytest.Item):
    """One case, as a test.

    Attributes:
        case: What the spec says.
        work: The case with its mutant, once the codemods were applied.
        problem: Why it cannot run, if it cannot.
        refused: The case with its mutant, if a gate is the problem: that is a verdict.
        skip_reason: Why it is not run, if it is not.
        is_unimplemented: It has no codemod.
        note: What a dry run adds to its line.
    """

    def __init__(self, *, case: Case, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.case = case
        self.work: Work | None = None
        self.problem: DeltaspecError | None = None
        self.refused: Work | None = None
        self.skip_reason = ""
        self.is_unimplemented = False
        self.note = ""
        self.extra_keyword_matches.update(case.tags)
        self.extra_keyword_matches.update(str(value) for _, value in case.values)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Return where the experiment stands."""
        return self.path, self.case.line - 1, self.name

    def runtest(self) -> None:
        """Experiments run side by side, not one by one.

        Raises:
            AssertionError: Always; the plugin's own protocol runs them.
        """
        raise AssertionError("the scheduler runs experiments")

    def __repr__(self) -> str:
        return f"<Experiment {self.name}>{self._shown()}"

    def _shown(self) -> str:
        if self.problem is not None:
            return f"  ✗ {_cut(self.problem.message)}"
        if self.skip_reason:
            return f"  – {_cut(self.skip_reason)}"
        if self.work is None:
            return ""
        return f"  {_cut('; '.join(map(_change, self.work.mutant.changes)))}{self.note}"


def _change(change: Any) -> str:
    if change.kind == "constant" and change.edit == "changed":
        return f"{change.symbol}: {change.old} → {change.new}"
    mark = {"added": "+", "changed": "~", "removed": "-", "moved": "↕"}[change.edit]
    return f"{mark}{change.symbol}"


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 1]}…"
