"""Evaluate Python expressions from their syntax tree, so that reading a file runs nothing.

Spec files and the constants of the training module are data in Python's syntax.  What
is not data (an attribute, a call of anything but the given functions) is refused.
"""

import ast
import operator
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

MAX_SOURCE_BYTES = 256 * 1024  # LibCST and ast both recurse; nobody writes such a file
MAX_STEPS = 100_000  # a comprehension of comprehensions ends here, not in memory
MAX_TEXT = 64 * 1024
TEXT_OF_A_STEP = 64  # characters; a list of long texts would fill the memory too
MAX_BITS = 4096  # of an integer, so that 9**9**9 ends too
MAX_DEPTH = 32  # of containers in one another; whoever reads them recurses

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


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
    """A name is bound nowhere that is known.

    Args:
        message: What was found.
        node: Where.
        name: The name.
    """

    def __init__(self, message: str, node: ast.AST, name: str) -> None:
        super().__init__(message, node)
        self.name = name


# Python 3.11 counts how deep it is in a tree once for all threads, and raises a
# SystemError where two build one: https://github.com/python/cpython/issues/106905
_ONE_AT_A_TIME = threading.Lock()


def parse(source: bytes | str) -> ast.Module:
    """Return the syntax tree of *source*.

    Raises:
        Refused: It is larger than 256 KiB, not Python, or nested too deeply.
    """
    if isinstance(source, str):
        size = len(source.encode(errors="surrogatepass"))
    else:
        size = len(source)
    if size > MAX_SOURCE_BYTES:
        raise Refused(f"{size:,} bytes is more than {MAX_SOURCE_BYTES:,}.", ast.Pass())
    try:
        with _ONE_AT_A_TIME:
            return ast.parse(source)
    except SyntaxError as error:
        place = ast.Pass()
        place.lineno = error.lineno or 0
        raise Refused(_sentence(error.msg), place) from error
    except ValueError as error:
        raise Refused(_sentence(str(error)), ast.Pass()) from error
    except (RecursionError, MemoryError) as error:
        raise Refused("this is nested too deeply.", ast.Pass()) from error


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?")) else f"{text}."


def _power(base: Any, exponent: Any) -> Any:
    if (
        isinstance(base, int)
        and isinstance(exponent, int)
        and base.bit_length() * exponent > MAX_BITS
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
        outside = dict(self.names)
        try:
            return self._value(node)
        except RecursionError as error:
            raise Refused("this expression is nested too deeply.", node) from error
        finally:  # a comprehension that failed has not unbound its names
            self.names = outside

    def _value(self, node: ast.expr) -> Any:
        self._spend(1, node)
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise Refused(f"{_shown(node)} is not data.", node)
        try:
            value = method(node)
        except (ArithmeticError, TypeError, ValueError, LookupError) as error:
            raise Refused(f"{_shown(node)}: {error}.", node) from error
        self._weigh(value, node)
        return value

    def _spend(self, steps: int, node: ast.expr) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise Refused(f"this takes more than {MAX_STEPS:,} steps.", node)

    def _weigh(self, value: Any, node: ast.expr) -> None:
        """Count all that *value* holds as steps.

        Twenty lines of ``a = a + a`` or ``a = (a, a)`` would else make a million items.
        """
        held = [(value, 0)]
        while held:
            item, depth = held.pop()
            if depth > MAX_DEPTH:
                raise Refused("this value is nested too deeply.", node)
            if isinstance(item, str):
                if len(item) > MAX_TEXT:
                    raise Refused(
                        f"a text of {len(item):,} characters is too long.", node
                    )
                if not item.isascii() and any("\ud800" <= c <= "\udfff" for c in item):
                    raise Refused(f"{item[:40]!r} is not a text.", node)
                self._spend(len(item) // TEXT_OF_A_STEP, node)
            elif isinstance(item, int) and item.bit_length() > MAX_BITS:
                raise Refused(
                    f"an integer of {item.bit_length():,} bits is too large.", node
                )
            elif isinstance(item, tuple | list | set):
                self._spend(len(item), node)
                held += ((part, depth + 1) for part in item)
            elif isinstance(item, dict):
                self._spend(2 * len(item), node)
                for pair in item.items():
                    held += ((part, depth + 1) for part in pair)

    def _constant(self, node: ast.Constant) -> Any:
        return node.value

    def _name(self, node: ast.Name) -> Any:
        if node.id in self.names:
            return self.names[node.id]
        if node.id in self.functions:
            raise Unknown(f"{node.id} is not called here.", node, node.id)
        raise Unknown(f"the name {node.id!r} is not bound above.", node, node.id)

    def _attribute(self, node: ast.Attribute) -> Any:
        raise _refused(f"{_shown(node)} is not data.", node)

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
        if first.is_async:
            raise Refused("async for is not data.", first.iter)
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
            raise _refused(
                f"{_shown(node.func)} cannot be called here; known: {known}.", node.func
            )
        function = self.functions[node.func.id]
        positional = list(self._items(node.args))
        named: dict[str, Any] = {}
        for keyword in node.keywords:
            value = self._value(keyword.value)
            more = value if keyword.arg is None else {keyword.arg: value}
            for name in more:
                if name in named:
                    raise Refused(f"{name}= is given twice: keep one.", keyword.value)
            named.update(more)
        if node.func.id in self.takes_node:
            return function(node, *positional, **named)
        return function(*positional, **named)


def _refused(message: str, node: ast.expr) -> Refused:
    """Return what is wrong with the name that *node* begins with, if it has one."""
    root: ast.expr = node
    while isinstance(root, ast.Attribute):
        root = root.value
    return (
        Unknown(message, node, root.id)
        if isinstance(root, ast.Name)
        else Refused(message, node)
    )


def _shown(node: ast.AST) -> str:
    try:
        text = ast.unparse(node)
    except (ValueError, RecursionError):  # an integer of too many digits, say
        return "this expression"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _runs_of_digits(text: str) -> list[str]:
    return "".join(c if c.isdigit() else " " for c in text).split()


def _round(number: Any, ndigits: Any = None) -> Any:
    if isinstance(ndigits, int) and ndigits < -MAX_BITS:  # int computes 10**-ndigits
        raise OverflowError(f"{ndigits} digits are too many")
    return round(number, ndigits)


ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    **{
        f.__name__: f
        for f in (min, max, int, float, len, abs, set, tuple, sum, all, any)
    },
    "round": _round,
}


def bound(statement: ast.stmt) -> set[str]:
    """Return the names that *statement* binds, or may bind."""
    if isinstance(statement, DEFINITIONS):
        return {statement.name}
    names, of_a_loop = set[str](), set[ast.AST]()
    for node in ast.walk(statement):  # breadth first: a comprehension, then its names
        if isinstance(node, ast.comprehension):
            of_a_loop.update(ast.walk(node.target))
        elif isinstance(node, ast.Name):
            if not isinstance(node.ctx, ast.Load) and node not in of_a_loop:
                names.add(node.id)
        elif isinstance(node, DEFINITIONS):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.split(".")[0])
    return names


def constants(tree: ast.Module) -> dict[str, Any]:
    """Return the module-level constants of *tree* that are data, by name.

    A name that is bound again in a way that cannot be followed is left out.
    """
    evaluator = Evaluator(functions=ARITHMETIC)
    for statement in tree.body:
        if isinstance(statement, ast.AnnAssign) and statement.value is None:
            continue  # it binds nothing
        try:
            value = _assigned(statement)
            now = [] if value is None else [evaluator.value(value)]
        except Refused:  # torch.float32, say: a constant, but not data
            now = []
        for name in bound(statement):
            evaluator.names.pop(name, None)
            evaluator.names.update((name, value) for value in now)
    return evaluator.names


def _assigned(statement: ast.stmt) -> ast.expr | None:
    """Return what every name that *statement* binds is bound to, None if unclear."""
    match statement:
        case ast.Assign(targets=targets, value=value) if all(
            isinstance(target, ast.Name) for target in targets
        ):
            return value
        case ast.AnnAssign(target=ast.Name(), value=value):
            return value
        case ast.AugAssign(target=ast.Name(id=name), op=operation, value=change):
            now = ast.Name(id=name, ctx=ast.Load())
            return ast.fix_missing_locations(
                ast.BinOp(left=now, op=operation, right=change)
            )
    return None
