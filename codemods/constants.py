"""Change the module-level constants of a training module."""

import ast
from fractions import Fraction

import libcst as cst
from libcst.codemod import CodemodContext

from codemods.base import Codemod, close, exchanged, expression, literal
from core.errors import CodemodRefused, NoChange, SiteNotFound
from core.syntax import constants

Value = bool | int | float | str | tuple | None
MULTIPLICATIVE = cst.Multiply | cst.Divide | cst.FloorDivide | cst.Modulo | cst.Power


class SetConstant(Codemod):
    """Give a module-level constant another value.

    A text is a text: ``value="SL"`` writes ``"SL"``.  What Python should compute is
    given as ``expression="SEQUENCE_LEN // 4"`` instead.
    """

    DESCRIPTION = "Give a module-level constant another value"

    EXAMPLES = (
        (
            {"name": "ROPE_BASE", "value": 200_000},
            """
            ROPE_BASE = 10_000  # rotary
            """,
            """
            ROPE_BASE = 200_000  # rotary
            """,
        ),
        (
            {"name": "WINDOW_PATTERN", "value": "SL"},
            """
            WINDOW_PATTERN: str = "SSSL"
            """,
            """
            WINDOW_PATTERN: str = "SL"
            """,
        ),
        (
            {"name": "SHORT_WINDOW", "expression": "SEQUENCE_LEN // 4"},
            """
            SEQUENCE_LEN = 2048
            SHORT_WINDOW = SEQUENCE_LEN // 2
            """,
            """
            SEQUENCE_LEN = 2048
            SHORT_WINDOW = SEQUENCE_LEN // 4
            """,
        ),
    )

    def __init__(
        self,
        context: CodemodContext,
        *,
        name: str,
        value: Value = None,
        expression: str | None = None,
    ) -> None:
        super().__init__(context)
        self.name = name
        self.value = value
        self.expression = expression

    def transform_module_impl(self, tree: cst.Module) -> cst.Module:
        """Write the new value in place of the old one."""
        old = constant(tree, self.name)
        new = given(self.value, self.expression, instead_of=old)
        return replaced(tree, self.name, old, new)


class ScaleConstant(Codemod):
    """Multiply a module-level constant by a factor, exactly.

    The factor is a number, read as its decimals, or a text such as ``"1/4"``.  An
    integer stays an integer, or it is an error.  A constant that is computed stays
    computed: ``SEQUENCE_LEN // 2`` times 1/4 is ``SEQUENCE_LEN // 8``.
    """

    DESCRIPTION = "Multiply a module-level constant by a factor, exactly"

    EXAMPLES = (
        (
            {"name": "DEPTH", "factor": 1.5},
            """
            DEPTH = 8
            """,
            """
            DEPTH = 12
            """,
        ),
        (
            {"name": "SHORT_WINDOW", "factor": "1/4"},
            """
            SEQUENCE_LEN = 2048
            SHORT_WINDOW = SEQUENCE_LEN // 2  # tokens back
            """,
            """
            SEQUENCE_LEN = 2048
            SHORT_WINDOW = SEQUENCE_LEN // 8  # tokens back
            """,
        ),
        (
            {"name": "TOTAL_BATCH_TOKENS", "factor": 0.5},
            """
            TOTAL_BATCH_TOKENS = 2**19
            """,
            """
            TOTAL_BATCH_TOKENS = 2**18
            """,
        ),
        (
            {"name": "EMBEDDING_LR", "factor": "4/3"},
            """
            ADAM_LR_SCALE = (512 / 768) ** -0.5
            EMBEDDING_LR = 0.6  # times ADAM_LR_SCALE
            """,
            """
            ADAM_LR_SCALE = (512 / 768) ** -0.5
            EMBEDDING_LR = 0.8  # times ADAM_LR_SCALE
            """,
        ),
        (
            {"name": "MATRIX_BOUND", "factor": 0.8},
            """
            MODEL_DIM = 512
            MATRIX_BOUND = (3 / MODEL_DIM) ** 0.5
            """,
            """
            MODEL_DIM = 512
            MATRIX_BOUND = (3 / MODEL_DIM) ** 0.5 * 0.8
            """,
        ),
        (
            {"name": "N_KV_HEAD", "factor": "3/4"},
            """
            N_HEAD = 4
            N_KV_HEAD = N_HEAD
            """,
            """
            N_HEAD = 4
            N_KV_HEAD = N_HEAD * 3 // 4
            """,
        ),
    )

    def __init__(
        self, context: CodemodContext, *, name: str, factor: float | str
    ) -> None:
        super().__init__(context)
        self.name = name
        try:
            # str(0.1) is what was written; 0.1 itself is a little more.
            self.factor = Fraction(str(factor))
        except (ValueError, ZeroDivisionError) as error:
            raise CodemodRefused(
                f"factor={factor!r} is not a number.",
                hint='give a number as 0.25, or a fraction as "1/4".',
            ) from error
        if self.factor <= 0:
            raise CodemodRefused(
                f"factor={factor!r} is not above 0.",
                hint="scale by a positive factor, or set the value by SetConstant.",
            )

    def transform_module_impl(self, tree: cst.Module) -> cst.Module:
        """Write the scaled value, or expression, in place of the old one."""
        old = constant(tree, self.name)
        text = _code(old)
        value = constants(ast.parse(tree.code)).get(self.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CodemodRefused(
                f"{self.name} = {text} is not a number that can be scaled.",
                hint="set it by SetConstant(name=..., expression=...).",
            )
        scaled = self.factor * (value if isinstance(value, int) else 1)
        if isinstance(value, int) and scaled.denominator != 1:
            raise CodemodRefused(
                f"{self.name} = {text} is {value}, and {self.factor} of it is no integer.",
                hint="choose a factor that leaves an integer.",
            )
        new = (
            _scaled_integer(old, self.factor, int(scaled))
            if isinstance(value, int)
            else _scaled_float(old, self.factor)
        )
        if new is None:
            new = _times(old, self.factor, keeps_integer=isinstance(value, int))
        return replaced(tree, self.name, old, cst.parse_expression(new))


def constant(tree: cst.Module, name: str) -> cst.BaseExpression:
    """Return what the one module-level constant called *name* is bound to.

    Raises:
        SiteNotFound: There is none.
        CodemodRefused: It is bound more than once.
    """
    bound = [
        (target, part.value)
        for line in tree.body
        if isinstance(line, cst.SimpleStatementLine)
        for part in line.body
        if (target := _bound_name(part)) is not None
    ]
    found = [value for target, value in bound if target == name]
    if not found:
        raise SiteNotFound(
            f"The training module has no constant {name!r}.",
            hint=f"use a name that is there: {close(name, (n for n, _ in bound))}.",
        )
    if len(found) > 1:
        raise CodemodRefused(
            f"The training module binds {name!r} {len(found)} times.",
            hint="write a codemod that tells them apart.",
        )
    return found[0]


def _bound_name(part: cst.BaseSmallStatement) -> str | None:
    match part:
        case cst.Assign(targets=[cst.AssignTarget(target=cst.Name(value=name))]):
            return name
        case cst.AnnAssign(target=cst.Name(value=name), value=cst.BaseExpression()):
            return name
    return None


def given(
    value: Value, source: str | None, *, instead_of: cst.BaseExpression | None
) -> cst.BaseExpression:
    """Return the *value* or the expression, one of which the user gave.

    Raises:
        CodemodRefused: Neither or both were given, or the source is no expression.
    """
    if (value is None) == (source is None):
        how_many = "neither" if source is None else "both"
        raise CodemodRefused(
            f"Of value= and expression=, {how_many} is given.",
            hint='give one; None itself is expression="None".',
        )
    if source is not None:
        return expression(source, option="expression")
    text = literal(value)
    if type(value) is int and isinstance(instead_of, cst.Integer):
        text = _like(instead_of.value, value)
    return cst.parse_expression(text)


def replaced(
    tree: cst.Module, name: str, old: cst.BaseExpression, new: cst.BaseExpression
) -> cst.Module:
    """Return *tree* with the value of *name* exchanged.

    Raises:
        NoChange: It has that value already.
    """
    text = _code(new)
    if _code(old) == text:
        raise NoChange(
            f"{name} is {text} already.",
            hint="set another value, or leave the codemod out.",
        )
    return exchanged(tree, old, new)


def _like(old: str, value: int) -> str:
    """Return *value* with the digits grouped as in *old*."""
    return f"{value:_}" if "_" in old else str(value)


def _decimal(value: Fraction) -> str:
    return repr(float(value))


def _scaled_integer(
    old: cst.BaseExpression, factor: Fraction, scaled: int
) -> str | None:
    """Return a short exact way to write *old* times *factor*, if there is one."""
    match old:
        case cst.Integer(value=text):
            return _like(text, scaled)
        case cst.UnaryOperation(operator=cst.Minus(), expression=cst.Integer()):
            return str(scaled)
        case cst.BinaryOperation(
            left=cst.Integer(value=base),
            operator=cst.Power() as power,
            right=cst.Integer(value=exponent),
        ) if not old.lpar and int(base, 0) > 1:
            for shift in range(-int(exponent, 0), 65):
                if factor == Fraction(int(base, 0)) ** shift:
                    return f"{base}{_code(power)}{int(exponent, 0) + shift}"
        case cst.BinaryOperation(
            left=left,
            operator=cst.FloorDivide() as divide,
            right=cst.Integer(value=divisor),
        ) if not old.lpar and factor.numerator == 1:
            # floor(floor(x / a) / b) is floor(x / (a b))
            return f"{_code(left)}{_code(divide)}{int(divisor, 0) * factor.denominator}"
    return None


def _scaled_float(old: cst.BaseExpression, factor: Fraction) -> str | None:
    """Scale the number that *old* is, or the one that its product begins with."""
    match old:
        case cst.Float(value=text):
            return repr(float(Fraction(text.replace("_", "")) * factor))
        case cst.UnaryOperation(operator=cst.Minus(), expression=cst.Float() as size):
            return f"-{_scaled_float(size, factor)}"
        case cst.BinaryOperation(
            left=left, operator=cst.Multiply() as times, right=right
        ) if not old.lpar:
            if (scaled := _scaled_float(left, factor)) is not None:
                return f"{scaled}{_code(times)}{_code(right)}"
    return None


def _times(old: cst.BaseExpression, factor: Fraction, *, keeps_integer: bool) -> str:
    """Multiply the expression *old* as a whole."""
    binds_tightly = not isinstance(
        old, cst.BinaryOperation | cst.BooleanOperation | cst.Comparison | cst.IfExp
    ) or (
        isinstance(old, cst.BinaryOperation)
        and isinstance(old.operator, MULTIPLICATIVE)
    )
    text = _code(old) if old.lpar or binds_tightly else f"({_code(old)})"
    decimal = repr(float(factor))
    if not keeps_integer and Fraction(decimal) == factor:
        return f"{text} * {decimal}"
    if factor.numerator != 1:
        text = f"{text} * {factor.numerator}"
    divide = "//" if keeps_integer else "/"
    return f"{text} {divide} {factor.denominator}" if factor.denominator != 1 else text


def _code(node: cst.CSTNode) -> str:
    return cst.Module([]).code_for_node(node)
