"""``deltaspec wait``: until queued sessions have ended, or the time is over."""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from core.cli import EXIT_INTERRUPTED, emit
from core.cli.queue import line, told
from core.errors import SessionError
from core.queue import Job, Queue, latest
from core.settings import find_project

DESCRIPTION = (
    "Wait for jobs of the queue: those named, or all since it was last empty. The exit"
    " code is 0 if all ended with 0, else the largest that pytest ended with; 75: still"
    " running when the time was over, so wait again."
)
EXIT_RUNNING = 75  # EX_TEMPFAIL, sysexits(3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "jobs", metavar="JOB", nargs="*", help="a number that queue has printed"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="return after so long at the latest",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document (docs/json.md)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Wait, and say what came of the jobs."""
    timeout = arguments.timeout
    if timeout is not None and not 0 <= timeout < math.inf:
        raise SessionError(
            f"--timeout {timeout:g} is not a time to wait.",
            hint="give seconds, as --timeout 540, or leave it out.",
        )
    project = find_project(Path.cwd())
    queue = Queue(project)
    names = _names(queue, arguments.jobs)
    try:
        if not arguments.json:
            listed = f"job{'s' * (len(names) > 1)} {', '.join(names)}"
            print(
                f"waiting for {listed}: Ctrl-C ends the waiting alone", file=sys.stderr
            )
        jobs = queue.wait(names, timeout)
    except KeyboardInterrupt:
        print(
            "the jobs go on without you: deltaspec wait waits for them again, deltaspec "
            "queue --stop ends them",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    unfinished = any(job.is_unfinished for job in jobs)
    code = max((job.exit_code or 0 for job in jobs), default=0)
    code = EXIT_RUNNING if unfinished else code
    if arguments.json:
        said = [told(job, project, with_result=True) for job in jobs]
        emit("wait", exit_code=code, jobs=said)
        return code
    for job in jobs:
        print(line(job))
        for experiment in (job.result or {}).get("experiments", ()):
            print(f"  {_outcome(experiment)}")
    return code


def _names(queue: Queue, asked: list[str]) -> list[str]:
    """Return the names of the jobs to wait for.

    Raises:
        SessionError: There is no such job, or none at all.
    """
    jobs: list[Job] = queue.jobs()
    if not jobs:
        raise SessionError(
            "no job was ever queued in this project.",
            hint="queue one: deltaspec queue specs/idea.py.",
        )
    names = [job.name for job in jobs]
    for name in asked:
        if name not in names:
            raise SessionError(
                f"there is no job {name!r}; the last one is {names[-1]}.",
                hint="see which there are: deltaspec queue.",
            )
    return asked or [job.name for job in latest(jobs)]


def _outcome(experiment: dict[str, Any]) -> str:
    """Return one line on an experiment of a document."""
    said = f"{experiment['word'] or experiment['state']:<13} {experiment['id']}"
    if experiment["delta_bpb"] is not None:
        said += f"  {experiment['delta_bpb']:+.4f}"
    return said
