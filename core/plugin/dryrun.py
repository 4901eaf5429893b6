"""Apply the codemods of the selected experiments, and show what they do."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import attrs

from core.errors import CodemodRefused, DeltaspecError, GateRefused, Stale
from core.gates import Work, configuration, passed
from core.mutate import (
    Job,
    Mutant,
    find_codemod,
    mutate,
    mutate_all,
    written_for,
)
from core.plugin.collect import Experiment
from core.plugin.options import Request
from core.spec import Case, CodemodCall

HOW = "Write one, name one in codemod=, or have one written by --agent."
WAITS = "--agent writes one."


def base_of(request: Request) -> Mutant:
    """Return the base: the training module with the sizes of the profile.

    Raises:
        MutationError: The sizes do not fit the module.
    """
    job = Job(
        source=request.module.read_text(), codemods=tuple(request.profile.overrides)
    )
    return mutate(
        job,
        project=request.project,
        cache=request.cache / "mutants",
        confined=request.confined,
    )


def apply_codemods(experiments: Sequence[Experiment], request: Request) -> Mutant:
    """Give each experiment its work, its problem, or the reason why it is skipped.

    Returns:
        The base.

    Raises:
        MutationError: The base cannot be made.
    """
    base = base_of(request)
    sizes = configuration(base.source)
    jobs: dict[Experiment, Job] = {}
    for item in experiments:
        try:
            calls = codemods_of(item.case, request)
        except (CodemodRefused, Stale) as error:
            item.problem = error
            continue
        if calls:
            item.case = attrs.evolve(item.case, codemods=calls)
            jobs[item] = Job(source=base.source, codemods=calls)
        else:
            item.is_unimplemented = True
            item.skip_reason = (
                f"unimplemented: there is no codemod at {_place(item.case)}. "
                + (WAITS if request.agent is not None else HOW)
            )
    mutants = mutate_all(
        list(jobs.values()),
        project=request.project,
        cache=request.cache / "mutants",
        confined=request.confined,
    )
    first: dict[str, Experiment] = {}
    for item, mutant in zip(jobs, mutants, strict=True):
        if isinstance(mutant, DeltaspecError):
            item.problem = mutant
            continue
        try:
            item.work = passed(item.case, mutant, sizes)
        except GateRefused as refused:
            item.problem = refused
            resolved = configuration(mutant.source)
            item.refused = Work(case=item.case, mutant=mutant, configuration=resolved)
            continue
        except DeltaspecError as error:
            item.problem = error
            continue
        twin = first.setdefault(mutant.digest, item)
        if twin is not item:
            item.note = f"  (the same module as {twin.case.id})"
    return base


def codemods_of(case: Case, request: Request) -> tuple[CodemodCall, ...]:
    """Return the codemods that the spec names, or the one that was written for it.

    Raises:
        CodemodRefused: Its file is there, and holds not one codemod.
        Stale: It was written for another wording of the spec.
    """
    if case.codemods:
        return case.codemods
    spec = PurePosixPath(case.file).with_suffix("").parts[1:]
    reference = find_codemod(request.project, spec, case.name)
    if reference is None:
        return ()
    bound_to = written_for(request.project, spec, case.name)
    if bound_to not in (None, case.asked):
        raise Stale(
            f"{_place(case)} was written for another wording of the spec "
            f"({bound_to}): its change, or an axis of its sweep, is not what it was.",
            hint="read the codemod beside the spec; if it still does what is asked, set "
            f'WRITTEN_FOR = "{case.asked}" in it; if not, correct it, or remove it and '
            "have another one written by --agent.",
        )
    return (CodemodCall(reference=reference, options=case.values),)


def _place(case: Case) -> str:
    folder = PurePosixPath("codemods", *PurePosixPath(case.file).parts[1:])
    return f"{folder.with_suffix('')}/{case.name}.py"


def write_report(
    experiments: Sequence[Experiment],
    terminal: Any,
    *,
    verbosity: int,
    past: dict[str, str],
) -> None:
    """Write what a dry run found, below the tree that pytest wrote.

    Args:
        experiments: Those selected.
        terminal: pytest's terminal reporter.
        verbosity: From 1 on, with the diff of each.
        past: The latest word on each mutant that was judged before, by digest.
    """
    applied = [item for item in experiments if item.work is not None]
    if verbosity > 0:
        for item in applied:
            assert item.work is not None
            terminal.section(item.case.id, sep="-")
            _write_diff(item.work.mutant.diff, terminal)
    problems = [item for item in experiments if item.problem is not None]
    skipped = [item for item in experiments if item.skip_reason]
    twins = [item for item in applied if item.note]
    judged = [(i, past.get(i.work.mutant.digest)) for i in applied if i.work]
    terminal.write_line("")
    for item in problems:
        terminal.write_line(
            f"{item.case.id} ({item.case.file}:{item.case.line})", red=True
        )
        terminal.write_line(_indented(str(item.problem)))
    for item in skipped:
        terminal.write_line(f"{item.case.id} {item.skip_reason}", yellow=True)
    for item in twins:
        terminal.write_line(f"{item.case.id}{item.note}", yellow=True)
    for item, word in judged:
        if word is not None:
            terminal.write_line(f"{item.case.id}  (run before: {word})")
    counts = {
        "applied": len(applied),
        "cannot run": len(problems),
        "unimplemented": len(skipped),
        "twice": len(twins),
        "run before": sum(word is not None for _, word in judged),
    }
    said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    terminal.write_line(f"dry run: {said}; nothing was trained")


def _write_diff(diff: str, terminal: Any) -> None:
    for line in diff.splitlines():
        markup = {
            "+": {"green": True},
            "-": {"red": True},
            "@": {"cyan": True},
        }.get(line[:1], {})
        terminal.write_line(line, **({} if line[:3] in ("+++", "---") else markup))


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.splitlines())
