"""Evaluate Python expressions from their syntax tree, so that reading a file runs nothing.

Spec files and the constants of the training module are data in Python's syntax.  What
is not data (an attribute, a call of anything but the given functions) is refused.
"""

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

MAX_SOURCE_BYTES = 256 * 1024  # LibCST and ast both recurse; nobody writes such a file
MAX_STEPS = 100_000  # a comprehension of comprehensions ends here, not in memory
MAX_TEXT = 64 * 1024
MAX_BITS = 4096  # of an integer, so that 9**9**9 ends too


class Refused(Exception):
    """An expression is not data, or is too large to be evaluated.

    Args:
        message: What was found.
        node: Where.
    """

    def __init__(self, message: str, node: ast.AST) -> None:
        super().__init__(message)
        self.message = message
        self.line: int = getattr(node, "lineno", 0)


class Unknown(Refused):
    """A name is bound nowhere that is known."""


def parse(source: bytes | str) -> ast.Module:
    """Return the syntax tree of *source*.

    Raises:
        Refused: It is larger than 256 KiB, not Python, or nested too deeply.
    """
    size = len(source if isinstance(source, bytes) else source.encode())
    if size > MAX_SOURCE_BYTES:
        raise Refused(f"{size:,} bytes is more than {MAX_SOURCE_BYTES:,}.", ast.Pass())
    try:
        return ast.parse(source)
    except SyntaxError as error:
        place = ast.Pass()
        place.lineno = error.lineno or 0
        raise Refused(f"{error.msg}.", place) from error
    except (RecursionError, MemoryError, ValueError) as error:
        raise Refused(f"{error or 'nested too deeply'}.", ast.Pass()) from error


def _power(base: Any, exponent: Any) -> Any:
    if (
        isinstance(base, int)
        and isinstance(exponent, int)
        and base.bit_length() * abs(exponent) > MAX_BITS
    ):
        raise OverflowError(f"{base}**{exponent} is too large")
    return base**exponent


def _numbers_only(apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return *apply* for numbers alone: ``"a" * 10**9`` would fill the memory."""

    def checked(left: Any, right: Any) -> Any:
        for side in (left, right):
            if not isinstance(side, int | float):
                raise TypeError(f"{side!r} is not a number")
        return apply(left, right)

    return checked


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, str | tuple | list):
        return left + right
    return _numbers_only(operator.add)(left, right)


BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: _add,
    ast.Sub: _numbers_only(operator.sub),
    ast.Mult: _numbers_only(operator.mul),
    ast.Div: _numbers_only(operator.truediv),
    ast.FloorDiv: _numbers_only(operator.floordiv),
    ast.Mod: _numbers_only(operator.mod),
    ast.Pow: _numbers_only(_power),
}
UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, items: item in items,
    ast.NotIn: lambda item, items: item not in items,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}


@attrs.define
class Evaluator:
    """Evaluate expressions over known names and functions.

    Attributes:
        names: What each name is bound to; the caller adds to it.
        functions: What may be called, by name.  A function is called with the values
            and, as ``node``, the call itself where ``takes_node`` names it.
        takes_node: The functions that want to know where they were called.
    """

    names: dict[str, Any] = attrs.field(factory=dict)
    functions: Mapping[str, Callable[..., Any]] = attrs.field(factory=dict)
    takes_node: frozenset[str] = frozenset()
    _steps: int = 0

    def value(self, node: ast.expr) -> Any:
        """Return the value of *node*.

        Raises:
            Refused: It is not data, or too large; `Unknown` if a name is not bound.
        """
        try:
            return self._value(node)
        except RecursionError as error:
            raise Refused("this expression is nested too deeply.", node) from error

    def _value(self, node: ast.expr) -> Any:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise Refused(f"this takes more than {MAX_STEPS:,} steps.", node)
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise Refused(f"{_shown(node)} is not data.", node)
        try:
            value = method(node)
        except (ArithmeticError, TypeError, ValueError, LookupError) as error:
            raise Refused(f"{_shown(node)}: {error}.", node) from error
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise Refused(f"a text of {len(value):,} characters is too long.", node)
        return value

    def _constant(self, node: ast.Constant) -> Any:
        return node.value

    def _name(self, node: ast.Name) -> Any:
        if node.id not in self.names:
            raise Unknown(f"the name {node.id!r} is not bound above.", node)
        return self.names[node.id]

    def _tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self._items(node.elts))

    def _list(self, node: ast.List) -> list[Any]:
        return list(self._items(node.elts))

    def _set(self, node: ast.Set) -> set[Any]:
        return set(self._items(node.elts))

    def _items(self, nodes: list[ast.expr]) -> Iterator[Any]:
        for node in nodes:
            if isinstance(node, ast.Starred):
                yield from self._value(node.value)
            else:
                yield self._value(node)

    def _dict(self, node: ast.Dict) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                result.update(self._value(value))
            else:
                result[self._value(key)] = self._value(value)
        return result

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        if type(node.op) not in UNARY:
            raise Refused(f"{_shown(node)} is not data.", node)
        return UNARY[type(node.op)](self._value(node.operand))

    def _binop(self, node: ast.BinOp) -> Any:
        if type(node.op) not in BINARY:
            raise Refused(f"{_shown(node)} is not data.", node)
        left, right = self._value(node.left), self._value(node.right)
        return BINARY[type(node.op)](left, right)

    def _boolop(self, node: ast.BoolOp) -> Any:
        stops_at = isinstance(node.op, ast.Or)
        for operand in node.values:
            value = self._value(operand)
            if bool(value) is stops_at:
                break
        return value

    def _compare(self, node: ast.Compare) -> bool:
        left = self._value(node.left)
        for comparison, operand in zip(node.ops, node.comparators, strict=True):
            right = self._value(operand)
            if not COMPARE[type(comparison)](left, right):
                return False
            left = right
        return True

    def _ifexp(self, node: ast.IfExp) -> Any:
        return self._value(node.body if self._value(node.test) else node.orelse)

    def _subscript(self, node: ast.Subscript) -> Any:
        return self._value(node.value)[self._value(node.slice)]

    def _slice(self, node: ast.Slice) -> slice:
        parts = (node.lower, node.upper, node.step)
        return slice(*(None if part is None else self._value(part) for part in parts))

    def _joinedstr(self, node: ast.JoinedStr) -> str:
        return "".join(self._value(part) for part in node.values)

    def _formattedvalue(self, node: ast.FormattedValue) -> str:
        value = self._value(node.value)
        if not isinstance(value, str | int | float | bool | None):
            raise Refused(f"{value!r} cannot be formatted here.", node)
        if node.conversion != -1:
            value = {"s": str, "r": repr, "a": ascii}[chr(node.conversion)](value)
        form = "" if node.format_spec is None else self._value(node.format_spec)
        if any(len(digits) > 3 for digits in _runs_of_digits(form)):
            raise Refused(f"the format {form!r} is too wide.", node)
        return format(value, form)

    def _listcomp(self, node: ast.ListComp) -> list[Any]:
        return [self._value(node.elt) for _ in self._loops(node.generators)]

    def _generatorexp(self, node: ast.GeneratorExp) -> tuple[Any, ...]:
        return tuple(self._value(node.elt) for _ in self._loops(node.generators))

    def _setcomp(self, node: ast.SetComp) -> set[Any]:
        return {self._value(node.elt) for _ in self._loops(node.generators)}

    def _dictcomp(self, node: ast.DictComp) -> dict[Any, Any]:
        return {
            self._value(node.key): self._value(node.value)
            for _ in self._loops(node.generators)
        }

    def _loops(self, loops: list[ast.comprehension]) -> Iterator[None]:
        """Bind the targets of *loops* to one combination after another."""
        if not loops:
            yield
            return
        first, *rest = loops
        outside = dict(self.names)
        for item in self._value(first.iter):
            self._bind(first.target, item)
            if all(self._value(condition) for condition in first.ifs):
                yield from self._loops(rest)
        self.names.clear()
        self.names.update(outside)

    def _bind(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, ast.Tuple):
            for part, item in zip(target.elts, value, strict=True):
                self._bind(part, item)
        else:
            raise Refused(f"{_shown(target)} cannot be bound.", target)

    def _call(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name) or node.func.id not in self.functions:
            known = ", ".join(sorted(self.functions)) or "nothing"
            raise Refused(
                f"{_shown(node.func)} cannot be called here; known: {known}.", node
            )
        function = self.functions[node.func.id]
        positional = list(self._items(node.args))
        named: dict[str, Any] = {}
        for keyword in node.keywords:
            value = self._value(keyword.value)
            named.update(value if keyword.arg is None else {keyword.arg: value})
        if node.func.id in self.takes_node:
            return function(node, *positional, **named)
        return function(*positional, **named)


def _shown(node: ast.AST) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _runs_of_digits(text: str) -> list[str]:
    return "".join(c if c.isdigit() else " " for c in text).split()


ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (min, max, round, int, float, len, abs, set, tuple, sum, all, any)
}


def constants(tree: ast.Module) -> dict[str, Any]:
    """Return the module-level constants of *tree* that are data, by name."""
    evaluator = Evaluator(functions=ARITHMETIC)
    for statement in tree.body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                try:
                    evaluator.names[name] = evaluator.value(value)
                except Refused:  # torch.float32, say: a constant, but not data
                    evaluator.names.pop(name, None)
    return evaluator.names
