from pathlib import Path
from textwrap import dedent

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import SpecError
from core.spec import Case, CodemodCall, Expect, Sweep, read_spec
from core.spec.vocabulary import MAX_CASES, substitute

IMPORTS = "from core.spec import Expect, Experiment, Sweep, codemod\n"
FIELDS = {"hypothesis": '"It helps."', "change": '"Change it."'}
PLAIN_DATA = (
    "write it with literals, names bound above, f-strings, comprehensions and Expect, "
    "Experiment, Sweep, codemod."
)
LEAVE_OUT = (
    "leave it out: a spec needs only what core.spec has, Expect, Experiment, Sweep, "
    "codemod."
)
NOT_A_NAME = "does not match [a-z][a-z0-9_]{0,63}."


@pytest.fixture
def read(tmp_path):
    """Write specs/x.py and read it."""

    def read(source, *, imports=IMPORTS):
        if isinstance(source, str):
            source = (imports + dedent(source)).encode()
        path = tmp_path / "specs" / "x.py"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(source)
        return read_spec(path, tmp_path)

    return read


@pytest.fixture
def cases(read):
    """Return the cases of a file without errors."""

    def cases(source, **options):
        found, errors = read(source, **options)
        assert [str(error) for error in errors] == []
        return found

    return cases


@pytest.fixture
def errors(read):
    """Return the whole texts of the errors of a file."""

    def errors(source, **options):
        _, found = read(source, **options)
        return [str(error) for error in found]

    return errors


def experiment(name="idea", **fields):
    """Return an experiment that says no more than it must, one field a line."""
    said = {**FIELDS, **fields}
    lines = [f"    {field}={text},\n" for field, text in said.items() if text]
    return f"{name} = Experiment(\n{''.join(lines)})\n"


def at(line, message, hint):
    return f"specs/x.py:{line}: {message}\n\nhint: {hint}"


# What a good file says


def test_a_spec_file_reads_as_it_is_written(cases):
    found = cases('''
        """Attention."""

        BASE = 10_000

        rope_base = Experiment(
            hypothesis=f"More than {BASE:,} keeps far positions apart.",
            change="Set the rotary base to {base}.",
            codemod=codemod("constants.SetConstant", name="ROPE_BASE", value="{base}"),
            sweep=Sweep(base=[5 * BASE, 10 * BASE]),
            expect=Expect(delta_bpb=-0.001, sd=0.002),
            tags=("attention", "speed"),
        )
    ''')

    assert found == [
        Case(
            file="specs/x.py",
            line=7,
            name="rope_base",
            values=(("base", base),),
            hypothesis="More than 10,000 keeps far positions apart.",
            change=f"Set the rotary base to {base}.",
            codemods=(
                CodemodCall(
                    reference="constants.SetConstant",
                    options=(("name", "ROPE_BASE"), ("value", base)),
                ),
            ),
            expect=Expect(delta_bpb=-0.001, sd=0.002),
            tags=("attention", "speed"),
            asked="c2e7077895dd1722",
        )
        for base in (50_000, 100_000)
    ]
    assert [case.id for case in found] == [
        "specs/x.py::rope_base[50000]",
        "specs/x.py::rope_base[100000]",
    ]


def test_an_experiment_needs_no_more_than_hypothesis_and_change(cases):
    (case,) = cases(experiment())

    assert case.id == "specs/x.py::idea"
    assert (case.expect, case.codemods, case.values, case.tags) == (None, (), (), ())


@pytest.mark.parametrize(
    ("imports", "source"),
    [
        (
            "from core.spec import Experiment as E\n",
            "idea = E(hypothesis='h', change='c')",
        ),
        (IMPORTS, "idea: Experiment = Experiment(hypothesis='h', change='c')"),
        (
            IMPORTS,
            "both = {'hypothesis': 'h'}\nidea = Experiment(**both, change='c')",
        ),
        (
            "from __future__ import annotations\n" + IMPORTS,
            "idea = Experiment(hypothesis='h', change='c')",
        ),
        (
            "\ufefffrom core.spec import Experiment\n",
            "idea = Experiment(hypothesis='h', change='c')",
        ),
    ],
)
def test_the_same_experiment_may_be_spelled_in_several_ways(cases, imports, source):
    (case,) = cases(source, imports=imports)

    assert (case.name, case.hypothesis, case.change) == ("idea", "h", "c")


@pytest.mark.parametrize(
    ("said", "delta"), [("0.002", 0.002), ("+0.002", 0.002), ("1", 1), ("-1e-3", -1e-3)]
)
def test_a_prediction_may_be_of_harm_and_may_carry_its_sign(cases, said, delta):
    tags = "('harm',)" if delta > 0 else None

    (case,) = cases(experiment(expect=f"Expect(delta_bpb={said})", tags=tags))

    assert case.expect.delta_bpb == delta


def test_several_codemods_keep_their_order(cases):
    (case,) = cases(experiment(codemod="[codemod('a.B', v=1), codemod('c.d.E')]"))

    assert [str(call) for call in case.codemods] == ["a.B(v=1)", "c.d.E()"]


def test_an_axis_alone_keeps_its_type_and_inside_a_text_it_is_formatted(cases):
    found = cases(
        experiment(
            change='"Use {v}."',
            codemod="codemod('a.B', alone='{v}', inside='={v}=', in_a_tuple=('{v}', 1))",
            sweep='Sweep(v=(1, 0.5, True, None, "relu"))',
        )
    )

    assert [case.codemods[0].options for case in found] == [
        (("alone", v), ("inside", f"={v}="), ("in_a_tuple", (v, 1)))
        for v in (1, 0.5, True, None, "relu")
    ]
    assert type(found[2].codemods[0].options[0][1]) is bool
    assert [case.change for case in found][1::3] == ["Use 0.5.", "Use relu."]


def test_braces_that_are_no_axis_stay(cases):
    (first, _) = cases(
        experiment(
            hypothesis='"As x^{2} and {}."',
            codemod="codemod('a.B', new='{x: 1}', v='{v}')",
            sweep="Sweep(v=(1, 2))",
        )
    )

    assert first.hypothesis == "As x^{2} and {}."
    assert first.codemods[0].options[0] == ("new", "{x: 1}")


def test_a_swept_text_that_looks_like_an_axis_is_only_a_text():
    values = {"a": "{b}", "b": 1}

    assert substitute("{a} and {b}", values) == "{b} and 1"
    assert substitute("{a}", values) == "{b}"


def test_several_axes_are_combined_the_last_one_fastest(cases):
    found = cases(
        experiment(change='"{a}{b}"', sweep="Sweep(a=(1, 2), b=('x', 'y'))"),
    )

    assert [case.label for case in found] == [
        "idea[1-x]",
        "idea[1-y]",
        "idea[2-x]",
        "idea[2-y]",
    ]


@given(
    st.dictionaries(
        st.from_regex(r"\A[a-z][a-z0-9_]{0,6}\Z"),
        st.lists(st.integers(), min_size=1, max_size=4, unique=True),
        min_size=1,
        max_size=3,
    )
)
def test_a_sweep_has_each_combination_once(axes):
    found = [tuple(case.values()) for case in Sweep(**axes).cases()]

    size = 1
    for values in axes.values():
        size *= len(values)
    assert len(found) == len(set(found)) == size


def test_the_size_of_a_sweep_is_checked_before_anything_is_expanded():
    million = range(10**6)
    with pytest.raises(SpecError) as caught:
        Sweep(a=tuple(million), b=tuple(million))

    assert str(caught.value) == (
        "this sweep has 1,000,000,000,000 cases; at most 64 are run.\n\n"
        "hint: sweep fewer values, or split it into experiments."
    )


def test_a_sweep_may_have_as_many_cases_as_are_run():
    assert len(list(Sweep(a=tuple(range(MAX_CASES))).cases())) == MAX_CASES


# The claim and its digest


def test_the_digest_does_not_change_with_the_line(cases):
    (here,), (there,) = cases(experiment()), cases("\n\n# a comment\n" + experiment())

    assert here.line != there.line
    assert here.digest == there.digest


@pytest.mark.parametrize(
    "changed",
    [
        {"hypothesis": '"It harms."'},
        {"change": '"Change that."'},
        {"expect": "Expect(delta_bpb=-0.002)"},
        {"expect": "Expect(delta_bpb=-0.001, sd=0.1)"},
        {"expect": "Expect(delta_bpb=-0.001, on='cpu')"},
        {"expect": None},
        {"codemod": "codemod('a.B', v=2)"},
        {"codemod": "codemod('a.B', v='1')"},
        {"tags": "('speed',)"},
        {"name": "other"},
    ],
)
def test_the_digest_changes_with_the_claim(cases, changed):
    claim = {"expect": "Expect(delta_bpb=-0.001)", "codemod": "codemod('a.B', v=1)"}

    (before,) = cases(experiment(**claim))
    (after,) = cases(experiment(**{**claim, **changed}))

    assert before.digest != after.digest
    assert len(before.digest) == 16


def test_each_case_of_a_sweep_has_a_digest_of_its_own(cases):
    found = cases(experiment(change='"{v}"', sweep="Sweep(v=(1, 2, 4))"))

    assert len({case.digest for case in found}) == 3


def test_cases_cannot_be_changed_once_they_are_read(cases):
    (case,) = cases(experiment())

    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        case.name = "other"


# What is wrong with a field: the field, the line, what was found, and the fix

EXPECT = [
    (
        "Expect(delta_bpb='-0.001')",
        "delta_bpb='-0.001': expected a number of bits per byte.",
        "write it without quotes: delta_bpb=-0.001.",
    ),
    (
        "Expect(delta_bpb='-0.002..-0.001')",
        "delta_bpb='-0.002..-0.001': expected a number of bits per byte.",
        "write delta_bpb=-0.0015, sd=0.00025, which reads the range as two sd to either "
        "side.",
    ),
    (
        "Expect(delta_bpb=(-0.002, -0.001))",
        "delta_bpb=(-0.002, -0.001): expected a number of bits per byte.",
        "write delta_bpb=-0.0015, sd=0.00025, which reads the range as two sd to either "
        "side.",
    ),
    (
        "Expect(delta_bpb='-0.001 to 0.001')",
        "delta_bpb='-0.001 to 0.001': expected a number of bits per byte.",
        "write delta_bpb=0, within=0.001, which reads the range as two sd to either "
        "side.",
    ),
    (
        "Expect(delta_bpb='small')",
        "delta_bpb='small': expected a number of bits per byte.",
        "give one number, and its uncertainty as sd=: delta_bpb=-0.001.",
    ),
    (
        "Expect(delta_bpb=True)",
        "delta_bpb=True: expected a number of bits per byte.",
        "write a finite number, negative for an improvement: delta_bpb=-0.001.",
    ),
    (
        "Expect(delta_bpb=-1e999)",
        "delta_bpb=-inf: expected a number of bits per byte.",
        "write a finite number, negative for an improvement: delta_bpb=-0.001.",
    ),
    (
        "Expect(delta_bpb=-0.001, sd='wide')",
        "sd='wide': expected a number of bits per byte.",
        "write one number above 0: sd=0.001.",
    ),
    (
        "Expect(delta_bpb=-0.001, sd=-0.01)",
        "sd=-0.01: expected more than 0 bits per byte.",
        "give the width, without a sign: sd=0.001.",
    ),
    (
        "Expect(delta_bpb=0, within=0)",
        "within=0: expected more than 0 bits per byte.",
        "give the width, without a sign: within=0.001.",
    ),
    (
        "Expect(delta_bpb=0)",
        "delta_bpb=0 predicts no change, and no run can show exactly none.",
        "say what still counts as the same: within=0.001.",
    ),
    (
        "Expect(delta_bpb=-0.01, within=0.001)",
        "within=0.001 goes with delta_bpb=0, not with delta_bpb=-0.01.",
        "use sd= for the uncertainty of a prediction that is not 0.",
    ),
    (
        "Expect(delta_bpb=-0.01, on='GPU')",
        "on='GPU': expected one of gpu, cpu.",
        "name the profile that the prediction speaks of.",
    ),
    (
        "Expect(-0.01)",
        "Expect(-0.01, ...) does not say which field this is.",
        "name it; the fields are delta_bpb, sd, within, on.",
    ),
    (
        "Expect()",
        "Expect misses the field 'delta_bpb'.",
        "add delta_bpb=-0.001, in bits per byte: negative is an improvement.",
    ),
    (
        "Expect(delta=-0.01)",
        "Expect has no field 'delta'.",
        "did you mean 'delta_bpb'?",
    ),
    (
        "-0.003",
        "expect=-0.003: expected Expect(...).",
        "write expect=Expect(delta_bpb=-0.003).",
    ),
    (
        "'better'",
        "expect='better': expected Expect(...).",
        "write expect=Expect(delta_bpb=-0.001).",
    ),
    (
        "Expect",
        "Expect is not called here.",
        "write Expect(...).",
    ),
]  # fmt: skip
SWEEP = [
    (
        "Sweep()",
        "Sweep() has no axis.",
        "name an axis and its values: Sweep(base=(50_000, 100_000)).",
    ),
    (
        "Sweep((1, 2))",
        "Sweep((1, 2)) does not say which axis this is.",
        "name it: Sweep(base=(1, 2, 4)).",
    ),
    (
        "Sweep(v=5)",
        "v=5: expected a tuple of values.",
        "list the values: v=(1, 2, 4).",
    ),
    (
        "Sweep(v='abc')",
        "v='abc': expected a tuple of values.",
        "list the values: v=(1, 2, 4).",
    ),
    (
        "Sweep(v=())",
        "v=(): expected a tuple of values.",
        "list the values: v=(1, 2, 4).",
    ),
    (
        "Sweep(v=(1, (2, 3)))",
        "v=(2, 3): expected a number, a text or a truth value.",
        "write the values of v as plain data.",
    ),
    (
        "Sweep(v=(1e999,))",
        "v=inf: expected a number, a text or a truth value.",
        "write the values of v as plain data.",
    ),
    (
        "Sweep(v=(1, 2, 1))",
        "v=(1, 2, 1) names a value twice.",
        "list each value once.",
    ),
    (
        "Sweep(v=(1, '1'))",
        "v=(1, '1') names a value twice.",
        "list each value once.",
    ),
    (
        "Sweep(v=('a\\n',))",
        "v='a\\n': expected a text that a terminal can show.",
        "leave out its special characters: v names the cases.",
    ),
    (
        "Sweep(V=(1, 2))",
        f"the axis 'V' {NOT_A_NAME}",
        "name it in lower case, as in Sweep(base=...).",
    ),
    (
        "{'v': (1, 2)}",
        "sweep={'v': (1, 2)}: expected Sweep(...).",
        "write sweep=Sweep(base=(50_000, 100_000)).",
    ),
    (
        "Sweep(v=range(3))",
        "range cannot be called here; known: Expect, Experiment, Sweep, codemod.",
        PLAIN_DATA,
    ),
    (
        "Sweep(v=[x for x in (0, 1, 2, 3, 4, 5, 6, 7) for y in 'abcdefghijk'])",
        "this sweep has 88 cases; at most 64 are run.",
        "sweep fewer values, or split it into experiments.",
    ),
]  # fmt: skip
CODEMOD = [
    (
        "'constants.SetConstant'",
        "codemod='constants.SetConstant': expected codemod(...), or a tuple of them.",
        'write codemod=codemod("constants.SetConstant", name=..., value=...).',
    ),
    (
        "codemod('SetConstant')",
        "codemod('SetConstant') names no codemod: expected 'module.Class'.",
        "name a class below codemods/, as in "
        'codemod("constants.SetConstant", name=..., value=...).',
    ),
    (
        "codemod('a.B\\n')",
        "codemod('a.B\\n') names no codemod: expected 'module.Class'.",
        "name a class below codemods/, as in "
        'codemod("constants.SetConstant", name=..., value=...).',
    ),
    (
        "codemod()",
        "codemod takes one reference, and got 0.",
        'write codemod("module.Class", option=value).',
    ),
    (
        "codemod('constants.SetConstant', 'DEPTH', 4)",
        "codemod takes one reference, and got 3.",
        'write codemod("module.Class", option=value).',
    ),
    (
        "codemod('a.B', v=[1])",
        "codemod option v=[1]: expected a number, a text, a truth value, None or a "
        "tuple of them.",
        "write v= as plain data.",
    ),
    (
        "codemod('a.B', v='{base}')",
        "v='{base}' refers to an axis, and there is no axis 'base'.",
        "add sweep=Sweep(base=(...)), or write the value itself.",
    ),
    (
        "codemod",
        "codemod is not called here.",
        "write codemod(...).",
    ),
]  # fmt: skip
TAGS = [
    (
        "'attention'",
        "tags='attention' is one text: expected a tuple of tags.",
        'write tags=("attention",).',
    ),
    (
        "('attention')",
        "tags='attention' is one text: expected a tuple of tags.",
        'write tags=("attention",).',
    ),
    (
        "5",
        "tags=5: expected a tuple of tags.",
        'list them: tags=("attention", "speed").',
    ),
    (
        "('Long context',)",
        f"the tag 'Long context' {NOT_A_NAME}",
        'use lower case and underscores: tags=("long_context",).',
    ),
    (
        "('speed\\n',)",
        f"the tag 'speed\\n' {NOT_A_NAME}",
        'use lower case and underscores: tags=("speed",).',
    ),
    (
        "('9lives',)",
        f"the tag '9lives' {NOT_A_NAME}",
        'begin with a letter, as in tags=("attention", "speed").',
    ),
    (
        "(7,)",
        f"the tag 7 {NOT_A_NAME}",
        'begin with a letter, as in tags=("attention", "speed").',
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "said", "message", "hint"),
    [
        (field, *row)
        for field, rows in (
            ("expect", EXPECT),
            ("sweep", SWEEP),
            ("codemod", CODEMOD),
            ("tags", TAGS),
        )
        for row in rows
    ],
)
def test_a_field_that_is_wrong_says_how_to_put_it_right(
    errors, field, said, message, hint
):
    # A prediction, a sweep and a codemod are called where they stand, in line 5; what
    # the experiment, or the file, makes of them is known where it stands, in line 2.
    found = errors(experiment(**{field: said}))

    placed = 2 if "axis" in message and field == "codemod" else 5
    assert found == [at(placed, message, hint)]


@pytest.mark.parametrize(
    ("fields", "line", "message", "hint"),
    [
        (
            {"hypothesis": None},
            2,
            "Experiment misses the field 'hypothesis'.",
            'add hypothesis="...", which says why the change should help or harm.',
        ),
        (
            {"hypothesis": None, "change": None, "tags": "()"},
            2,
            "Experiment misses the fields 'hypothesis' and 'change'.",
            'add hypothesis="...", which says why the change should help or harm and '
            'change="...", which says what to change in the training module.',
        ),
        (
            {"hypothesis": '" "'},
            3,
            "hypothesis=' ': expected a sentence.",
            "say in hypothesis= why the change should help or harm.",
        ),
        (
            {"change": '"One,", "two."'},
            5,
            "positional argument follows keyword argument.",
            "correct this first: nothing else in the file was read.",
        ),
        (
            {"change": '("One,", "two.")'},
            4,
            "change=('One,', 'two.'): expected a sentence.",
            "write one text, without commas between its parts or behind it.",
        ),
        (
            {"hypothesis": None, "hypotesis": '"It helps."'},
            4,
            "Experiment has no field 'hypotesis'.",
            "did you mean 'hypothesis'?",
        ),
        (
            {"priority": "1"},
            5,
            "Experiment has no field 'priority'.",
            "use one of its fields: hypothesis, change, expect, codemod, sweep, tags.",
        ),
        (
            {"sweep": "Sweep(base=(1, 2))"},
            2,
            "the axis 'base' of the sweep is used nowhere in change=.",
            'write "{base}" where its value goes in change=, or take it out of the '
            "sweep.",
        ),
        (
            {
                "change": '"Use {base}."',
                "codemod": "codemod('a.B', v='{bsae}')",
                "sweep": "Sweep(base=(1, 2))",
            },
            2,
            "the axis 'base' of the sweep is used nowhere in codemod=.",
            'write "{base}" in place of "{bsae}".',
        ),
    ],
)
def test_an_experiment_that_is_wrong_says_how_to_put_it_right(
    errors, fields, line, message, hint
):
    assert errors(experiment(**fields)) == [at(line, message, hint)]


@pytest.mark.parametrize(
    ("source", "message", "hint"),
    [
        (
            "Experiment('It helps.', 'Change it.')",
            "a spec file holds data, not a call by itself.",
            "bind it to a name: NAME = Experiment(...).",
        ),
        (
            "idea = Experiment('It helps.', change='Change it.')",
            "Experiment('It helps.', ...) does not say which field this is.",
            "name it; the fields are hypothesis, change, expect, codemod, sweep, tags.",
        ),
        (
            "idea = Experiment(hypothesis='h' change='c')",
            "invalid syntax. Perhaps you forgot a comma?",
            "correct this first: nothing else in the file was read.",
        ),
        (
            "idea = Experiment(hypothesis='h', change='c'",
            "'(' was never closed.",
            "correct this first: nothing else in the file was read.",
        ),
        (
            "idea = Experiment(hypothesis='h', change='a', change='b')",
            "change= is given twice: keep one.",
            PLAIN_DATA,
        ),
        (
            "Idea = Experiment(hypothesis='h', change='c')",
            f"the experiment 'Idea' {NOT_A_NAME}",
            "name it in lower case and underscores, at most 64 characters.",
        ),
        (
            f"{'a' * 65} = Experiment(hypothesis='h', change='c')",
            f"the experiment {'a' * 65!r} {NOT_A_NAME}",
            "name it in lower case and underscores, at most 64 characters.",
        ),
        (
            "ideas = [Experiment(hypothesis='h', change='c')]",
            "ideas holds an Experiment that has no name of its own.",
            "bind each Experiment to a name; use Sweep for a family.",
        ),
        (
            "ideas = {'a': {'b': (Experiment(hypothesis='h', change='c'),)}}",
            "ideas holds an Experiment that has no name of its own.",
            "bind each Experiment to a name; use Sweep for a family.",
        ),
        (
            "a = b = Experiment(hypothesis='h', change='c')",
            "a spec file holds data, not this assignment.",
            "bind one plain name in each statement: NAME = Experiment(...).",
        ),
        (
            "import os",
            "import os: a spec file imports nothing but the spec vocabulary.",
            LEAVE_OUT,
        ),
        (
            "import core.spec",
            "import core.spec: a spec file imports nothing but the spec vocabulary.",
            "write: from core.spec import Expect, Experiment, Sweep, codemod.",
        ),
        (
            "from .attention import rope",
            "from .attention import rope: a spec file imports nothing but the spec "
            "vocabulary.",
            LEAVE_OUT,
        ),
        (
            "from deltaspec import Experiment",
            "from deltaspec import Experiment: a spec file imports nothing but the "
            "spec vocabulary.",
            "write: from core.spec import Experiment.",
        ),
        (
            "from core.spec import Experimnt",
            "from core.spec import Experimnt: a spec file imports nothing but the "
            "spec vocabulary.",
            "write: from core.spec import Experiment.",
        ),
        (
            "from core.spec import *",
            "from core.spec import *: a spec file imports nothing but the spec "
            "vocabulary.",
            "write: from core.spec import Expect, Experiment, Sweep, codemod.",
        ),
        (
            "flag = true",
            "the name 'true' is not bound above.",
            "did you mean 'True'?",
        ),
        (
            "idea = Experimant(hypothesis='h', change='c')",
            "Experimant cannot be called here; known: Expect, Experiment, Sweep, "
            "codemod.",
            "did you mean 'Experiment'?",
        ),
        (
            "text = 'at {}'.format(5)",
            "'at {}'.format cannot be called here; known: Expect, Experiment, Sweep, "
            "codemod.",
            PLAIN_DATA,
        ),
        (
            "x = f(",
            "'(' was never closed.",
            "correct this first: nothing else in the file was read.",
        ),
    ],
)
def test_a_line_that_is_wrong_says_how_to_put_it_right(errors, source, message, hint):
    assert errors(source) == [at(2, message, hint)]


@pytest.mark.parametrize(
    ("imports", "missing"),
    [("", "Expect, Experiment"), ("from core.spec import Experiment\n", "Expect")],
)
def test_a_forgotten_import_is_named_once_for_the_whole_file(errors, imports, missing):
    told = experiment(expect="Expect(delta_bpb=-0.001)")
    lines = {"": 1, "from core.spec import Experiment\n": 5}

    found = errors(told + told.replace("idea", "other"), imports=imports)

    name = missing.split(", ")[-1]
    assert found == [
        at(
            lines[imports],
            f"the name {name!r} is not bound above.",
            f"add: from core.spec import {missing}.",
        )
    ]


@pytest.mark.parametrize(
    "source",
    ["", "# nothing yet\n", '"""Attention."""\n', "expect = Expect(delta_bpb=-0.01)\n"],
)
def test_a_file_without_an_experiment_is_an_error_not_an_empty_success(errors, source):
    assert errors(source) == [
        at(
            1,
            "no Experiment is bound to a name in this file.",
            "write NAME = Experiment(...), or start the file's name with '_'.",
        )
    ]


def test_two_experiments_of_one_name_are_an_error(errors):
    assert errors(experiment() + experiment()) == [
        at(
            6,
            "there are two experiments idea in this file; the other stands in line 2.",
            "give each experiment, and each of its cases, a name of its own.",
        )
    ]


def test_two_cases_of_one_id_are_an_error(errors):
    sweep = "Sweep(a=('1', '1-2'), b=('2-3', '3'))"

    assert errors(experiment(change='"{a}{b}"', sweep=sweep)) == [
        at(
            2,
            "there are two experiments idea[1-2-3] in this file; the other stands in "
            "line 2.",
            "give each experiment, and each of its cases, a name of its own.",
        )
    ]


# Several errors of one file


def test_every_statement_that_is_wrong_is_reported_with_its_line(read):
    found, errors = read(
        experiment("first", expect="-0.001")
        + experiment("good")
        + "import os\n"
        + experiment("second", tags="'speed'")
    )

    assert [(error.place, error.field) for error in errors] == [
        ("specs/x.py:5", "expect"),
        ("specs/x.py:11", None),
        ("specs/x.py:15", "tags"),
    ]
    assert [case.name for case in found] == ["good"]


@pytest.mark.parametrize(
    "first",
    [
        "common = Expect(delta=-0.001)\n",
        "common = 1 / 0\n",
        "common = missing\n",
        "common = (1, other := 2)\n",
        "import common\n",
        "from elsewhere import common\n",
        "from elsewhere import this, common\n",
        "import elsewhere.sub as common\n",
        "def common(): pass\n",
        "class common: pass\n",
        "for common in (1, 2): pass\n",
        "common, other = 1, 2\n",
        "with open('x') as common: pass\n",
    ],
)
@pytest.mark.parametrize(
    "use", ["common", "common.value", "common()", "common.sub.make(1)", "(common, 1)"]
)
def test_an_error_does_not_cascade_through_the_names_that_it_left_unbound(
    errors, first, use
):
    found = errors(first + experiment(expect=use) + experiment("again", expect=use))

    assert len(found) == 1
    assert found[0].startswith("specs/x.py:2: ")


def test_an_error_does_not_hide_one_that_has_nothing_to_do_with_it(errors):
    found = errors("""
        broken = [1 / 0 for hidden in (1,)]
        a = (hidden, broken)
        again = 1 / 0
        again = 5
        b = agian
    """)

    assert [text.partition("\n")[0] for text in found] == [
        "specs/x.py:3: 1 / 0: division by zero.",
        "specs/x.py:4: the name 'hidden' is not bound above.",
        "specs/x.py:5: 1 / 0: division by zero.",
        "specs/x.py:7: the name 'agian' is not bound above.",
    ]


def test_several_unknown_fields_are_reported_in_the_order_of_the_file(errors):
    (found,) = errors(experiment(zeta="1", alpha="2", hypotesis="3"))

    assert found.startswith("specs/x.py:5: Experiment has no field 'zeta'.")


# A spec file is never executed


@pytest.mark.parametrize(
    "line",
    [
        "open({target!r}, 'w').write('x')",
        "x = open({target!r}, 'w').write('x')",
        "import os; os.system('touch {target}')",
        "import os; x = os.system('touch {target}')",
        "x = __import__('os').system('touch {target}')",
        "x = [].__class__.__base__.__subclasses__()",
        "class A:\n    x = open({target!r}, 'w')",
        "@open\ndef {name}(): pass",
        "def f(x=open({target!r}, 'w')): pass",
        "x = lambda: open({target!r}, 'w')",
        "x = (lambda: open({target!r}, 'w'))()",
        "x: open({target!r}, 'w') = open({target!r}, 'w')",
        "x = f\"{{open({target!r}, 'w')}}\"",
        "x = [open(p, 'w') for p in ({target!r},)]",
        "x = Experiment(hypothesis=open({target!r}, 'w'), change='c')",
        "assert open({target!r}, 'w')",
        "with open({target!r}, 'w') as f: pass",
        "raise SystemExit",
        "while True: pass",
        "from pathlib import Path; x = Path({target!r}).touch()",
        "exec(\"open({target!r}, 'w')\")",
        "codemod = codemod('a.B', v=open({target!r}, 'w'))",
    ],
)
def test_a_file_that_would_do_something_does_nothing_and_is_reported(
    read, tmp_path, line
):
    target = tmp_path / "touched"

    _, errors = read(line.format(target=str(target), name="f"))

    assert errors
    assert all(error.place.startswith("specs/x.py:") for error in errors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["specs"]


def test_an_annotation_is_never_looked_at(cases, tmp_path):
    target = tmp_path / "touched"

    cases(f"idea: open({str(target)!r}, 'w') = Experiment(hypothesis='h', change='c')")

    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x = 1\0", "source code string cannot contain null bytes."),
        (
            b"x = '\xff'",
            "(unicode error) 'utf-8' codec can't decode byte 0xff in position 0: "
            "invalid start byte.",
        ),
        (b"(" * 5000 + b")" * 5000, "too many nested parentheses."),
        (b"x" + b".y" * 20_000, "this is nested too deeply."),
        (b"x = 1\n" * 50_000, "300,000 bytes is more than 262,144."),
    ],
)
def test_a_file_that_cannot_be_read_is_one_error_at_once(errors, content, message):
    found = errors(content)

    assert found == [
        at(1, message, "correct this first: nothing else in the file was read.")
    ]


@pytest.mark.parametrize(
    "bomb",
    [
        "a = 9**9**9",
        "a = 'a' * 10**9",
        "a = (1,)\n" + "a = a + a\n" * 60,
        "a = 'x'\n" + "a = (a, a)\n" * 60 + "b = Experiment(hypothesis=a, change=a)",
        "a = 3\n" + "a = a * a\n" * 60,
        "a = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)\n"
        "b = [w for w in a for x in a for y in a for z in a for t in a]",
        "a = (1,)\n" + "a = (a,)\n" * 5000 + "b = codemod('a.B', v=a)",
    ],
)
def test_a_bomb_is_an_error_at_once(errors, bomb):
    found = errors(bomb)

    assert found
    assert max(map(len, found)) < 2000


@given(source=st.text(max_size=40))
def test_whatever_a_file_holds_it_is_read_or_reported(tmp_path_factory, source):
    project = tmp_path_factory.getbasetemp()
    path = project / "x.py"
    path.write_bytes((IMPORTS + source).encode(errors="surrogatepass"))

    cases, errors = read_spec(path, project)

    assert cases or errors


def test_the_specs_that_we_ship_have_no_errors():
    project = Path(__file__).resolve().parents[1]
    files = [p for p in (project / "specs").rglob("*.py") if p.name[0] != "_"]

    assert files
    for path in files:
        assert read_spec(path, project)[1] == []
