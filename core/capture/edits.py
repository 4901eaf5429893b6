"""Say by which edits one version of a module becomes another, unit by unit."""

import ast
import difflib
import io
import tokenize
from collections.abc import Iterator, Sequence

import attrs

from core.mutate.units import frame, label, meaning, parse, symbols


@attrs.frozen(kw_only=True)
class Unit:
    """What stands on lines of its own.

    Attributes:
        symbol: What to call it in the whole module.
        above: Comments and blank lines above it.
        text: Its lines, without what the class that it is in indents them by.
        frame: Of a class in several lines: what is around its members.
        members: Of such a class.
    """

    symbol: str
    above: str
    text: str
    frame: str | None = None
    members: tuple["Unit", ...] = ()

    @property
    def is_short(self) -> bool:
        """Whether it is one line."""
        return self.text.count("\n") == 1


@attrs.frozen
class Edit:
    """As `codemods.symbols.Edit` has it."""

    symbol: str
    before: str | None = None
    after: str | None = None
    follows: str | None = None


def edits(old: Sequence[Unit], new: Sequence[Unit]) -> Iterator[Edit]:
    """Yield what turns the units *old* into *new*."""
    before = {unit.symbol: unit for unit in old}
    after = {unit.symbol: unit for unit in new}
    staying = _staying(
        [symbol for symbol in before if symbol in after],
        [symbol for symbol in after if symbol in before],
    )
    above = dict(zip(before, ["", *before], strict=False))
    previous = ""
    for symbol, unit in after.items():
        was = before.get(symbol)
        if was is None:
            yield Edit(symbol, None, unit.above + unit.text, previous)
        else:
            follows = None if symbol in staying else previous
            yield from _edits_of(was, unit, follows, above[symbol] != previous)
        previous = symbol
    for symbol, unit in before.items():
        if symbol not in after:
            yield Edit(symbol, unit.text)


def _staying(old: list[str], new: list[str]) -> set[str]:
    """Return the symbols that keep their order."""
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    return {
        symbol
        for start, _, size in matcher.get_matching_blocks()
        for symbol in old[start : start + size]
    }


def _edits_of(
    old: Unit, new: Unit, follows: str | None, has_new_neighbour: bool
) -> Iterator[Edit]:
    """Yield what turns one unit into what it is now, and those in it."""
    has_members = old.frame is not None and new.frame is not None
    if has_members:
        before, after = old.frame or "", new.frame or ""
    else:
        before, after = old.text, new.text
    # Comments count for little: where a neighbour came or went, they may be its own.
    is_left = has_new_neighbour and new.is_short and old.above != new.above
    if meaning(before) != meaning(after) or (is_left and follows is None):
        above = (old.above, new.above) if old.above != new.above else ("", "")
        yield Edit(old.symbol, above[0] + before, above[1] + after, follows)
    elif follows is not None:
        yield Edit(old.symbol, before, None, follows)
    if has_members:
        yield from edits(old.members, new.members)


def units_of(source: str) -> tuple[Unit, ...]:
    """Return the units of a module."""
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    return Lines.of(source).units(parse(source).body, "", source.count("\n") + 1)


@attrs.frozen
class Lines:
    """The lines of a module, from 0, and those that begin within a text."""

    lines: list[str]
    in_texts: frozenset[int]

    @classmethod
    def of(cls, source: str) -> "Lines":
        """Return the lines of *source*."""
        return cls(source.split("\n"), frozenset(_lines_in_texts(source)))

    def units(self, body: list[ast.stmt], scope: str, end: int) -> tuple[Unit, ...]:
        """Return the units of a block that ends before the line *end*."""
        groups = list(_groups(body))
        is_module = not scope
        margin = "" if is_module else self._margin(groups[0][0])
        starts = [_first_line(group[0]) for group in groups]
        found: list[tuple[str, str, list[ast.stmt], int]] = []
        last = -1  # line of what comes before
        limits = [*starts, end][1:]
        for group, start, limit in zip(groups, starts, limits, strict=True):
            above = self._above(start, last)
            # Above the first statement of all are the comments of the module.
            has_above = not is_module or last >= 0
            last = self._last_line(group, limit)
            text = self._text(start, last, margin)
            if not found and _is_docstring(group) and group[0] is body[0]:
                continue
            comments = self._text(above, start - 1, margin) if has_above else ""
            found.append((comments, text, group, last))
        named = symbols([label(text) for _, text, _, _ in found], scope)
        return tuple(
            self._unit(symbol, *unit) for symbol, unit in zip(named, found, strict=True)
        )

    def _unit(
        self, symbol: str, above: str, text: str, group: list[ast.stmt], last: int
    ) -> Unit:
        match group:
            case [ast.ClassDef() as node] if self._is_block(node):
                return Unit(
                    symbol=symbol,
                    above=above,
                    text=text,
                    frame=frame(node),
                    members=self.units(node.body, symbol, last + 1),
                )
        return Unit(symbol=symbol, above=above, text=text)

    def _margin(self, node: ast.stmt) -> str:
        line = self.lines[_first_line(node)]
        return line[: len(line) - len(line.lstrip())]

    def _is_block(self, node: ast.ClassDef) -> bool:
        first = node.body[0]
        line = self.lines[first.lineno - 1].encode()
        return not line[: first.col_offset].strip() or bool(
            getattr(first, "decorator_list", ())
        )

    def _above(self, start: int, last: int) -> int:
        """Return the first of the comments and blank lines above *start*."""
        while start - 1 > last and _is_comment(self.lines[start - 1]):
            start -= 1
        return start

    def _last_line(self, group: list[ast.stmt], limit: int) -> int:
        """Return the last line of a unit: a comment in its block belongs to it."""
        last = (group[-1].end_lineno or 0) - 1
        if len(group) > 1 or not hasattr(group[0], "body"):
            return last
        margin = len(self._margin(group[0]))
        found = last
        for at in range(last + 1, min(limit, len(self.lines))):
            line = self.lines[at]
            if line.strip() and not _is_comment(line, margin + 1):
                break
            found = at if line.strip() else found
        return found

    def _text(self, start: int, last: int, margin: str) -> str:
        """Return the lines from *start* to *last* without their margin."""
        found: list[str] = []
        for at in range(start, last + 1):
            line = self.lines[at]
            if at not in self.in_texts:
                line = line.removeprefix(margin) if line.strip() else ""
            found.append(f"{line}\n")
        return "".join(found)


def _lines_in_texts(source: str) -> Iterator[int]:
    """Yield the lines, from 0, that begin within a text."""
    begun: list[int] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "STRING":
            yield from range(token.start[0], token.end[0])
        elif kind.endswith("STRING_START"):  # from Python 3.12 on
            begun.append(token.start[0])
        elif kind.endswith("STRING_END"):
            yield from range(begun.pop(), token.end[0])


def _groups(body: list[ast.stmt]) -> Iterator[list[ast.stmt]]:
    """Yield the statements that share their lines."""
    group: list[ast.stmt] = []
    for node in body:
        if group and _first_line(node) > (group[-1].end_lineno or 0) - 1:
            yield group
            group = []
        group.append(node)
    if group:
        yield group


def _first_line(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)]) - 1


def _is_comment(line: str, margin: int = 0) -> bool:
    """Say whether a line says nothing, or says it in a comment from *margin* on."""
    text = line.lstrip()
    return not text or (text.startswith("#") and len(line) - len(text) >= margin)


def _is_docstring(group: list[ast.stmt]) -> bool:
    match group:
        case [ast.Expr(value=ast.Constant(value=str()))]:
            return True
    return False
