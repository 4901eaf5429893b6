"""``deltaspec run``: what ``pytest SPEC…`` does, with one document for programs."""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from core.report.outcome import DRY_RUN, RUN, encoded
from core.session import command, exit_code, read_document, started

DESCRIPTION = (
    "Test the experiments of specs. What follows -- goes to pytest: deltaspec run"
    " specs/idea.py -- --seeds 2 -x. The exit code is pytest's: 0, all have a verdict or"
    " a measurement; 1, something crashed, is invalid or could not be applied; 2,"
    " interrupted; 4, it cannot run as asked; 5, no experiment was selected."
)


def add_session(parser: argparse.ArgumentParser) -> None:
    """Declare what a command takes that runs pytest."""
    parser.usage = "%(prog)s SPEC… [--json] [-- PYTEST OPTIONS]"
    parser.add_argument(
        "specs",
        metavar="SPEC",
        nargs="+",
        help="a spec file, a folder of them, or a pytest id: specs/idea.py::name",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON document (docs/json.md); what pytest says goes to stderr",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_session(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run pytest; return its exit code."""
    return run_session(arguments, RUN)


def run_session(arguments: argparse.Namespace, name: str) -> int:
    """Run pytest as *name* says: DRY_RUN or RUN."""
    specs, options = arguments.specs, arguments.options
    is_dry = name == DRY_RUN
    if not arguments.json:  # terminal, signals and exit code are then pytest's own
        pytest = command(specs, options, is_dry=is_dry)
        os.execv(pytest[0], pytest)
    with tempfile.TemporaryDirectory(prefix="deltaspec-") as folder:
        document = Path(folder) / "document.json"
        sys.stderr.flush()
        child = started(
            command(specs, options, is_dry=is_dry, document=document),
            cwd=None,
            output=sys.stderr,
        )
        signal.signal(signal.SIGINT, lambda *_: child.send_signal(signal.SIGINT))
        code = exit_code(child)
        found = read_document(document, command=name, exit_code=code)
    print(encoded(found))
    return code
