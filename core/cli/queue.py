"""``deltaspec queue``: sessions that go on while the caller does something else."""

import argparse
import sys
from pathlib import Path
from typing import Any

from core.cli import EXIT_ERROR, emit
from core.errors import DeltaspecError, SessionError, SpecError
from core.launch.log import escaped
from core.queue import Job, Queue
from core.report.outcome import error
from core.settings import find_project
from core.spec import Case, read_spec

DESCRIPTION = (
    "Test the experiments of specs beside this shell, after what is queued already; one"
    " session of a project runs at a time. What follows -- goes to pytest. Without SPEC:"
    " list what is queued, running and done. `deltaspec wait` waits for it."
)
SPECS = "specs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.usage = "%(prog)s [SPEC…] [--stop] [--json] [-- PYTEST OPTIONS]"
    parser.add_argument(
        "specs",
        metavar="SPEC",
        nargs="*",
        help="a spec file, a folder of them, or a pytest id: specs/idea.py::name",
    )
    parser.add_argument(
        "--stop",
        action="store_true",
        help="interrupt what runs and take out what waits; finished trials are kept",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document (docs/json.md)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Queue, list or stop."""
    here = Path.cwd()
    project = find_project(here)
    queue = Queue(project)
    if (arguments.stop or not arguments.specs) and arguments.options:
        raise SessionError(
            f"-- {' '.join(arguments.options)}: pytest's options need a SPEC.",
            hint="name what to run: deltaspec queue specs/idea.py -- --seeds 2.",
        )
    if arguments.stop and arguments.specs:
        raise SessionError(
            f"--stop ends all that is queued, and {arguments.specs[0]} was named.",
            hint="leave out --stop, or the specs.",
        )
    errors: list[DeltaspecError] = []
    if arguments.stop:
        jobs = queue.stop()
    elif arguments.specs:
        errors = [e for spec in arguments.specs for e in _wrong(spec, here, project)]
        jobs = []
        if not errors:
            jobs = [queue.put(arguments.specs, arguments.options, here)]
    else:
        jobs = queue.jobs()
    if arguments.json:
        said = [told(job, project) for job in jobs]
        emit("queue", jobs=said, errors=[error(found) for found in errors])
    elif not errors:
        print("\n".join(map(line, jobs)) or "no job is queued")
    if errors:
        print("\n\n".join(map(str, errors)), file=sys.stderr)
        return EXIT_ERROR
    return 0


def told(job: Job, project: Path, *, with_result: bool = False) -> dict[str, Any]:
    """Return what a document says of a job."""
    return {
        "job": job.name,
        "specs": list(job.specs),
        "options": list(job.options),
        "state": job.state,
        "exit_code": job.exit_code,
        "queued_at": job.queued_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "progress": job.progress,
        "output": str(job.output.relative_to(project)),
        "result": job.result if with_result else None,
    }


def line(job: Job) -> str:
    """Return one line on a job."""
    ended = "" if job.exit_code is None else f", exit code {job.exit_code}"
    specs = escaped(" ".join((*job.specs, *job.options)))
    progress = f"  {job.progress}" if job.progress else ""
    return f"job {job.name}  {job.state}{ended}  {specs}{progress}"


def _wrong(spec: str, here: Path, project: Path) -> list[DeltaspecError]:
    """Return why pytest would not run *spec*, before it waits for hours to be told."""
    name, _, label = spec.partition("::")
    path = (here / name).resolve()
    if not path.exists():
        return [
            SessionError(
                f"{spec}: there is no file {path}.",
                hint="name a spec file, a folder of them, or an id as pytest has it: "
                "specs/idea.py::name.",
            )
        ]
    if not path.is_relative_to(project / SPECS):
        return [
            SessionError(
                f"{spec} is not below {project / SPECS}.",
                hint="name specs: the queue runs nothing else.",
            )
        ]
    files = sorted(path.rglob("[!_]*.py")) if path.is_dir() else [path]
    cases: list[Case] = []
    errors: list[SpecError] = []
    for file in files:
        found, wrong = read_spec(file, project)
        cases += found
        errors += wrong
    if errors:
        return [*errors]
    if not cases:
        return [
            SessionError(
                f"{spec} holds no spec file.", hint="write one: deltaspec new NAME."
            )
        ]
    if label and label not in {n for case in cases for n in (case.name, case.label)}:
        labels = ", ".join(case.label for case in cases)
        return [
            SessionError(
                f"{name} has no experiment {label!r}.",
                hint=f"name one that it has: {labels}.",
            )
        ]
    return []
