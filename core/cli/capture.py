"""``deltaspec capture``: make a codemod of a training module that was edited by hand."""

import argparse
import ast
import os
import tempfile
from pathlib import Path

from core.capture import Captured, Target, capture, target
from core.cli import emit
from core.errors import CaptureError, SpecError
from core.settings import find_project, read_settings
from core.spec import PROFILE_NAMES, read_spec
from core.spec.writing import add_experiment, experiment_text
from core.syntax import MAX_SOURCE_BYTES, Refused, bound, parse

DESCRIPTION = (
    "Compare an edited copy of the training module with the original, and write the"
    " codemod that turns one into the other, symbol by symbol; and the experiment, where"
    " there is none, for you to fill in."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="a copy of the training module, edited"
    )
    parser.add_argument(
        "--as",
        required=True,
        dest="experiment",
        metavar="SPEC::NAME",
        help="the experiment that it is for, as specs/x.py::idea",
    )
    parser.add_argument(
        "--replace", action="store_true", help="write over a codemod that is there"
    )
    parser.add_argument(
        "--hypothesis", default="", metavar="TEXT", help="why it should help, or harm"
    )
    parser.add_argument(
        "--change", default="", metavar="TEXT", help="what was changed, in a sentence"
    )
    parser.add_argument(
        "--delta-bpb",
        type=float,
        metavar="X",
        help="what is predicted for val_bpb; negative is an improvement",
    )
    parser.add_argument(
        "--on", choices=PROFILE_NAMES, help="the profile that the prediction speaks of"
    )
    parser.add_argument(
        "--tags", default="", metavar="A,B", help="words for -k, with commas between"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one line of JSON: docs/json.md"
    )


def run(arguments: argparse.Namespace) -> None:
    """Capture the edits, write codemod and experiment, and say what was captured."""
    project = find_project(Path.cwd())
    module = read_settings(project).training_module(project)
    experiment = target(arguments.experiment)
    codemod = project / experiment.codemod_file
    if codemod.exists() and not arguments.replace:
        raise CaptureError(
            f"{experiment.codemod_file} is there already.",
            hint="take another name, or write over it with --replace.",
        )
    is_new = _is_new(project, experiment)
    text = _experiment(arguments, experiment) if is_new else ""
    captured = capture(
        module.read_text(encoding="utf-8"),
        _edited(arguments.file),
        target=experiment,
        file=arguments.file.name,
        change=arguments.change,
    )
    if is_new:
        add_experiment(project / experiment.spec_file, text)
    _write(codemod, captured.source)
    steps = _next(project, experiment)
    if arguments.json:
        emit(
            "capture",
            codemod=experiment.codemod_file,
            spec=experiment.spec_file,
            experiment=experiment.id,
            changes=[
                {"symbol": row.symbol, "kind": row.kind, "edit": row.edit}
                for row in captured.changes
            ],
            warnings=list(captured.warnings),
            next=steps,
        )
        return
    print(report(captured, experiment, is_new, steps))


def report(
    captured: Captured, experiment: Target, is_new: bool, steps: list[str]
) -> str:
    """Return the lines that say what was captured, where it is, and what comes next."""
    rows = [(row.edit, f"{row.kind} {row.symbol}") for row in captured.changes]
    rows.append(("codemod", experiment.codemod_file))
    spec = experiment.spec_file if is_new else f"{experiment.spec_file} (as it was)"
    rows.append(("spec", spec))
    rows += [("warning", warning) for warning in captured.warnings]
    rows += [("next", step) for step in steps]
    return "\n".join(f"{name:<9}{text}" for name, text in rows)


def _edited(path: Path) -> str:
    """Return the text of the edited module.

    Raises:
        CaptureError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SOURCE_BYTES + 1)
        size = path.stat().st_size
    except OSError as error:
        raise CaptureError(
            f"{path} cannot be read: {error.strerror}.",
            hint="name the edited copy of the training module.",
        ) from error
    if len(content) > MAX_SOURCE_BYTES:
        raise CaptureError(
            f"{path.name} cannot be captured: {size:,} bytes is more than "
            f"{MAX_SOURCE_BYTES:,}.",
            hint="leave data out of the training module.",
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptureError(
            f"{path.name} is not UTF-8: {error.reason} at byte {error.start}.",
            hint="save it as UTF-8.",
        ) from error


def _is_new(project: Path, experiment: Target) -> bool:
    """Say whether the spec lacks the experiment.

    Raises:
        CaptureError: It is there, and a captured codemod would not be used.
        SpecError: The spec file cannot be read.
    """
    path = project / experiment.spec_file
    if not path.exists():
        return True
    try:
        tree = parse(path.read_bytes())
    except Refused as refused:
        raise SpecError(
            refused.message,
            hint="correct this first: nothing is added to a file that cannot be read.",
            place=f"{experiment.spec_file}:{refused.line or 1}",
        ) from refused
    for statement in tree.body:
        if experiment.name not in bound(statement):
            continue
        match statement:
            case (
                ast.Assign(value=ast.Call(keywords=keywords))
                | ast.AnnAssign(value=ast.Call(keywords=keywords))
            ):
                given = {keyword.arg for keyword in keywords}
            case _:
                given = set()
        if "codemod" in given:
            raise CaptureError(
                f"{experiment.id} names its codemod in codemod=.",
                hint="take codemod= out of it, or capture for an experiment of another "
                "name.",
            )
        if "sweep" in given:
            raise CaptureError(
                f"{experiment.id} has sweep=, and a captured codemod takes no values.",
                hint="take sweep= out of it, or capture for an experiment of another "
                "name.",
            )
        return False
    return True


def _experiment(arguments: argparse.Namespace, experiment: Target) -> str:
    """Return the experiment's text, if what was given for it can be read.

    Raises:
        CaptureError: A profile is named, and no prediction.
        SpecError: A field that was given breaks a rule.
    """
    if arguments.on is not None and arguments.delta_bpb is None:
        raise CaptureError(
            f"--on {arguments.on} says where a prediction holds, and there is none.",
            hint="predict with --delta-bpb, or leave --on out.",
        )
    fields = {
        "delta_bpb": arguments.delta_bpb,
        "on": arguments.on,
        "tags": [tag.strip() for tag in arguments.tags.split(",") if tag.strip()],
    }
    said = {"hypothesis": arguments.hypothesis, "change": arguments.change}
    # What is left empty is filled in later: it is no mistake yet.
    filled = {field: text if text.strip() else "?" for field, text in said.items()}
    with tempfile.TemporaryDirectory(prefix="deltaspec-") as folder:
        path = Path(folder, experiment.spec_file)
        add_experiment(path, experiment_text(experiment.name, **filled, **fields))
        _, errors = read_spec(path, Path(folder))
    for error in errors:
        error.place = ""  # it is nowhere yet
        raise error
    return experiment_text(experiment.name, **said, **fields)


def _write(path: Path, source: str) -> None:
    """Write a file that is there as a whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False
    ) as file:
        file.write(source)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def _next(project: Path, experiment: Target) -> list[str]:
    """Return what is left to do: what the spec lacks, and the dry run."""
    _, errors = read_spec(project / experiment.spec_file, project)
    return [
        *(f"{error.place}: {error.message} hint: {error.hint}" for error in errors),
        f"pytest {experiment.spec_file} -k {experiment.name} --collect-only -v",
    ]
