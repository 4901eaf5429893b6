"""The command ``deltaspec``, for what is done beside a session of pytest.

Each command is a module of its name, imported when it is asked for.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence

from core.errors import DeltaspecError

# In the order in which an experiment needs them.
COMMANDS = {
    "prepare": "fetch a corpus, train its tokenizer, pack it into rows",
}
JSON_VERSION = 1  # of what --json prints: docs/json.md
EXIT_ERROR = 1
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser(given).parse_args(given)
    is_json = getattr(arguments, "json", False)
    try:
        return arguments.command(arguments) or 0
    except DeltaspecError as error:
        if is_json:
            said = {"message": error.message, "hint": error.hint}
            emit(arguments.name, error={"kind": type(error).__name__, **said})
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
