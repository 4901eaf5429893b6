"""Let the agent write the codemods that experiments lack."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from core.agent.budget import Budget
from core.agent.calls import Correspondent
from core.agent.conversation import Assignment, Outcome
from core.agent.dryrun import Ground
from core.agent.prices import price_of
from core.agent.writer import Writer
from core.errors import DeltaspecError, StoreError
from core.gates import Work
from core.launch.examine import Examined
from core.mutate import Job, Mutant, mutate
from core.plugin.gating import examined
from core.plugin.options import Request
from core.process.child import Zygote
from core.profile import PROFILES
from core.store.connection import reading
from core.store.history import Trace, traces
from core.store.journal import Journal

DATABASE = "runs.duckdb"


def open_writer(
    request: Request,
    base: Mutant,
    zygote: Zygote,
    done: Callable[[Outcome | Exception], None],
    show: Callable[[str], None],
) -> Writer:
    """Return what writes codemods in the background; nothing is asked yet.

    Args:
        request: What the session was asked to do, with the agent.
        base: The base module, sizes included.
        zygote: Forks the processes that examine modules.
        done: Told of each outcome, from another thread.
        show: Told what is going on, likewise.

    Raises:
        SessionError: There is no key, no client, or no price.
    """
    settings = request.agent
    assert settings is not None
    correspondent = Correspondent(
        settings=settings,
        price=price_of(settings.model, request.usd_per_mtok),
        budget=Budget(usd=settings.usd),
        journal=Journal(request.project / "runs"),
    )

    def examine(works: Sequence[Work], project: Path) -> Mapping[str, Examined]:
        # Where a codemod is tried, not where it will stand
        there = attrs.evolve(request, project=project)
        return examined(works, there, zygote, lambda stage, share: None)

    def history(symbol: str) -> Sequence[Trace]:
        database = request.project / DATABASE
        if not database.exists():
            return ()
        try:
            with reading(database) as db:
                return traces(db, symbol)
        except StoreError as error:
            raise LookupError(error.message) from error

    return Writer(
        settings=settings,
        ground=Ground(
            project=request.project,
            module=request.module.read_text(),
            bases=_bases(request, base),
            confined=request.confined,
            cache=request.cache / "mutants",
            examine=examine,
        ),
        correspondent=correspondent,
        history=history,
        done=done,
        show=show,
    )


def _bases(request: Request, base: Mutant) -> dict[str, Mutant]:
    """Return the module in the sizes of every profile that it has, the session's first.

    A codemod that is written on a laptop is meant for a GPU.
    """
    bases = {request.profile.name: base}
    for name, profile in PROFILES.items():
        if name in bases:
            continue
        job = Job(source=request.module.read_text(), codemods=profile.overrides)
        try:
            bases[name] = mutate(
                job,
                project=request.project,
                cache=request.cache / "mutants",
                confined=request.confined,
            )
        except DeltaspecError:  # a module of one's own need not have all of them
            continue
    return bases


def planned_by(writer: Writer, assigned: Sequence[Assignment]) -> str:
    """Return what to say before the first call."""
    count = len(assigned)
    return (
        f"writes {count} codemod{'s' * (count != 1)} with {writer.settings.model}, for "
        f"at most ${writer.budget.usd:g}"
    )


def told(outcome: Outcome) -> str:
    """Return what to say of an outcome, in a line."""
    a = outcome.assignment
    rounds = f"{outcome.rounds} round{'s' * (outcome.rounds != 1)}"
    if outcome.path is not None:
        return f"{a.id}: {outcome.path.name} written, {rounds}, ${outcome.usd:.3f}"
    return f"{a.id}: {why_not(outcome)}"


def why_not(outcome: Outcome) -> str:
    """Return why an experiment is not implemented, and what to do."""
    rest = (
        "What was tried is kept: --agent begins another attempt with it."
        if outcome.is_over
        else "What was answered is kept, and the same command goes on."
    )
    reason = outcome.reason.rstrip(".")
    end = "" if reason.endswith(("?", "!")) else "."
    return f"unimplemented: {reason}{end} {rest}"


def summary(writer: Writer, outcomes: Sequence[Outcome]) -> list[str]:
    """Return what the agent did, and what that cost."""
    written = sum(outcome.path is not None for outcome in outcomes)
    totals, budget = writer.totals, writer.budget
    said = [f"{written} written"]
    if len(outcomes) > written:
        said.append(f"{len(outcomes) - written} unimplemented")
    known = f" ({totals.known} known answers used again)" if totals.known else ""
    return [
        f"agent   {writer.settings.model}: {', '.join(said)}; {totals.calls} calls{known}",
        f"        {totals.prompt_tokens:,} tokens in ({totals.cached_tokens:,} from the "
        f"cache), {totals.output_tokens:,} out",
        f"        ${budget.spent_usd:.3f} of ${budget.usd:g}",
    ]


def counted(writer: Writer, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the same as plain data."""
    return {
        "model": writer.settings.model,
        "written": sum(outcome.path is not None for outcome in outcomes),
        "unimplemented": sum(outcome.path is None for outcome in outcomes),
        **attrs.asdict(writer.totals),
        "usd": writer.budget.spent_usd,
        "usd_limit": writer.budget.usd,
    }
