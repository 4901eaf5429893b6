"""Write experiments into spec files, in the layout that ``ruff format`` leaves alone."""

import ast
import textwrap
from collections.abc import Iterable
from pathlib import Path

from core.errors import SpecError
from core.syntax import Refused, bound, parse

WIDTH = 88  # of a line
VOCABULARY_MODULE = "core.spec"
CLASSES = ("Expect", "Experiment")  # that an experiment is written with


def experiment_text(
    name: str,
    *,
    hypothesis: str,
    change: str,
    delta_bpb: float | None = None,
    sd: float | None = None,
    within: float | None = None,
    on: str | None = None,
    tags: Iterable[str] = (),
) -> str:
    """Return the statement that binds *name* to an experiment, with its newline.

    Nothing is checked: `read_spec` refuses what is left empty, and says what to fill in.

    Args:
        name: The experiment.
        hypothesis: Why the change should help, or harm; white space counts as one space.
        change: What to change, likewise.
        delta_bpb: What is predicted, if anything.
        sd: How sure that is.
        within: For a prediction of no change: what still counts as the same.
        on: The profile that the prediction speaks of; None for the usual one.
        tags: Words for ``-k``.
    """
    lines = [*_sentence("hypothesis", hypothesis), *_sentence("change", change)]
    if delta_bpb is not None:
        fields = {"delta_bpb": delta_bpb, "sd": sd, "within": within}
        given = [
            f"{field}={value!r}" for field, value in fields.items() if value is not None
        ]
        given += [] if on is None else [f"on={quoted(on)}"]
        lines.append(f"expect=Expect({', '.join(given)}),")
    if tags := tuple(tags):
        lines += _tuple("tags", tags)
    body = "".join(f"    {line}\n" for line in lines)
    return f"{name} = Experiment(\n{body})\n"


def add_experiment(path: Path, text: str) -> None:
    """Put the statement *text* at the end of a spec file, which is made if need be.

    The rest of the file stays as it is; what *text* needs of the vocabulary is imported.

    Raises:
        SpecError: The file cannot be read, or binds the name already.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        about = path.stem.strip("_").replace("_", " ")
        source = f'"""What is believed about {about}."""\n'
    else:
        source = path.read_bytes().decode(errors="replace")
    try:
        tree = parse(source)
    except Refused as refused:
        raise SpecError(
            refused.message,
            hint="correct this first: nothing is added to a file that cannot be read.",
            place=f"{path.name}:{refused.line or 1}",
        ) from refused
    (name,) = bound(parse(text).body[0])
    for statement in tree.body:
        if name in bound(statement):
            raise SpecError(
                f"{name!r} is bound here already.",
                hint="take another name, or edit this experiment.",
                place=f"{path.name}:{statement.lineno}",
            )
    newline = "\r\n" if "\r\n" in source else "\n"
    source = source.replace("\r\n", "\n")
    source = _imported(source, tree, [used for used in CLASSES if f"{used}(" in text])
    added = f"{source.rstrip()}\n\n{text}".lstrip()
    path.write_bytes(added.replace("\n", newline).encode())


def quoted(text: str) -> str:
    """Return *text* as a literal with the quotes that ruff would choose."""
    quote = "'" if text.count('"') > text.count("'") else '"'
    body = "".join(
        character
        if character.isprintable() and character != "\\"
        else character.encode("unicode_escape").decode()
        for character in text
    )
    return quote + body.replace(quote, f"\\{quote}") + quote


def _imported(source: str, tree: ast.Module, names: list[str]) -> str:
    """Return *source* with *names* imported from the vocabulary."""
    imports = [
        node
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == VOCABULARY_MODULE
    ]
    known = {alias.name for node in imports for alias in node.names if not alias.asname}
    missing = [name for name in names if name not in known]
    if not missing:
        return source
    lines = source.split("\n")
    if imports:
        node = imports[0]
        aliases = [
            *missing,
            *(
                alias.name + (f" as {alias.asname}" if alias.asname else "")
                for alias in node.names
            ),
        ]
        start, end = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        rest = lines[end].encode()[node.end_col_offset :].decode()
        lines[start : end + 1] = [_import(aliases) + rest]
        return "\n".join(lines)
    at, above = 0, []
    for node in tree.body:  # the docstring, and `from __future__` behind it
        is_docstring = isinstance(node, ast.Expr) and not at
        if is_docstring or isinstance(node, ast.ImportFrom):
            at, above = node.end_lineno or node.lineno, [""]
    below = [""] if any(lines[at : at + 1]) else []
    lines[at:at] = [*above, _import(missing), *below]
    return "\n".join(lines)


def _import(names: Iterable[str]) -> str:
    """Return the import of *names*, classes first, as ruff sorts them."""
    ordered = sorted(set(names), key=lambda name: (name[0].islower(), name))
    return f"from {VOCABULARY_MODULE} import {', '.join(ordered)}"


def _sentence(field: str, text: str) -> list[str]:
    """Return ``field="text",``, in as many lines as it takes."""
    text = " ".join(text.split())
    line = f"{field}={quoted(text)},"
    if len(line) + 4 <= WIDTH:
        return [line]
    parts = textwrap.wrap(
        text,
        WIDTH - 4 - 4,  # the indent; two quotes, a space, a comma
        initial_indent=" " * (len(field) + 1),
        break_long_words=False,
        break_on_hyphens=False,
    )
    parts[0] = parts[0].lstrip()
    parts = [*(f"{part} " for part in parts[:-1]), parts[-1]]
    first, *rest = map(quoted, parts)
    lines = [f"{field}={first}", *rest]
    return [*lines[:-1], f"{lines[-1]},"]


def _tuple(field: str, items: tuple[str, ...]) -> list[str]:
    texts = list(map(quoted, items))
    comma = "," if len(texts) == 1 else ""
    line = f"{field}=({', '.join(texts)}{comma}),"
    if len(line) + 4 <= WIDTH:
        return [line]
    return [f"{field}=(", *(f"    {item}," for item in texts), "),"]
