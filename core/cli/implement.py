"""``deltaspec implement``: have the codemods written that experiments lack."""

import argparse
import queue
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from core.agent.conversation import Outcome
from core.agent.writer import assignments
from core.cli import emit
from core.errors import SpecError, StoreError
from core.launch import examine
from core.plugin.agent import counted, open_writer, summary, told, why_not
from core.plugin.choice import choose
from core.plugin.dryrun import base_of, codemods_of
from core.plugin.lock import agent_lock
from core.plugin.options import AGENT_OPTIONS, Request, agent_of, user_cache
from core.process.child import Zygote
from core.profile import PROFILES
from core.settings import LIBRARY, TRAINING_MODULE, find_project, read_settings
from core.spec import Case, read_spec
from core.store.connection import Held, opened
from core.store.ingestion import ingest
from core.store.journal import Journal

DESCRIPTION = (
    "Have the codemods written that experiments lack, through the Anthropic API, and run"
    " nothing: `pytest --agent` writes and runs. What is there is never rewritten."
)
EXIT_UNIMPLEMENTED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "specs",
        nargs="+",
        metavar="SPEC",
        help="a spec file, a folder of them, or one experiment: specs/x.py::idea",
    )
    parser.add_argument(
        "--profile", choices=tuple(PROFILES), help="whose sizes diffs are shown in"
    )
    for name, options in AGENT_OPTIONS.items():
        parser.add_argument(name, **options)
    parser.add_argument("--json", action="store_true", help="print JSON (docs/json.md)")


def run(arguments: argparse.Namespace) -> int:
    """Write what is missing; return 1 if something still is."""
    project = find_project(Path.cwd())
    cases = [case for spec in arguments.specs for case in _cases(spec, project)]
    request = _request(arguments, project)
    cases = list(dict.fromkeys(cases))
    lacking = [case for case in cases if not codemods_of(case, request)]
    there = len({(case.file, case.name) for case in set(cases) - set(lacking)})
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    outcomes: list[Outcome] = []
    console = Console(stderr=True)
    lines: list[str] = []
    agent: dict[str, Any] = {}
    if lacking:
        with (
            agent_lock(project),
            Zygote(LIBRARY, (examine.MAIN,)) as zygote,
            console.status("") as status,
        ):
            writer = open_writer(
                request, base_of(request), zygote, ended.put, status.update
            )
            assigned = assignments(lacking, writer.correspondent.journal)
            writer.start(assigned)
            try:
                for _ in assigned:
                    outcome = ended.get()
                    if isinstance(outcome, BaseException):
                        raise outcome
                    outcomes.append(outcome)
                    console.print(
                        told(outcome), markup=False, highlight=False, soft_wrap=True
                    )
            finally:
                writer.stop()
                _insert(project)
        lines, agent = summary(writer, outcomes), counted(writer, outcomes)
    if arguments.json:
        emit(
            arguments.name,
            experiments=[_row(outcome, project) for outcome in outcomes],
            implemented_before=there,
            agent=agent or None,
        )
    elif not lacking:
        print(f"nothing to write: all {there} experiments have their codemods")
    else:
        print("\n".join(lines))
    return EXIT_UNIMPLEMENTED if any(o.path is None for o in outcomes) else 0


def _row(outcome: Outcome, project: Path) -> dict[str, Any]:
    path = outcome.path
    return {
        "id": outcome.assignment.id,
        "state": "unimplemented" if path is None else "implemented",
        "codemod": None if path is None else str(path.relative_to(project)),
        "reason": None if path is not None else why_not(outcome),
        "is_over": outcome.is_over,
        "rounds": outcome.rounds,
        "usd": outcome.usd,
    }


def _cases(spec: str, project: Path) -> Sequence[Case]:
    """Return the cases that an argument names.

    Raises:
        SpecError: There is no such file or experiment, or it says something impossible.
    """
    name, _, experiment = spec.partition("::")
    path = Path(name).resolve()
    files = sorted(path.rglob("[!_]*.py")) if path.is_dir() else [path]
    if not path.exists() or not path.is_relative_to(project / "specs"):
        raise SpecError(
            f"{name}: there is no such spec file under {project / 'specs'}.",
            hint="name a file or folder under specs/, as specs/attention.py.",
        )
    found: list[Case] = []
    for file in files:
        cases, errors = read_spec(file, project)
        if errors:
            raise errors[0]
        found += cases
    wanted = experiment.partition("[")[0]
    named = [case for case in found if not wanted or case.name == wanted]
    if not named:
        known = ", ".join(dict.fromkeys(case.name for case in found))
        raise SpecError(
            f"{name} has no experiment {wanted!r}.", hint=f"name one of: {known}."
        )
    return named


def _request(arguments: argparse.Namespace, project: Path) -> Request:
    settings = read_settings(project)
    module = settings.training_module(project)
    profile, devices, reason = choose(
        arguments.profile,
        shipped=module.resolve() == LIBRARY / TRAINING_MODULE,
        dry=True,
    )
    return Request(
        profile=profile,
        devices=devices,
        reason=reason,
        shared=False,
        seeds=None,
        base_seeds=None,
        corpus=None,
        rerun=False,
        strict=False,
        agent=agent_of(arguments, settings.agent),
        usd_per_mtok=arguments.usd_per_mtok,
        confined=True,
        project=project,
        library=LIBRARY,
        module=module,
        cache=user_cache(),
    )


def _insert(project: Path) -> None:
    """Bring the calls into runs.duckdb; they wait in runs/ where that cannot be."""
    try:
        with opened(project / "runs.duckdb", 0.0) as db:
            ingest(db, Journal(project / "runs"))
    except Held as held:
        print(f"runs.duckdb is open in {held.holder}: rows wait", file=sys.stderr)
    except StoreError as error:
        print(error, file=sys.stderr)
