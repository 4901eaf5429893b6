"""The command ``deltaspec``, for what is done beside a session of pytest.

Each command is a module of its name, imported when it is asked for.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence

from core.errors import DeltaspecError
from core.report import JSON_VERSION

# In the order in which an experiment needs them.
COMMANDS = {
    "new": "start an experiment, for you to fill in",
    "implement": "have the codemods written that experiments lack",
    "capture": "turn a hand-edited training module into a codemod",
    "dry-run": "apply the codemods of specs and show what they do; nothing is trained",
    "run": "test the experiments of specs, and wait for the verdicts",
    "queue": "test them beside this shell, after what is queued already",
    "wait": "wait for what is queued, and say what came of it",
    "show": "the verdicts on an experiment, newest first",
    "prepare": "fetch a corpus, train its tokenizer, pack it into rows",
}
FOR_PYTEST = ("dry-run", "run", "queue")  # they hand on what follows --
EXIT_ERROR = 1
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    options: list[str] = []
    if given and given[0] in FOR_PYTEST and "--" in given:
        at = given.index("--")
        given, options = given[:at], given[at + 1 :]
    known = argparse.Namespace(options=options)
    arguments = _parser(given).parse_args(given, known)
    is_json = getattr(arguments, "json", False)
    try:
        return arguments.command(arguments) or 0
    except DeltaspecError as error:
        if is_json:
            said = {"kind": type(error).__name__, "message": error.message}
            place = getattr(error, "place", "")
            emit(arguments.name, error={**said, "hint": error.hint, "place": place})
        print(error, file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print(
            "interrupted: nothing is half-made, and the same command goes on",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED


def emit(command: str, **content: object) -> None:
    """Print what a command found, as one line of JSON."""
    print(json.dumps({"version": JSON_VERSION, "command": command, **content}))


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser that knows the arguments of the one command that is asked for."""
    parser = argparse.ArgumentParser(
        prog="deltaspec", description="What is done beside `pytest specs/`."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="name")
    for name, text in COMMANDS.items():
        if name not in given:
            commands.add_parser(name, help=text)
            continue
        module = importlib.import_module(f"core.cli.{name.replace('-', '_')}")
        command = commands.add_parser(name, help=text, description=module.DESCRIPTION)
        command.set_defaults(command=module.run)
        module.add_arguments(command)
    return parser
