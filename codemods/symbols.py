"""Edit a training module symbol by symbol: what ``deltaspec capture`` writes."""

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar

import attrs
import libcst as cst

from codemods.base import Codemod, Statement, close, parsable
from core.errors import CodemodRefused, SiteNotFound
from core.mutate.units import (
    frame_of,
    is_frame,
    label,
    meaning,
    scope_of,
    symbols,
)

SHOWN_CHARACTERS = 60  # of a line, in an error
# With a name in front or behind, some statement that is called so
NUMBERED = re.compile(r"(.+) \((\d+)\)")  # one of several of a name
STUBS = (
    "{} = ...",
    "{} import _",
    "{}",
    "{}\n    ...",
    "{}\n    ...\nfinally:\n    ...",
)


def _text(written: str | None) -> str | None:
    """Return the lines that a text in a codemod stands for.

    Where it begins with a new line, the last line is the margin of all others.
    """
    if written is None or not written.startswith("\n"):
        return None if written is None else f"{written}\n"
    *lines, margin = written[1:].split("\n")
    return "".join(f"{line.removeprefix(margin)}\n" for line in lines)


@attrs.frozen
class Edit:
    """One unit that is added, changed, removed or moved.

    Attributes:
        symbol: ``norm``, ``MLP.forward``, ``ROPE_BASE``, ``from torch``; the first line
            of a statement that has no name.
        before: Its source, compared by meaning; None where it is new.  A class with
            ``...`` for a body stands for what is around its members.
        after: Its new source, with its comments; None where it goes, or only moves.
        follows: The symbol to put it behind, as it is called after the edits; empty for
            the start of the module, or of the class.  None where it stays in its place.
    """

    symbol: str
    before: str | None = attrs.field(default=None, converter=_text, kw_only=True)
    after: str | None = attrs.field(default=None, converter=_text, kw_only=True)
    follows: str | None = attrs.field(default=None, kw_only=True)

    @property
    def is_removal(self) -> bool:
        """Whether nothing is left of it."""
        return self.after is None and self.follows is None

    @cached_property
    def is_of_a_frame(self) -> bool:
        """Whether it leaves the members of a class alone."""
        texts = [text for text in (self.before, self.after) if text is not None]
        return None not in {self.before, self.after or self.follows} and all(
            map(is_frame, texts)
        )

    @cached_property
    def scope(self) -> str:
        """The class that it is in; empty for the module."""
        return scope_of(self.symbol, self.before or self.after or "")


class _Examples:
    """The examples of a codemod, made of its edits when they are asked for."""

    def __get__(
        self, instance: object, owner: "type[SymbolCodemod]"
    ) -> tuple[tuple[str, str], ...]:
        return (_example(owner.EDITS),) if owner.EDITS else ()


class SymbolCodemod(Codemod):
    """Turn each unit of ``EDITS`` from what it was into what it shall be.

    Whatever does not mean what it did when the edits were captured is an error.  All
    else keeps its comments and its layout.

    Attributes:
        EDITS: In the order of the edited module; what is removed comes last.
    """

    EDITS: ClassVar[tuple[Edit, ...]] = ()
    EXAMPLES = _Examples()

    @classmethod
    def examples(cls) -> Iterator[tuple[dict[str, Any], str, str]]:
        """Yield the examples as they are: a margin may belong to a text in them."""
        for before, after in cls.EXAMPLES:
            yield {}, before, after

    def transform_module_impl(self, tree: cst.Module) -> cst.Module:
        """Make all edits, or none."""
        waiting = {edit.symbol: edit for edit in self.EDITS}
        known: list[str] = []
        body = self._edited(tree.body, "", tree, waiting, known)
        if waiting:
            raise self._missing(next(iter(waiting)), known)
        return tree.with_changes(body=body)

    def _edited(
        self,
        body: Sequence[Any],
        scope: str,
        tree: cst.Module,
        waiting: dict[str, Edit],
        known: list[str],
    ) -> list[Any]:
        """Return the body of a module or of a class after its edits.

        What was done is taken out of *waiting*, what is there is added to *known*.
        """
        head = list(body[: _is_docstring(body)])
        nodes = body[len(head) :]
        named = symbols([label(_code(node)) for node in nodes], scope)
        known += named
        edits = {
            symbol: edit for symbol, edit in waiting.items() if edit.scope == scope
        }
        kept: dict[str, Any] = {}
        moving: dict[str, Any] = {}
        previous = ""
        for symbol, node in zip(named, nodes, strict=True):
            edit = edits.get(symbol)
            if edit is not None:
                self._check(edit, node, previous)
            inside = any(
                other.scope == symbol or other.scope.startswith(f"{symbol}.")
                for other in waiting.values()
            )
            if inside and _has_members(node):
                members = self._edited(node.body.body, symbol, tree, waiting, known)
                members = members or [cst.parse_statement("pass")]
                node = node.with_deep_changes(node.body, body=members)
            previous = symbol
            if edit is None:
                kept[symbol] = node
            elif not edit.is_removal:
                if edit.after is not None:
                    node = _changed(node, edit, tree)
                (kept if edit.follows is None else moving)[symbol] = node
        order = list(kept)
        for symbol, edit in edits.items():
            if edit.before is not None and symbol not in named:
                continue  # it is still waiting
            if edit.follows is not None:
                if edit.follows and edit.follows not in order:
                    raise self._missing(edit.follows, order, behind=symbol)
                at = order.index(edit.follows) + 1 if edit.follows else 0
                order.insert(at, symbol)
                kept[symbol] = moving.get(symbol) or _parsed(edit.after or "", tree)
            del waiting[symbol]
        return [*head, *(kept[symbol] for symbol in order)]

    def _check(self, edit: Edit, node: Statement, previous: str) -> None:
        """Refuse a unit that is not what the edit was captured from."""
        if edit.before is None:
            raise SiteNotFound(
                f"{self} adds {edit.symbol!r}, and the training module has it already.",
                hint=f"take out what adds it, or {AGAIN}.",
            )
        source = _code(node)
        if edit.is_of_a_frame:
            source = frame_of(source) or source
        found, expected = meaning(source), meaning(edit.before)
        if found != expected:
            was, now = _difference(expected, found)
            raise SiteNotFound(
                f"{self} rewrites {edit.symbol!r} where it says {was!r}, and the "
                f"training module says {now!r}.",
                hint=f"take out what rewrote it, or {AGAIN}; what a profile sizes is "
                "scaled by constants.ScaleConstant.",
            )
        if edit.after is None and edit.follows == previous:
            where = f"behind {previous!r}" if previous else "at the start"
            raise SiteNotFound(
                f"{self} moves {edit.symbol!r}, and it stands {where} already.",
                hint=f"take out what moves it, or {AGAIN}.",
            )

    def _missing(
        self, symbol: str, known: Sequence[str], behind: str = ""
    ) -> SiteNotFound:
        does = f"puts {behind!r} behind" if behind else "rewrites"
        return SiteNotFound(
            f"{self} {does} {symbol!r}, and the training module has none.",
            hint=f"take out what renamed or removed it, or {AGAIN}; there is "
            f"{close(symbol, known)}.",
        )


AGAIN = "capture again from today's module"


def _code(node: cst.CSTNode) -> str:
    return cst.Module([]).code_for_node(node)


def _is_docstring(body: Sequence[cst.CSTNode]) -> bool:
    match body:
        case [
            cst.SimpleStatementLine(
                body=[
                    cst.Expr(
                        value=cst.SimpleString() | cst.ConcatenatedString() as text
                    )
                ]
            ),
            *_,
        ]:
            return isinstance(text.evaluated_value, str)
    return False


def _has_members(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.ClassDef) and isinstance(node.body, cst.IndentedBlock)


class _Trimmed(cst.CSTTransformer):
    """Take the indentation from empty lines: that of a module is none, and counts."""

    def leave_EmptyLine(
        self, original_node: cst.EmptyLine, updated_node: cst.EmptyLine
    ) -> cst.EmptyLine:
        is_empty = updated_node.comment is None
        return updated_node.with_changes(indent=False) if is_empty else updated_node


def _parsed(source: str, tree: cst.Module) -> Any:
    """Return the one unit that *source* is, in the layout of *tree*.

    Raises:
        CodemodRefused: It is not one unit.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\d" is for its author's own linter
        parsable(source, option="EDITS", mode="exec")
    config = tree.config_for_parsing
    module = cst.parse_module(source.replace("\n", config.default_newline), config)
    if len(module.body) != 1:
        raise CodemodRefused(
            f"EDITS holds {len(module.body)} statements where one was expected: "
            f"{_cut(source.strip())!r}.",
            hint="write one Edit for each.",
        )
    node = module.body[0].visit(_Trimmed())
    header = [line.visit(_Trimmed()) for line in module.header]
    return node.with_changes(leading_lines=[*header, *node.leading_lines])


def _changed(node: Any, edit: Edit, tree: cst.Module) -> Any:
    """Return *node* as the edit has it; its comments above stay if the edit's do."""
    before, after = _parsed(edit.before or "", tree), _parsed(edit.after or "", tree)
    same = _above(before) == _above(after)
    above = node.leading_lines if same else after.leading_lines
    if edit.is_of_a_frame and isinstance(node, cst.ClassDef):
        return after.with_changes(body=node.body, leading_lines=above)
    return after.with_changes(leading_lines=above)


def _above(node: Any) -> str:
    return "".join(map(_code, node.leading_lines))


def _difference(expected: str, found: str) -> tuple[str, str]:
    """Return the first lines that differ."""
    pairs = zip([*expected.splitlines(), ""], [*found.splitlines(), ""], strict=False)
    was, now = next(pair for pair in pairs if pair[0] != pair[1])
    return _cut(was.strip()), _cut(now.strip())


def _cut(text: str) -> str:
    short = text[: SHOWN_CHARACTERS - 3]
    return text if len(text) <= SHOWN_CHARACTERS else f"{short}..."


def _example(edits: Sequence[Edit]) -> tuple[str, str]:
    """Return a module that has what the edits need and nothing else, and its outcome."""
    sides: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {"": ({}, {})}
    layout = cst.Module([])

    def put_stubs(scope: str, names: Iterable[str]) -> None:
        for name in names:
            if not any(name in side for side in sides[scope]):
                for side in sides[scope]:
                    side[name] = _stub(name, scope)

    def enter(scope: str) -> tuple[dict[str, Any], dict[str, Any]]:
        if scope not in sides:
            parent, _, name = scope.rpartition(".")
            enter(parent)
            *earlier, _ = _up_to(scope)
            put_stubs(parent, earlier)
            for side in sides[parent]:
                source = f"class {_unnumbered(name)}: ...\n"
                side.setdefault(scope, _parsed(source, layout))
            sides[scope] = ({}, {})
        return sides[scope]

    for edit in edits:
        old, new = enter(edit.scope)
        *earlier, symbol = _up_to(edit.symbol)
        before = after = None
        if edit.before is not None:
            put_stubs(edit.scope, earlier)
            before = after = _parsed(edit.before, layout)
        if edit.after is not None:
            after = _parsed(edit.after, layout)
        if edit.follows is None:
            old[symbol] = before
            if edit.is_removal:
                new.pop(symbol, None)
            else:
                new[symbol] = after
            continue
        if edit.follows not in new:
            put_stubs(edit.scope, _up_to(edit.follows))
        if before is not None:
            if ["", *old][-1] == edit.follows:  # it must not be where it goes
                put_stubs(edit.scope, [f"_{len(old)}"])
            old[symbol] = before
        new.pop(symbol, None)
        order = list(new.items())
        at = list(new).index(edit.follows) + 1 if edit.follows else 0
        new.clear()
        new.update([*order[:at], (symbol, after), *order[at:]])

    def body(scope: str, side: int) -> list[Any]:
        nodes: list[Any] = []
        for symbol, node in sides[scope][side].items():
            if symbol in sides and isinstance(node, cst.ClassDef):
                members = body(symbol, side) or [cst.parse_statement("pass")]
                node = node.with_changes(body=cst.IndentedBlock(members))
            nodes.append(node)
        return nodes

    # Without it, what is above the first statement would belong to the module.
    docstring = cst.parse_statement('"""Train."""')
    before, after = (cst.Module([docstring, *body("", side)]).code for side in (0, 1))
    return before, after


def _up_to(symbol: str) -> Iterator[str]:
    """Yield *symbol* last, and before it those of its name that stand above it."""
    if not symbol:
        return
    if numbered := NUMBERED.fullmatch(symbol):
        yield numbered[1]
        yield from (f"{numbered[1]} ({n})" for n in range(2, int(numbered[2])))
    yield symbol


def _unnumbered(name: str) -> str:
    numbered = NUMBERED.fullmatch(name)
    return numbered[1] if numbered else name


def _stub(symbol: str, scope: str) -> Any:
    """Return some statement that is called *symbol* in *scope*."""
    name = symbol.removeprefix(f"{scope}.") if scope else symbol
    name = _unnumbered(name)
    for stub in STUBS:
        source = stub.format(name) + "\n"
        try:
            if label(source) == name:
                return cst.parse_statement(source)
        except SyntaxError:
            continue
    raise CodemodRefused(
        f"no statement is known that is called {symbol!r}.",
        hint="write EXAMPLES into the codemod: (before, after).",
    )
