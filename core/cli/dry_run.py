"""``deltaspec dry-run``: what ``pytest SPEC… --collect-only`` finds."""

import argparse

from core.cli.run import add_session, run_session
from core.report.outcome import DRY_RUN

DESCRIPTION = (
    "Apply the codemods of experiments and check what they make of the training module:"
    " no GPU, and nothing is trained. The exit code is pytest's; 0: all of it can run."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_session(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run pytest; return its exit code."""
    return run_session(arguments, DRY_RUN)
