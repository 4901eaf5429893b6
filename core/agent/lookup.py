"""What a model may look up: symbols of the code, and what was tried on one."""

import ast
import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from core.launch.log import escaped
from core.settings import LIBRARY
from core.store.history import Trace
from core.syntax import parse

MAX_SYMBOL_CHARACTERS = 16_000
LOG_LINES, LOG_CHARACTERS = 8, 160  # of a run's log that a prompt may quote
# What a codemod is written with, and what the training module calls
READABLE = (
    *("codemods/base.py", "codemods/constants.py", "codemods/functions.py"),
    *("codemods/statements.py", "codemods/parameters.py", "codemods/optimizer.py"),
    *("core/training/run.py", "core/training/kernels/__init__.py"),
    *("core/training/kernels/attention.py", "core/training/kernels/mlp.py"),
    "core/training/kernels/gemm.py",
)


def symbol(name: str, module: str) -> dict[str, Any]:
    """Return the source of a symbol, as plain data.

    Args:
        name: ``GPT.forward``, ``ROPE_BASE``, ``Codemod.transform_module``.
        module: Source of the training module, which is looked through first.
    """
    texts = {"the training module": module}
    texts |= {path: (LIBRARY / path).read_text() for path in READABLE}
    known: list[str] = []
    for place, text in texts.items():
        for found, node in _symbols(parse(text).body, ""):
            known.append(found)
            if found == name:
                source = ast.get_source_segment(text, node) or ""
                return {
                    "place": place,
                    "line": node.lineno,
                    "source": source[:MAX_SYMBOL_CHARACTERS],
                    "is_cut": len(source) > MAX_SYMBOL_CHARACTERS,
                }
    near = difflib.get_close_matches(name, dict.fromkeys(known), n=5, cutoff=0.5)
    return {
        "error": f"there is no symbol {escaped(name)[:80]!r} in what can be read",
        "hint": f"use one that is there: {', '.join(near)}"
        if near
        else "name a function, class, method or constant, as GPT.forward",
    }


def _symbols(body: Sequence[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.stmt]]:
    for node in body:
        match node:
            case ast.FunctionDef(name=name):
                yield prefix + name, node
            case ast.ClassDef(name=name, body=inside):
                yield prefix + name, node
                yield from _symbols(inside, f"{prefix}{name}.")
            case ast.Assign(targets=[ast.Name(id=name)]):
                yield prefix + name, node
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield prefix + name, node


def tried(traces: Sequence[Trace]) -> dict[str, Any]:
    """Return what was tried on a symbol, as plain data.

    What a run printed is trimmed, its control characters are written out, and it stays
    a list of quoted lines: it is data, whatever it says.
    """
    return {
        "tried": [
            {
                "experiment": trace.id,
                "edit": trace.edit,
                "old": _cut(trace.old_source),
                "new": _cut(trace.new_source),
                "word": trace.word,
                "delta_bpb": trace.delta_bpb,
                "profile": trace.profile,
                "reason": escaped(trace.reason or "")[:LOG_CHARACTERS],
                "end_of_log": [
                    escaped(line)[:LOG_CHARACTERS]
                    for line in trace.log_tail[-LOG_LINES:]
                ],
            }
            for trace in traces
        ]
    }


def _cut(source: str | None) -> str | None:
    return None if source is None else source[:600]


def quoted(content: Any) -> str:
    """Return *content* as JSON of ASCII characters: nothing in it ends a quotation."""
    return json.dumps(content, indent=1)


def vocabulary(folder: Path) -> str:
    """Return the built-in codemods: signatures, docstrings, examples, no bodies."""
    parts = []
    for name in ("constants", "functions", "statements", "parameters", "optimizer"):
        text = (folder / f"{name}.py").read_text()
        classes = [n for n in parse(text).body if isinstance(n, ast.ClassDef)]
        shown = [_outline(n, text) for n in classes if not n.name.startswith("_")]
        parts.append(f"# codemods/{name}.py\n\n" + "\n\n".join(shown))
    base = (folder / "base.py").read_text()
    helpers = [
        _head(node, base)
        for node in parse(base).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]
    parts.append("# codemods/base.py, beside Codemod\n\n" + "\n\n".join(helpers))
    return "\n\n".join(parts)


def _outline(node: ast.ClassDef, text: str) -> str:
    """Return a class without the bodies of its methods."""
    lines = text.splitlines()
    shown = lines[node.lineno - 1 : node.body[0].lineno - 1]
    for part in node.body:
        match part:
            case ast.Expr() | ast.Assign() | ast.AnnAssign():
                shown += [*lines[part.lineno - 1 : part.end_lineno], ""]
            case ast.FunctionDef(name="__init__"):
                shown.append(_head(part, text))
    return "\n".join(shown)


def _head(node: ast.FunctionDef, text: str) -> str:
    """Return a function up to its docstring."""
    first, *_ = node.body
    has_docstring = isinstance(first, ast.Expr) and ast.get_docstring(node)
    end = first.end_lineno if has_docstring else first.lineno - 1
    lines = text.splitlines()[node.lineno - 1 : end]
    return "\n".join([*lines, " " * (node.col_offset + 4) + "..."])
