"""Find names that a module uses and never binds: a typo, or an import that is missing."""

import ast
import builtins
import difflib
from collections.abc import Iterator

from core.mutate import Refusal, forbidden
from core.syntax import DEFINITIONS

BUILT_IN = frozenset(vars(builtins))


def unbound(tree: ast.Module) -> Iterator[Refusal]:
    """Yield the first use in each symbol of each name that *tree* binds in no scope.

    A name that another function binds passes: what is found here is found for certain.
    """
    known = _bound(tree)
    if "*" in known:  # of an import
        return
    seen: set[tuple[str, str]] = set()
    for node, symbol in _reads(tree, is_lazy=_is_lazy(tree)):
        name = node.id
        if name in known or name in BUILT_IN or forbidden.is_dunder(name):
            continue
        if (symbol, name) not in seen:
            seen.add((symbol, name))
            near = difflib.get_close_matches(name, known, n=1)
            meant = (
                f"the nearest name is {near[0]}" if near else "define it or import it"
            )
            instead = forbidden.INSTEAD.get(name, meant)
            reason = f"it uses {forbidden.cut(name)}, which nothing binds; {instead}"
            yield Refusal(line=node.lineno, symbol=symbol, reason=reason)


def _bound(tree: ast.Module) -> list[str]:
    """Return the names that *tree* binds, in whatever scope."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                found.add(name)
            case ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                found.add(name)
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                found.add(name)
            case ast.MatchMapping(rest=str(name)):
                found.add(name)
            case ast.alias(name=path, asname=name):
                found.add(name or path.partition(".")[0])
            case _ if isinstance(node, DEFINITIONS):
                found.add(node.name)
        # From Python 3.12 on: `def f[T](x: T)`
        found.update(part.name for part in getattr(node, "type_params", ()))
    return sorted(found)


def _is_lazy(tree: ast.Module) -> bool:
    """Say whether annotations are never evaluated."""
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == "__future__"
        and any(alias.name == "annotations" for alias in node.names)
        for node in tree.body
    )


def _reads(tree: ast.Module, *, is_lazy: bool) -> Iterator[tuple[ast.Name, str]]:
    """Yield each name that is read, in the order of the text, with its symbol."""
    held: list[tuple[ast.AST, str]] = [(tree, "")]
    while held:  # not by recursion: a chain of elif is as deep as it is long
        node, symbol = held.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node, symbol
        if isinstance(node, DEFINITIONS):
            symbol = f"{symbol}.{node.name}" if symbol else node.name
        below = [
            child
            for field, value in ast.iter_fields(node)
            if not (is_lazy and field in ("annotation", "returns"))
            for child in (value if isinstance(value, list) else [value])
            if isinstance(child, ast.AST)
        ]
        held += ((child, symbol) for child in reversed(below))
