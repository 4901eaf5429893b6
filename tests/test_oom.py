"""What a trial says that ran out of GPU memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.training.oom import GIB, USABLE, smaller, what_fits


def test_the_message_says_which_micro_batch_would_fit():
    said = what_fits(
        rows=256,
        micro_batch=128,
        measured=16,
        peak_bytes=13 * GIB,
        kept_bytes=1 * GIB,
        free_bytes=78 * GIB,
    )

    assert said == (
        "MICRO_BATCH_ROWS=128 needs about 97.0 GiB, MICRO_BATCH_ROWS=64 would fit "
        "(by what 16 rows took)"
    )


def test_the_message_says_when_not_one_row_fits():
    said = what_fits(
        rows=8,
        micro_batch=8,
        measured=1,
        peak_bytes=9 * GIB,
        kept_bytes=1 * GIB,
        free_bytes=8 * GIB,
    )

    assert said == (
        "MICRO_BATCH_ROWS=8 needs about 65.0 GiB, not one row fits "
        "(by what 1 rows took)"
    )


@pytest.mark.parametrize(
    ("rows", "micro_batch", "expected"),
    [(256, 128, 16), (256, 4, 1), (12, 12, 1), (96, 48, 6), (100, 100, 10)],
)
def test_the_measured_micro_batch_divides_the_step(rows, micro_batch, expected):
    assert smaller(rows, micro_batch) == expected


@given(
    rows=st.integers(2, 512),
    a_row=st.integers(1, 2 * GIB),
    kept=st.integers(0, 20 * GIB),
    free=st.integers(1, 80 * GIB),
)
def test_what_is_said_to_fit_fits_and_divides_the_step(rows, a_row, kept, free):
    said = what_fits(
        rows=rows,
        micro_batch=rows,
        measured=1,
        peak_bytes=kept + a_row,
        kept_bytes=kept,
        free_bytes=free,
    )

    if "would fit" in said:
        fits = int(said.split("=")[2].split()[0])
        assert rows % fits == 0
        assert kept + fits * a_row <= USABLE * free
    else:
        assert kept + a_row > USABLE * free
