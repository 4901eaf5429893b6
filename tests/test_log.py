import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.launch.log import LINE_CHARACTERS, TAIL_BYTES, TAIL_LINES, escaped, tail


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.txt"


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b2J", r"\x9b2J"),  # an escape sequence in one C1 character
        ("50%\r100%", r"50%\r100%"),
        ("a\x00b\x08c\x7f", r"a\x00b\x08c\x7f"),
        ("safe\u202egnp.exe", r"safe\u202egnp.exe"),
        ("\u2066hidden\u2069", r"\u2066hidden\u2069"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("one\u2028two\u2029three\u0085four", r"one\u2028two\u2029three\x85four"),
        ("\ud800", r"\ud800"),
        ("\U000e0041tag", r"\U000e0041tag"),
        ("loss\t7.25 ± 0.1, ∇ 日本 🙂", "loss\t7.25 ± 0.1, ∇ 日本 🙂"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(printed, shown):
    assert escaped(printed) == shown


@given(st.text(st.characters(codec=None)))
def test_nothing_that_is_shown_can_move_hide_or_reorder_text(text):
    shown = escaped(text)

    kinds = {unicodedata.category(character) for character in shown} - {"Cc", "Zs"}
    assert not [kind for kind in kinds if kind[0] in "CZ"]
    assert {c for c in shown if unicodedata.category(c) in ("Cc", "Zs")} <= {"\t", " "}


@given(st.text())
def test_what_is_escaped_stays_as_it_is(text):
    assert escaped(escaped(text)) == escaped(text)


def test_the_tail_is_the_last_lines_that_say_something(log):
    log.write_text("\n".join(f"step {n}\n\n   " for n in range(100)))

    lines = tail(log)

    assert lines == tuple(f"step {n}" for n in range(100 - TAIL_LINES, 100))


def test_a_traceback_keeps_its_indentation(log):
    log.write_text('Traceback:\n  File "train.py", line 3\nValueError: no\n')

    assert tail(log) == ("Traceback:", '  File "train.py", line 3', "ValueError: no")


def test_bytes_that_are_no_text_are_written_out(log):
    log.write_bytes(b"ok \xff\xfe\x80 \xc3\xa4\n\xe2\x82")

    assert tail(log) == (r"ok \xff\xfe\x80 ä", r"\xe2\x82")


@given(st.binary(max_size=2000))
def test_whatever_was_printed_the_tail_is_short_and_tame(tmp_path_factory, printed):
    log = tmp_path_factory.getbasetemp() / "any.txt"
    log.write_bytes(printed)

    lines = tail(log)

    assert len(lines) <= TAIL_LINES
    assert all(len(line) <= LINE_CHARACTERS and line.strip() for line in lines)
    assert all(escaped(line) == line for line in lines)


def test_of_a_huge_log_only_the_end_is_read(log):
    with log.open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no room, and an hour to read
        file.seek(0, os.SEEK_END)
        file.write(b"\nthe last word\n")

    lines = tail(log)

    assert lines[-1] == "the last word"
    assert len(lines) == 2
    assert lines[0] == (r"\x00" * TAIL_BYTES)[:LINE_CHARACTERS]


def test_a_line_of_a_megabyte_is_cut(log):
    log.write_text("x" * (1 << 20) + "\nend")

    assert tail(log) == ("x" * LINE_CHARACTERS, "end")


@pytest.mark.parametrize("written", [None, "", "\n \n\t\n"])
def test_a_log_that_says_nothing_has_no_tail(log, written):
    if written is not None:
        log.write_text(written)

    assert tail(log) == ()


def test_a_log_in_a_folder_that_is_gone_has_no_tail(tmp_path):
    assert tail(tmp_path / "gone" / "log.txt") == ()


def test_a_pipe_in_place_of_a_log_does_not_make_us_wait(log):
    os.mkfifo(log)

    assert tail(log) == ()


def test_a_link_in_place_of_a_log_is_not_followed(log, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("a key\n")
    log.symlink_to(secret)

    assert tail(log) == ()


def test_a_folder_in_place_of_a_log_has_no_tail(log):
    log.mkdir()

    assert tail(log) == ()
