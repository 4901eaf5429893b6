"""Measure how much a module could hold of a text that somebody wants it to remember."""

import ast

MAX_ADDED_LITERALS = 4096  # characters; a vocabulary of ideas, not a table of answers
LONG_NAME = 32  # characters of a name beyond which the rest counts as data
LONG_DISPLAY = 16  # elements of a list beyond which each counts as data
OF_AN_ELEMENT = 8  # characters that it counts


def too_many(tree: ast.Module, base: ast.Module) -> tuple[ast.stmt, str] | None:
    """Return the statement with most of the literals, and a reason, if they are many.

    Args:
        tree: A module without docstrings, which nothing can read.
        base: What it was made from.
    """
    added = _characters(tree) - _characters(base)
    if added <= MAX_ADDED_LITERALS:
        return None
    reason = (
        f"it adds {added:,} characters of literals, and may add "
        f"{MAX_ADDED_LITERALS:,}; data belong in --data"
    )
    return max(tree.body, key=_characters), reason


def _characters(tree: ast.AST) -> int:
    """Return how much *tree* could hold of a text that somebody wants to remember."""
    total = 0
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str() | bytes() as value):
                total += len(value)
            case ast.Constant(value=int() | float() | complex() as value):
                total += len(repr(value))
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                names.add(name)
            case ast.keyword(arg=str(name)):
                names.add(name)
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                total += _surplus(elements)
            case ast.Set(elts=elements) | ast.Dict(values=elements):
                total += _surplus(elements)
    return total + sum(max(0, len(name) - LONG_NAME) for name in names)


def _surplus(elements: list[ast.expr]) -> int:
    rest = elements[LONG_DISPLAY:]
    return OF_AN_ELEMENT * sum(not isinstance(e, ast.Constant) for e in rest)
