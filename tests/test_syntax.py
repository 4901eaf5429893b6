import ast
import contextlib
import importlib.util
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.syntax import ARITHMETIC, Evaluator, Refused, constants, parse

TRAIN = Path(__file__).resolve().parents[1] / "core" / "training" / "train.py"
NAMES = {
    "small": 3,
    "text": "SSSL",
    "pair": (2, 5),
    "rows": [1, 2, 4],
    "by_name": {"a": 1, "b": 2},
}


def value(source, **names):
    """Evaluate one expression over *names* with the functions of a training module."""
    (statement,) = parse(source).body
    return Evaluator(names=names, functions=ARITHMETIC).value(statement.value)


def refusal(source, **names):
    """Return why *source* is refused, and where."""
    with pytest.raises(Refused) as caught:
        value(source, **names)
    return caught.value.message, caught.value.line


NUMBERS = st.one_of(
    st.integers(-50, 50).map(repr),
    st.floats(-1e3, 1e3, allow_nan=False).map(repr),
    st.sampled_from(["small", "pair[0]", "rows[-1]", "by_name['b']", "len(text)"]),
)


def larger_numbers(part):
    return st.one_of(
        st.builds(
            "({} {} {})".format,
            part,
            st.sampled_from(["+", "-", "*", "/", "//", "%"]),
            part,
        ),
        st.builds("({} ** {})".format, part, st.integers(-3, 3)),
        st.builds("({}{})".format, st.sampled_from("+-"), part),
        st.builds("({} if {} < {} else {})".format, part, part, part, part),
        st.builds("({} or {} and {})".format, part, part, part),
        st.builds("max({}, {})".format, part, part),
        st.builds("[{}, {}][{} > 0]".format, part, part, part),
        st.builds("sum(x + {} for x in rows if x != {})".format, part, part),
    )


ARITHMETIC_TEXT = st.recursive(NUMBERS, larger_numbers, max_leaves=8)
COMPARISONS = st.builds(
    "{} {} {} {} {}".format,
    ARITHMETIC_TEXT,
    st.sampled_from(["<", "<=", "==", "!=", ">", ">="]),
    ARITHMETIC_TEXT,
    st.sampled_from(["<", "==", ">="]),
    ARITHMETIC_TEXT,
)
LITERALS = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
        st.binary(max_size=8),
    ),
    lambda part: st.one_of(
        st.lists(part, max_size=3),
        st.tuples(part, part),
        st.dictionaries(st.text(max_size=3), part, max_size=3),
    ),
    max_leaves=6,
).map(repr)
FORMATTED = st.one_of(
    st.builds("f'a{{{}!r}}b'".format, st.sampled_from(["small", "text"])),
    st.builds(
        "f'{{{}:{}.{}f}}'".format,
        st.sampled_from(["small", "pair[1]", "small / 7"]),
        st.sampled_from(["", "+", ">9", "012,"]),
        st.integers(0, 9),
    ),
    st.builds("f'{{text:{{small + {}}}}}|'".format, st.integers(1, 9)),
    st.builds("text[{}:{}:{}]".format, *[st.sampled_from(["", -3, 1, 2])] * 3),
)
COMPREHENSIONS = st.builds(
    "{0}x {1} {2}{3} for x in rows for y in {4} if x != y{5}".format,
    st.sampled_from(["["]),
    st.sampled_from(["+", "*", "-"]),
    st.sampled_from(["y", "small"]),
    st.sampled_from(["", " + 1"]),
    st.sampled_from(["(1, 2)", "(x, 3)", "pair", "[]"]),
    st.sampled_from(["]"]),
)


@given(
    st.one_of(ARITHMETIC_TEXT, COMPARISONS, LITERALS, FORMATTED, COMPREHENSIONS),
)
def test_an_expression_means_what_it_means_in_python(source):
    functions = {"__builtins__": {}, "len": len, "max": max, "sum": sum}
    try:
        expected = eval(source, functions | NAMES)
    except (ArithmeticError, TypeError, ValueError):
        with pytest.raises(Refused):
            value(source, **NAMES)
        return

    found = value(source, **NAMES)

    assert type(found) is type(expected)
    assert repr(found) == repr(expected)  # nan too, and -0.0


@pytest.mark.parametrize(
    "source",
    [
        "{x: y for x, y in ((1, 2), (3, 4))}",
        "{x % 2 for x in rows}",
        "tuple(x for x in rows if x in pair)",
        "{**by_name, 'c': 3}",
        "[*rows, *pair]",
        "not small",
        "text is None or 2 not in pair",
        "'S' <= 'a' < 'b'",
        "set(text) <= set('SL')",
        "2**-23",
        "10**-3000",
        "(-8) ** (1 / 3)",
        "round(2.675, 2), round(15, -1), round(2.5)",
        "'a' 'b' + text + f'{small=}'",
        "[[y for y in (x, x)] for x in rows]",
        "[x for x in rows for x in (x, x + 1)]",
    ],
)
def test_what_a_training_module_may_state_means_what_it_means_in_python(source):
    assert value(source, **NAMES) == eval(source, dict(NAMES))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("text.upper", "text.upper is not data."),
        ("(1).real", "1 .real is not data."),
        ("lambda: 1", "lambda: 1 is not data."),
        ("(small := 1)", "(small := 1) is not data."),
        ("await small", "await small is not data."),
        ("(yield small)", "(yield small) is not data."),
        ("small << 2", "small << 2 is not data."),
        ("~small", "~small is not data."),
        ("[x async for x in rows]", "async for is not data."),
        ("[1 for rows[0] in pair]", "rows[0] cannot be bound."),
        ("missing", "the name 'missing' is not bound above."),
        ("max", "max is not called here."),
        ("f'{rows}'", "[1, 2, 4] cannot be formatted here."),
        ("'%d' % small", "'%d' % small: '%d' is not a number."),
        ("1 / 0", "1 / 0: division by zero."),
        ("pair[2]", "pair[2]: tuple index out of range."),
        ("int('5', base=10, **{'base': 8})", "base= is given twice: keep one."),
        ("'\\ud800'", "'\\ud800' is not a text."),
    ],
)
def test_what_is_not_data_is_refused_in_words(source, message):
    assert refusal(source, **NAMES) == (message, 1)


@pytest.mark.parametrize(
    "call",
    [
        "print(1)",
        "open('x')",
        "__import__('os')",
        "getattr(text, 'upper')",
        "text.upper()",
        "rows[0]()",
        "max(1)(2)",
    ],
)
def test_only_the_given_functions_are_called(call):
    message, _ = refusal(call, **NAMES)

    assert message == (
        f"{call[: call.rindex('(')]} cannot be called here; known: "
        "abs, all, any, float, int, len, max, min, round, set, sum, tuple."
    )


def test_a_refusal_names_the_line_of_the_part_at_fault():
    assert refusal("(\n    1,\n    text.upper,\n)", **NAMES) == (
        "text.upper is not data.",
        3,
    )


@pytest.mark.parametrize(
    ("bomb", "message"),
    [
        ("9**9**9", "9 ** 9 ** 9: 9**387420489 is too large."),
        ("2.0**10**9", "2.0 ** 10 ** 9: (34, 'Numerical result out of range')."),
        ("'a' * 10**9", "'a' * 10 ** 9: 'a' is not a number."),
        ("[0] * 10**9", "[0] * 10 ** 9: [0] is not a number."),
        ("round(1, -10**9)", "round(1, -10 ** 9): -1000000000 digits are too many."),
        ("f'{1:>1000000000}'", "the format '>1000000000' is too wide."),
        ("f'{1:{10**6}}'", "the format '1000000' is too wide."),
        ("f'{1.0:.1000000f}'", "the format '.1000000f' is too wide."),
        ("0x1" + "0" * 9000, "an integer of 36,001 bits is too large."),
        ("-0x1" + "0" * 9000, "an integer of 36,001 bits is too large."),
        ("(0x1" + "0" * 9000 + ").real", "this expression is not data."),
        (
            "sum(1 " + " ".join(f"for {c} in range_" for c in "abcdefgh") + ")",
            "this takes more than 100,000 steps.",
        ),
        ("[range_ for a in range_ for b in range_]", None),
        ("[text_ + f'{a}{b}' for a in range_ for b in range_]", None),
    ],
)
def test_a_bomb_ends_at_once(bomb, message):
    found, _ = refusal(bomb, range_=tuple(range(100)), text_="a" * 60_000)

    assert found == (message or "this takes more than 100,000 steps.")


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ("(1,)", "a + a"),
        ("[1]", "[*a, *a]"),
        ("(1,)", "(a, a)"),
        ("'abc'", "(a, a, a, a)"),
        ("{'k': 1}", "{'k': a, 'l': a}"),
        ("'abc'", "a + a"),
        ("3", "a * a"),
        ("(1,)", "(a,)"),
    ],
)
def test_a_value_that_doubles_from_line_to_line_ends_at_once(first, again):
    source = f"a = {first}\n" + f"a = {again}\n" * 1000
    found = constants(parse(source))

    assert found == {}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("(" * 5000 + "1" + ")" * 5000, "too many nested parentheses."),
        ("x = 1\n" * 50_000, "300,000 bytes is more than 262,144."),
        (b"x = '\xff'", "(unicode error) 'utf-8' codec can't decode byte 0xff in "
         "position 0: invalid start byte."),
        (b"# coding: nope\nx = 1", "unknown encoding: nope."),
        ("x = '\ud800'", "'utf-8' codec can't encode character '\\ud800' in position "
         "5: surrogates not allowed."),
        ("x = (1", "'(' was never closed."),
        ("f(a=1 b=2)", "invalid syntax. Perhaps you forgot a comma?"),
    ],
)  # fmt: skip
def test_source_that_cannot_be_parsed_is_refused_at_once(source, message):
    with pytest.raises(Refused) as caught:
        parse(source)

    assert caught.value.message == message


@pytest.mark.parametrize(
    "source", ["a" + ".b" * 20_000, "-" * 5000 + "1", "1" + " + 1" * 5000]
)
def test_what_is_nested_too_deeply_is_refused_by_the_parser_or_by_us(source):
    # Which of the two depends on Python's version; neither may crash.
    with pytest.raises(Refused):
        Evaluator().value(parse(source).body[0].value)


def test_null_bytes_are_refused():
    with pytest.raises(Refused, match="null bytes"):
        parse(b"x = 1\0")


def test_an_expression_that_only_the_parser_can_stand_is_refused():
    node = ast.Constant(value=1)
    for _ in range(5000):
        node = ast.UnaryOp(op=ast.USub(), operand=node)

    with pytest.raises(Refused) as caught:
        Evaluator().value(node)

    assert caught.value.message == "this expression is nested too deeply."


@pytest.mark.parametrize(
    "source",
    [
        "[x for x in (1, 2)]",
        "{x: 1 for x in (1, 2)}",
        "[[x for x in (1, 2)] for _ in (1, 2)]",
        "[x / 0 for x in (1, 2)]",
        "[x.y for x in (1, 2)]",
    ],
)
def test_the_names_of_a_comprehension_end_with_it_even_when_it_fails(source):
    evaluator = Evaluator(names={"kept": 1})

    with contextlib.suppress(Refused):
        evaluator.value(parse(source).body[0].value)

    assert evaluator.names == {"kept": 1}


def test_a_comprehension_gives_back_the_name_that_it_hid():
    assert value("[x for x in (1, 2)] + [x]", x=7) == [1, 2, 7]


def test_the_constants_of_the_training_module_are_what_importing_it_gives():
    spec = importlib.util.spec_from_file_location("train_under_test", TRAIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    found = constants(parse(TRAIN.read_bytes()))

    assert found == {name: getattr(module, name) for name in found}
    assert found.keys() == {
        name
        for name, content in vars(module).items()
        if name.isupper() and not isinstance(content, type | ModuleType)
    }


# Lines that a codemod may add to a module, each after the last.
LINES = st.sampled_from([
    "A = 2",
    "A = B = 3",
    "A, B = 4, 5",
    "B = A * 2",
    "A += 1",
    "A: int = 6",
    "A: int",
    "del A",
    "if B > 3:\n    A = 7",
    "for A in (8, 9):\n    pass",
    "B = str(A)",
    "def A(): pass",
    "class B:\n    A = 1",
    "from math import pi as A",
    "C = [B for B in (1, 2)]",
    "C = [A := x for x in (1, 2)]",
    "try:\n    A = 1\nfinally:\n    B = 2",
])


@given(st.lists(LINES, max_size=6))
def test_a_constant_is_never_what_it_was_before_it_was_bound_again(lines):
    source = "\n".join(["A = 1", "B = 1", *lines])
    expected = {}
    try:
        exec(source, expected)
    except (NameError, TypeError):  # it would not even import
        return

    found = constants(parse(source))

    assert found == {name: expected[name] for name in found}


def test_a_constant_that_is_not_data_is_left_out_with_all_that_rests_on_it():
    tree = parse("DTYPE = torch.float32\nSIZE = 4\nBOTH = (DTYPE, SIZE)\n")

    assert constants(tree) == {"SIZE": 4}


def test_infinity_is_a_constant_like_any_other():
    assert constants(parse('SOFTCAP = float("inf")\n')) == {"SOFTCAP": math.inf}


def test_threads_read_sources_at_once():
    source = TRAIN.read_text()
    whole = ast.dump(parse(source))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(parse, [source] * 40))

    assert {ast.dump(tree) for tree in found} == {whole}
