"""Write edits as a codemod, in the layout that ``ruff format`` leaves alone."""

import re
from collections.abc import Sequence

from core.capture.edits import Edit
from core.spec.writing import WIDTH, quoted


def codemod_file(edits: Sequence[Edit], name: str, file: str, change: str) -> str:
    """Return the source of the codemod, as ``ruff format`` leaves it."""
    known = file if re.fullmatch(r"[\w.\- ]+", file) else "a copy"
    summary = _summary(change) or f"Make the edits of {known}"
    description = _summary(change) or f"Captured from {known}"
    body = "".join(_written(edit) for edit in edits)
    return (
        f'"""Captured from {known}."""\n\n'
        "from codemods.symbols import Edit, SymbolCodemod\n\n\n"
        f"class {name}(SymbolCodemod):\n"
        f'    """{summary}."""\n\n'
        f"    DESCRIPTION = {quoted(description)}\n\n"
        f"    EDITS = (\n{body}    )\n"
    )


def _summary(change: str) -> str:
    """Return *change* without its period if it fits a docstring's line, else nothing."""
    text = " ".join(change.split()).removesuffix(".")
    fits = len(text) <= WIDTH - 22 and text.isprintable()
    return text if fits and not set(text) & set('"\\') else ""


def _written(edit: Edit) -> str:
    """Return an edit as an argument of the codemod's."""
    texts = {"before": edit.before, "after": edit.after}
    arguments = [
        quoted(edit.symbol),
        *(f"{k}={_literal(text)}" for k, text in texts.items() if text is not None),
    ]
    if edit.follows is not None:
        arguments.append(f"follows={quoted(edit.follows)}")
    line = f"{' ' * 8}Edit({', '.join(arguments)}),\n"
    if len(line) <= WIDTH + 1 and "\n" not in line[:-1]:
        return line
    inner = "".join(f"{' ' * 12}{argument},\n" for argument in arguments)
    return f"{' ' * 8}Edit(\n{inner}{' ' * 8}),\n"


def _literal(text: str) -> str:
    """Return the literal of some lines, with as few escapes as possible."""
    lines = text.split("\n")
    if len(lines) == 2 and lines[0]:
        return quoted(lines[0])
    margin = " " * 12
    body = "\n" + "".join(f"{margin}{line}\n" if line else "\n" for line in lines[:-1])
    body += margin
    is_plain = all(c.isprintable() or c in "\n\t" for c in body)
    for quotes in ('"""', "'''"):
        if quotes not in body and is_plain:
            return f"{'r' if chr(92) in body else ''}{quotes}{body}{quotes}"
    escaped = "".join(
        c
        if (c.isprintable() and c != "\\") or c == "\n"
        else c.encode("unicode_escape").decode()
        for c in body
    )
    return '"""' + escaped.replace('"""', r"\"\"\"") + '"""'
