"""What ``--json`` leaves behind, however a session ends."""

import os
from pathlib import Path

import attrs
import pytest

from core.errors import DeltaspecError
from core.plugin.session import PLUGIN_NAME, Session
from core.report.outcome import (
    DRY_RUN,
    RUN,
    Selected,
    document,
    encoded,
    error,
    experiment,
    failure,
)

READ_THAT = "read what pytest printed."


def place_of(config: pytest.Config) -> Path:
    """Return the file that ``--json`` names.

    Raises:
        UsageError: It cannot be written.
    """
    path = config.invocation_params.dir / config.option.json
    if not os.access(path.parent, os.W_OK) or path.is_dir():
        why = "it is a folder" if path.is_dir() else f"{path.parent} takes no file"
        raise pytest.UsageError(
            f"--json={config.option.json} cannot be written: {why}.\n\n"
            "hint: name a file in a folder that you can write to."
        )
    return path


def write_document(
    config: pytest.Config,
    path: Path,
    exit_code: int,
    refused: pytest.UsageError | None = None,
) -> None:
    """Write what a session found to *path*, whole or not at all.

    Args:
        config: pytest's.
        path: As `place_of` has it.
        exit_code: How the session ended.
        refused: Why it could not run, if it could not.
    """
    session = config.pluginmanager.get_plugin(PLUGIN_NAME)
    command = DRY_RUN if config.option.collectonly else RUN
    said = _refusal(refused)
    if exit_code == pytest.ExitCode.INTERNAL_ERROR:
        said = failure("InternalError", "pytest itself failed.", hint=READ_THAT)
    content = document(
        command=command,
        exit_code=int(exit_code),
        error=said,
        **({} if session is None else _found(session, command)),
    )
    unnamed = path.with_name(f".{path.name}.{os.getpid()}")
    with open(unnamed, "w", encoding="utf-8") as file:
        file.write(encoded(content) + "\n")
        file.flush()
        os.fsync(file.fileno())
    unnamed.replace(path)


def _refusal(refused: pytest.UsageError | None) -> dict[str, str] | None:
    if refused is None:
        return None
    if isinstance(refused.__cause__, DeltaspecError):
        return error(refused.__cause__)
    message, _, hint = "\n".join(map(str, refused.args)).partition("\n\nhint: ")
    return failure("UsageError", message.strip(), hint=hint.strip() or READ_THAT)


def _found(session: Session, command: str) -> dict[str, object]:
    """Return what *session* knows, by argument of `document`."""
    trials = session.trials
    first: dict[str, str] = {}
    experiments = []
    for item in session.experiments:
        work = item.work or item.refused
        twin = run_before = None
        if work is not None:
            digest, case = work.mutant.digest, item.case
            twin = first.setdefault(digest, case.id)
            run_before = session.past.get(digest)
        selected = Selected(
            case=item.case,
            work=work,
            problem=item.problem,
            skip_reason=item.skip_reason,
            told=None if trials is None else trials.told.get(item.case.id),
            same_module_as=None if twin == item.case.id else twin,
            run_before=run_before,
        )
        experiments.append(experiment(selected, command))
    context = None if trials is None else trials.lab.context
    return {
        "context": None
        if context is None
        else {"context": context.digest, **attrs.asdict(context)},
        "experiments": experiments,
        "errors": [error(broken) for broken in session.broken],
        "agent": None if trials is None else trials.agent_did(),
    }
