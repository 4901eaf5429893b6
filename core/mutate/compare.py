"""Say what differs between two versions of a module, from their syntax trees alone.

Whoever made a change, a codemod or a person, it is described in the same words.
"""

import ast
import difflib
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise

import attrs

from core import syntax


@attrs.frozen(kw_only=True)
class SymbolChange:
    """One symbol of a module that is not what it was.

    Attributes:
        symbol: ``ROPE_BASE``, ``norm``, ``MLP.forward``; for a statement without a
            name, its first line.
        kind: ``constant``, ``function`` (methods too), ``class``, ``import`` or
            ``statement``.
        edit: ``added``, ``changed``, ``removed`` or ``moved``.
        old: The source before, without comments; None where it was not there.
        new: The source after, without comments; None where it is not there any more.
    """

    symbol: str
    kind: str
    edit: str
    old: str | None
    new: str | None


class Unreadable(Exception):
    """A text cannot be edited: it is too large, not Python, or nested too deeply."""


@attrs.frozen
class Module:
    """A module without what has no meaning: comments, layout, docstrings."""

    tree: ast.Module
    text: str

    @cached_property
    def digest(self) -> str:
        """Return 32 hex digits that all modules of one meaning share."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]

    @cached_property
    def symbols(self) -> dict[tuple[str, str], str]:
        """Return the source of each symbol by (kind, symbol), in order."""
        symbols: dict[tuple[str, str], str] = {}
        for kind, symbol, text in _symbols(self.tree.body):
            earlier = symbols.get((kind, symbol))
            symbols[kind, symbol] = text if earlier is None else f"{earlier}\n{text}"
        return symbols


def read(source: str) -> Module:
    """Parse *source* and drop what has no meaning.

    Raises:
        Unreadable: It is too large, not Python, or nested too deeply.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" is for its author's own linter
            tree = syntax.parse(source)
        _drop_docstrings(tree)
        return Module(tree, ast.unparse(tree))
    except syntax.Refused as error:
        if isinstance(error.__cause__, MemoryError | RecursionError):
            raise Unreadable("it is nested too deeply.") from error
        place = f"line {error.line}: " if error.line else ""
        raise Unreadable(f"{place}{error.message}") from error
    except RecursionError as error:
        raise Unreadable("it is nested too deeply.") from error
    except ValueError as error:  # half of a surrogate pair, a literal of 5,000 digits
        raise Unreadable(f"{error}.") from error


def _drop_docstrings(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        match node:
            case (
                ast.Module(body=[ast.Expr(value=ast.Constant(value=str())), *rest])
                | ast.ClassDef(body=[ast.Expr(value=ast.Constant(value=str())), *rest])
                | ast.FunctionDef(
                    body=[ast.Expr(value=ast.Constant(value=str())), *rest]
                )
                | ast.AsyncFunctionDef(
                    body=[ast.Expr(value=ast.Constant(value=str())), *rest]
                )
            ):
                node.body = rest or [ast.Pass()]


def _symbols(body: list[ast.stmt]) -> Iterator[tuple[str, str, str]]:
    """Yield kind, symbol and source of everything that a module's *body* states."""
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield "function", node.name, ast.unparse(node)
            case ast.ClassDef():
                yield from _class_symbols(node)
            case ast.Import() | ast.ImportFrom():
                yield from _import_symbols(node)
            case ast.Assign(targets=targets) if all(
                isinstance(target, ast.Name) for target in targets
            ):
                for target in targets:
                    yield "constant", target.id, ast.unparse(node.value)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield "constant", name, ast.unparse(value)
            case _:
                text = ast.unparse(node)
                yield "statement", text.splitlines()[0], text


def _class_symbols(node: ast.ClassDef) -> Iterator[tuple[str, str, str]]:
    methods = [
        part
        for part in node.body
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    frame = ast.ClassDef(**{
        **{field: getattr(node, field) for field in node._fields},
        "body": [part for part in node.body if part not in methods] or [ast.Pass()],
    })
    yield "class", node.name, ast.unparse(frame)
    for method in methods:
        yield "function", f"{node.name}.{method.name}", ast.unparse(method)


def _import_symbols(
    node: ast.Import | ast.ImportFrom,
) -> Iterator[tuple[str, str, str]]:
    for alias in node.names:
        if isinstance(node, ast.Import):
            single: ast.stmt = ast.Import(names=[alias])
        else:
            single = ast.ImportFrom(node.module, names=[alias], level=node.level)
        yield "import", alias.asname or alias.name, ast.unparse(single)


def changes(base: Module, mutant: Module) -> tuple[SymbolChange, ...]:
    """Return what differs in meaning, in the order of the mutant; removals last.

    A class that is new or gone is one row and its methods are none.
    """
    old, new = base.symbols, mutant.symbols
    moved = _moved(old, new)
    rows: list[SymbolChange] = []
    for (kind, symbol), text in new.items():
        before = old.get((kind, symbol))
        if before is None:
            if not _is_part_of(symbol, kind, new, old):
                rows.append(_row(symbol, kind, "added", None, text))
        elif before != text:
            rows.append(_row(symbol, kind, "changed", before, text))
        elif (kind, symbol) in moved:
            rows.append(_row(symbol, kind, "moved", before, text))
    rows += [
        _row(symbol, kind, "removed", text, None)
        for (kind, symbol), text in old.items()
        if (kind, symbol) not in new and not _is_part_of(symbol, kind, old, new)
    ]
    for index, row in enumerate(rows):
        if row.kind == "class" and row.edit in {"added", "removed"}:
            tree = mutant.tree if row.edit == "added" else base.tree
            rows[index] = _whole_class(row, tree)
    return tuple(rows) or tuple(_unnamed(base.tree, mutant.tree))


def _unnamed(base: ast.Module, mutant: ast.Module) -> Iterator[SymbolChange]:
    """Yield what no symbol shows: an annotation, the order within a class."""
    old = [ast.unparse(node) for node in base.body]
    new = [ast.unparse(node) for node in mutant.body]
    blocks = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for operation, start, end, new_start, new_end in blocks.get_opcodes():
        if operation != "equal":
            before, after = "\n".join(old[start:end]), "\n".join(new[new_start:new_end])
            symbol = (after or before).splitlines()[0]
            yield _row(symbol, "statement", "changed", before, after)


def _row(
    symbol: str, kind: str, edit: str, old: str | None, new: str | None
) -> SymbolChange:
    return SymbolChange(symbol=symbol, kind=kind, edit=edit, old=old, new=new)


def _is_part_of(
    symbol: str,
    kind: str,
    here: dict[tuple[str, str], str],
    there: dict[tuple[str, str], str],
) -> bool:
    """Say whether *symbol* is a method of a class that only one version has."""
    owner, dot, _ = symbol.rpartition(".")
    is_method = kind == "function" and dot
    return bool(
        is_method and ("class", owner) in here and ("class", owner) not in there
    )


def _whole_class(row: SymbolChange, tree: ast.Module) -> SymbolChange:
    text = "\n".join(
        ast.unparse(node)
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == row.symbol
    )
    return attrs.evolve(row, **{"new" if row.edit == "added" else "old": text})


def _moved(
    old: dict[tuple[str, str], str], new: dict[tuple[str, str], str]
) -> set[tuple[str, str]]:
    before = [key for key in old if key in new]
    after = [key for key in new if key in old]
    if before == after:
        return set()
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False)
    return {
        key
        for operation, start, end, _, _ in blocks.get_opcodes()
        if operation in {"delete", "replace"}
        for key in before[start:end]
    }


def lines(source: str) -> list[str]:
    r"""Split at ``\n`` only, which each line keeps, as ``diff`` and ``patch`` do."""
    *whole, rest = source.split("\n")
    return [f"{line}\n" for line in whole] + ([rest] if rest else [])


def diff(base: str, mutant: str) -> str:
    """Return the unified diff that turns *base* into *mutant*, as ``patch`` reads it."""
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
        for line in difflib.unified_diff(
            lines(base), lines(mutant), "base/train.py", "mutant/train.py"
        )
    )


def overwritten(steps: Sequence[str]) -> tuple[int, int] | None:
    """Return which step rewrote or removed lines that which earlier one wrote.

    Args:
        steps: The source at the start, then after each step.

    Returns:
        The earlier and the later step, counted from 0, or None.
    """
    writers: list[int | None] = [None] * len(lines(steps[0]))
    for step, (before, after) in enumerate(pairwise(steps)):
        old, new = lines(before), lines(after)
        rewritten: list[int | None] = []
        blocks = difflib.SequenceMatcher(None, old, new, autojunk=False)
        for operation, start, end, new_start, new_end in blocks.get_opcodes():
            if operation == "equal":
                rewritten += writers[start:end]
                continue
            earlier = [writer for writer in writers[start:end] if writer is not None]
            if earlier:
                return earlier[0], step
            rewritten += [step] * (new_end - new_start)
        writers = rewritten
    return None
