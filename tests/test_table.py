import re
import string

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from core.evidence import Verdict
from core.report.table import WIDTH, Row, line, measured, predicted, table
from core.spec import Expect

EXPECT = Expect(delta_bpb=-0.001, sd=0.001)
VERDICT = Verdict(
    mutant="9f",
    claim="-0.001",
    attempt=0,
    word="refuted",
    reason="Look 2 of 6.",
    delta_bpb=0.00042,
    lower_bpb=-0.00058,
    upper_bpb=0.00142,
    predicted_bpb=-0.001,
    size_held=False,
    replication=None,
    noise_sd=0.0018,
    noise_df=4.0,
    looks=6,
    candidates=2,
    bases=2,
    seconds=672.4,
    runs=("r1", "r2"),
)
WITHOUT = {"delta_bpb": None, "lower_bpb": None, "upper_bpb": None, "size_held": None}
WORDS = ("supported", "refuted", "inconclusive", "invalid", "crashed", "measured")


def a_row(label="qk_norm", *, file="attention", expect=EXPECT, stored=False, **said):
    return Row(
        id=f"specs/{file}.py::{label}",
        expect=expect,
        verdict=attrs.evolve(VERDICT, **said),
        stored=stored,
    )


def plain(*rows):
    return table(rows, colour=False).split("\n")


def notes(*rows):
    """Return what stands below the table, as one line."""
    shown = plain(*rows)
    return " ".join(text.strip() for text in shown[1 + len(rows) + 1 :])


# --- the whole


def test_the_table_shows_predicted_beside_measured():
    rows = [
        a_row(),
        a_row("rope_base[200000]", file="rotary", word="supported", delta_bpb=-0.0021,
              lower_bpb=-0.0031, replication=0.87, size_held=True, candidates=6),
        a_row("wide", word="crashed", reason="oom with seed 0, twice: no memory.",
              candidates=2, expect=Expect(delta_bpb=0.002), **WITHOUT),
        a_row("bias", word="measured", predicted_bpb=None, expect=None),
    ]  # fmt: skip

    shown = table(rows, colour=False)

    assert [text.rstrip() for text in shown.split("\n")] == [
        "experiment                    predicted   measured ± 90 %  seeds    s  verdict",
        "specs/attention.py",
        "  qk_norm                    -0.001 gpu  +0.0004 ± 0.0010      2  672  refuted",
        "  wide                       +0.002 gpu                 –      2  672  crashed",
        "  bias                                –  +0.0004 ± 0.0010      2  672  measured",
        "specs/rotary.py",
        "  rope_base[200000]          -0.001 gpu  -0.0021 ± 0.0010      6  672  supported",
        "rope_base[200000]: a repetition is supported too with 87%.",
        "wide: oom with seed 0, twice: no memory.",
    ]


labels = st.from_regex(r"[a-z][a-z0-9_]{0,80}", fullmatch=True)
swept = st.lists(
    st.one_of(st.text(max_size=40), st.floats(), st.integers(), st.booleans()),
    max_size=3,
)
numbers = st.floats(allow_nan=False, allow_infinity=False)
expects = st.one_of(
    st.none(),
    st.builds(
        Expect,
        delta_bpb=numbers.filter(bool),
        on=st.sampled_from(["gpu", "cpu"]),
    ),
    st.builds(
        Expect,
        delta_bpb=st.just(0),
        within=st.floats(0, exclude_min=True, allow_infinity=False),
    ),
)


@st.composite
def rows(draw):
    values = "-".join(map(str, draw(swept)))
    estimate = draw(st.booleans())
    delta = draw(numbers) if estimate else None
    return a_row(
        draw(labels) + (f"[{values}]" if values else ""),
        file=draw(labels),
        expect=draw(expects),
        stored=draw(st.booleans()),
        word=draw(st.sampled_from(WORDS)),
        reason=draw(st.text(max_size=300)),
        delta_bpb=delta,
        lower_bpb=draw(st.floats(max_value=delta)) if estimate else None,
        predicted_bpb=draw(st.none() | numbers),
        size_held=draw(st.sampled_from([None, True, False])),
        replication=draw(st.none() | st.floats(0, 1)),
        candidates=draw(st.integers(0, 64)),
        seconds=draw(st.floats(0, 1e7)),
        attempt=draw(st.integers(0, 99)),
    )


@given(st.lists(rows(), min_size=1, max_size=4))
@example([a_row("x" * 64, file="y" * 64), a_row("z[" + "-".join("9" * 64) + "]")])
@example([a_row("日本" * 30, delta_bpb=1e300, lower_bpb=-1e300)])
def test_no_line_is_wider_than_eighty_columns(shown):
    lines = table(shown, colour=False).split("\n")

    assert max(map(cell_len, lines)) <= WIDTH == 80
    assert not [text for text in lines if set(text) & set("\x1b\r\x07\x08\x9b")]


@settings(max_examples=40)
@given(st.lists(rows(), min_size=1, max_size=3))
def test_every_word_and_number_of_seeds_is_readable(shown):
    text = table(shown, colour=False)

    for row in shown:
        assert re.search(rf"\b{row.verdict.candidates} .*\b{row.verdict.word}\b", text)


def test_colour_changes_no_text():
    shown = [a_row(word=word, candidates=n) for n, word in enumerate(WORDS)]

    coloured = table(shown, colour=True)

    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == table(shown, colour=False)


@pytest.mark.parametrize(
    ("word", "code"),
    [("supported", "32"), ("refuted", "33"), ("crashed", "31"), ("invalid", "31")],
)
def test_a_word_has_its_colour(word, code):
    assert f"\x1b[{code}m{word}" in table([a_row(word=word)], colour=True)


@pytest.mark.parametrize("word", ["inconclusive", "measured"])
def test_a_word_that_decides_nothing_has_no_colour(word):
    assert f"m{word}" not in table([a_row(word=word)], colour=True)


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "CLICOLOR_FORCE", "COLORTERM"])
def test_the_environment_cannot_colour_what_goes_into_a_file(monkeypatch, variable):
    monkeypatch.setenv(variable, "1")

    assert "\x1b" not in table([a_row()], colour=False)


def test_a_narrow_terminal_does_not_change_the_table(monkeypatch):
    wide = plain(a_row())
    monkeypatch.setenv("COLUMNS", "20")

    assert plain(a_row()) == wide


def test_experiments_stand_below_their_file_in_the_order_in_which_they_come():
    shown = plain(
        a_row("second", file="b"),
        a_row("first", file="a"),
        a_row("third", file="b"),
    )

    assert [text.split()[0] for text in shown[1:6]] == [
        "specs/a.py",
        "first",
        "specs/b.py",
        "second",
        "third",
    ]


@pytest.mark.parametrize(
    "label",
    ["activation[relu]", "activation[/relu]", "norm[bold red]", "word[:smile:]"],
)
def test_a_swept_text_is_shown_as_it_is(label):
    shown = plain(a_row(label, word="inconclusive"))

    assert shown[2].startswith(f"  {label} ")
    assert shown[3] == f"{label}: Look 2 of 6."


def test_a_name_that_is_too_long_goes_on_in_the_next_line():
    name = string.ascii_lowercase * 2

    shown = plain(a_row(name))

    assert shown[2].split()[0] + shown[3].strip() == name


# --- numbers


@pytest.mark.parametrize(
    ("expect", "text"),
    [
        (None, "–"),
        (Expect(delta_bpb=-0.001), "-0.001 gpu"),
        (Expect(delta_bpb=0.0025, on="cpu"), "+0.0025 cpu"),
        (Expect(delta_bpb=0, within=0.0005), "0±0.0005 gpu"),
        (Expect(delta_bpb=-1), "-1 gpu"),
    ],
)
def test_a_prediction_is_shown_with_its_profile(expect, text):
    assert predicted(expect) == text


@pytest.mark.parametrize(
    ("delta", "lower", "text"),
    [
        (-0.0021, -0.0031, "-0.0021 ± 0.0010"),
        (0.00042, -0.00058, "+0.0004 ± 0.0010"),
        (0.0, -0.25, "+0.0000 ± 0.2500"),
        (1e300, -1e300, "+1e+300 ± 2e+300"),
        (None, None, "–"),
    ],
)
def test_a_measured_change_is_shown_with_half_its_interval(delta, lower, text):
    verdict = attrs.evolve(VERDICT, delta_bpb=delta, lower_bpb=lower)

    assert measured(verdict) == text


# --- notes


@pytest.mark.parametrize(
    ("said", "note"),
    [
        (
            {"word": "supported", "replication": 0.914, "size_held": True},
            "qk_norm: a repetition is supported too with 91%.",
        ),
        (
            {"word": "supported", "replication": 0.9, "size_held": False},
            "qk_norm: a repetition is supported too with 90%; the predicted size lies "
            "outside the interval.",
        ),
        (
            {"word": "inconclusive", "reason": "Look 6 of 6: too many to refute."},
            "qk_norm: Look 6 of 6: too many to refute.",
        ),
        (
            {"word": "invalid", "reason": "invalid with seed 0: it reads ahead."},
            "qk_norm: invalid with seed 0: it reads ahead.",
        ),
        ({"attempt": 2}, "qk_norm: attempt 3, on fresh seeds."),
        ({"word": "refuted"}, ""),
        (
            {"word": "measured", "predicted_bpb": None},
            "measured: predictions for gpu are not judged under another profile.",
        ),
        (
            {"stored": True},
            "1 of 1 verdicts are from earlier sessions; --rerun tests them on fresh "
            "seeds.",
        ),
    ],
)
def test_a_note_says_what_no_column_can(said, note):
    assert notes(a_row(**said)) == note


def test_a_long_reason_goes_on_in_the_next_line_between_words():
    reason = "The loss is not a number after step 12. " * 5

    shown = plain(a_row(word="crashed", reason=reason.strip(), **WITHOUT))

    below = shown[3:]
    assert len(below) > 2
    assert all(cell_len(text) <= WIDTH for text in below)
    assert " ".join(text.strip() for text in below) == f"qk_norm: {reason.strip()}"


def test_what_a_child_said_cannot_colour_the_terminal():
    reason = "exception with seed 0, twice: \x1b[31m\x9b2Jboo\nsupported"

    shown = table([a_row(word="crashed", reason=reason, **WITHOUT)], colour=True)

    assert r"twice: \x1b[31m\x9b2Jboo\nsupported." in shown.replace("\n", " ")


# --- one line


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({}, "refuted      specs/attention.py::qk_norm  +0.0004  2 seeds  672 s"),
        (
            {"candidates": 1, "word": "measured"},
            "measured     specs/attention.py::qk_norm  +0.0004  1 seed  672 s",
        ),
        (
            {"word": "crashed", **WITHOUT},
            "crashed      specs/attention.py::qk_norm  2 seeds  672 s",
        ),
        (
            {"stored": True},
            "refuted      specs/attention.py::qk_norm  +0.0004  2 seeds  (stored)",
        ),
    ],
)
def test_a_verdict_is_told_in_one_line(said, text):
    assert line(a_row(**said))[0] == text


def test_a_line_is_marked_with_the_colour_of_its_word():
    assert line(a_row(word="supported"))[1] == {"green": True}
    assert line(a_row(word="inconclusive"))[1] == {}


def test_a_line_obeys_no_swept_text():
    assert line(a_row("x[\x1b[31m\n]"))[0].startswith(
        r"refuted      specs/attention.py::x[\x1b[31m\n]  "
    )
