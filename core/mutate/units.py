"""A module as a sequence of named statements, for edits that are made by symbol.

A unit is what stands on lines of its own in a module or in the body of a class: one
statement, or several with ``;`` between them.
"""

import ast
import warnings
from collections import Counter
from collections.abc import Iterable

from core.mutate import compare


def parse(source: str) -> ast.Module:
    """Return the syntax tree of what was read before, without another warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\d" is for its author's own linter
        return ast.parse(source)


def label(source: str) -> str:
    """Return what to call the unit *source*, within its module or class.

    What is likely to change about it is no part of the name: ``norm``, ``ROPE_BASE``,
    ``from torch``, ``assert DEPTH >= 1``.
    """
    return ", ".join(map(_label, parse(source).body))


def _label(node: ast.stmt) -> str:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return name
        case ast.ClassDef(name=name):
            return name
        case ast.Assign(targets=targets):
            return ", ".join(map(ast.unparse, targets))
        case ast.AnnAssign(target=target):
            return ast.unparse(target)
        case ast.ImportFrom(module=module, level=level):
            return f"from {'.' * level}{module or ''}"
        case ast.Assert(test=test):
            return f"assert {ast.unparse(test)}"
    return ast.unparse(node).splitlines()[0]


def symbols(labels: Iterable[str], scope: str) -> list[str]:
    """Return what to call units in a whole module, given the labels of one scope.

    Args:
        labels: Of the units of a module, or of a class, in order.
        scope: The symbol of that class; empty for a module.
    """
    seen = Counter[str]()
    found: list[str] = []
    for text in labels:
        seen[text] += 1
        number = f" ({seen[text]})" if seen[text] > 1 else ""
        found.append(f"{scope}.{text}{number}" if scope else f"{text}{number}")
    return found


def scope_of(symbol: str, source: str) -> str:
    """Return the class that the unit *source*, called *symbol*, stands in; or ""."""
    return symbol.rpartition(label(source))[0].removesuffix(".")


def meaning(source: str) -> str:
    """Return *source* without comments, layout and docstrings."""
    # Behind a statement, a text is no docstring of the module.
    return compare.read(f"pass\n{source}").text


def frame(node: ast.ClassDef) -> str:
    """Return a class without what is in it."""
    parts = {field: getattr(node, field) for field in node._fields}
    body: list[ast.stmt] = [ast.Expr(ast.Constant(...))]
    text = ast.unparse(ast.ClassDef(**{**parts, "body": body}))
    return text.removesuffix(":\n    ...") + ": ...\n"


def frame_of(source: str) -> str | None:
    """Return the `frame` of the unit *source*, or None where that is not one class."""
    match parse(source).body:
        case [ast.ClassDef() as node]:
            return frame(node)
    return None


def is_frame(source: str) -> bool:
    """Say whether *source* is a class with nothing in it but ``...``."""
    found = frame_of(source)
    return found is not None and meaning(found) == meaning(source)
