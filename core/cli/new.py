"""``deltaspec new``: start an experiment, for you to fill in."""

import argparse
import re
from pathlib import Path

from core.cli import emit
from core.errors import SpecError
from core.settings import find_project
from core.spec import PROFILE_NAMES, Expect, Experiment
from core.spec.vocabulary import NAME, SAID
from core.spec.writing import add_experiment, experiment_text

DESCRIPTION = (
    "Write an experiment into specs/TOPIC.py, which is made if need be. What is not given"
    " is left empty: a dry run says what to fill in."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "experiment",
        metavar="NAME",
        help="topic, topic::experiment, or the file: specs/topic.py::experiment",
    )
    parser.add_argument(
        "--tags", default="", metavar="A,B", help="words for -k, with commas between"
    )
    parser.add_argument(
        "--hypothesis", default="", metavar="TEXT", help="why it should help, or harm"
    )
    parser.add_argument(
        "--change", default="", metavar="TEXT", help="what to change, as an instruction"
    )
    parser.add_argument(
        "--delta-bpb",
        type=_number,
        metavar="X",
        help="what is predicted for val_bpb; negative is an improvement",
    )
    parser.add_argument(
        "--sd", type=_number, metavar="X", help="how sure that is: a standard deviation"
    )
    parser.add_argument(
        "--within",
        type=_number,
        metavar="X",
        help="predict no change: how far from 0 still counts as the same",
    )
    parser.add_argument(
        "--on", choices=PROFILE_NAMES, help="the profile that the prediction speaks of"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one line of JSON: docs/json.md"
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the experiment; say where it is, what is empty, and what comes next."""
    project = find_project(Path.cwd())
    spec, name = _place(arguments.experiment)
    file = f"specs/{spec}.py"
    add_experiment(project / file, _text(arguments, name))
    empty = [field for field in SAID if not getattr(arguments, field).strip()]
    codemod = f"codemods/{spec}/{name}.py"
    steps = [f"deltaspec {command} {file}::{name}" for command in ("dry-run", "run")]
    if arguments.json:
        emit(
            "new",
            spec=file,
            experiment=f"{file}::{name}",
            empty=empty,
            codemod=codemod,
            next=steps,
        )
        return
    how = (
        "is there"
        if (project / codemod).exists()
        else "write it, or name one in codemod="
    )
    rows = [
        ("spec", f"{file}::{name}"),
        *(("empty", f"{field}, {SAID[field]}") for field in empty),
        ("codemod", f"{codemod} ({how})"),
        *(("next", step) for step in steps),
    ]
    print("\n".join(f"{row:<9}{text}" for row, text in rows))


def _number(text: str) -> float | str:
    """Return a number, or what `Expect` says of a text that is none."""
    try:
        return float(text)
    except ValueError:
        return text


def _place(given: str) -> tuple[str, str]:
    """Return the spec file below ``specs/``, without suffix, and the experiment.

    Raises:
        SpecError: They break the rule for names.
    """
    path, _, name = given.partition("::")
    parts = path.removeprefix("specs/").removesuffix(".py").split("/")
    name = name or parts[-1]
    for part in (*parts, name):
        if not NAME.fullmatch(part):
            words = re.sub(r"[^a-z0-9]+", "_", part.lower()).strip("_")
            where = "" if part == given else f" in {given!r}"
            raise SpecError(
                f"{part!r}{where} does not match {NAME.pattern}.",
                hint=f"use lower case and underscores: {words}."
                if NAME.fullmatch(words)
                else "name topic and experiment as in attention::rope_base.",
            )
    return "/".join(parts), name


def _text(arguments: argparse.Namespace, name: str) -> str:
    """Return the text of the experiment.

    Raises:
        SpecError: What was given would be refused when the spec is read.
    """
    delta_bpb = arguments.delta_bpb
    if delta_bpb is None and arguments.within is not None:
        delta_bpb = 0
    prediction = {
        field: value
        for field in ("sd", "within", "on")
        if (value := getattr(arguments, field)) is not None
    }
    if delta_bpb is None and prediction:
        field = next(iter(prediction))
        raise SpecError(
            f"--{field} {prediction[field]} is part of a prediction, and there is none.",
            hint=f"predict with --delta-bpb, or leave --{field} out.",
        )
    said = {field: getattr(arguments, field) for field in SAID}
    tags = tuple(tag.strip() for tag in arguments.tags.split(",") if tag.strip())
    Experiment(  # refuses what the reader would; what is empty is filled in later
        **{field: text if text.strip() else "?" for field, text in said.items()},
        expect=None if delta_bpb is None else Expect(delta_bpb=delta_bpb, **prediction),
        tags=tags,
    )
    return experiment_text(name, **said, delta_bpb=delta_bpb, **prediction, tags=tags)
