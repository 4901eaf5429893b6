"""What a trial says that ran out of GPU memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.training.oom import GIB, MEASURED_PARTS, USABLE, smaller, what_fits


def test_the_message_says_which_micro_batch_would_fit():
    said = what_fits(
        rows=256,
        micro_batch=128,
        peaks={16: 13 * GIB, 8: 7 * GIB},
        free_bytes=78 * GIB,
    )

    assert said == (
        "MICRO_BATCH_ROWS=128 needs about 97.0 GiB, MICRO_BATCH_ROWS=64 would fit "
        "(by what micro-batches of 8 and 16 took)"
    )


def test_the_message_says_when_not_one_row_fits():
    said = what_fits(rows=8, micro_batch=8, peaks={1: 9 * GIB}, free_bytes=8 * GIB)

    assert said == (
        "MICRO_BATCH_ROWS=8 needs about 72.0 GiB, not one row fits "
        "(by what micro-batches of 1 took)"
    )


@pytest.mark.parametrize(
    ("rows", "micro_batch", "expected"),
    [
        (256, 128, (16, 8)),
        (256, 4, (1, 1)),
        (96, 48, (6, 3)),
        (100, 100, (10, 5)),
    ],
)
def test_the_measured_micro_batches_divide_the_step(rows, micro_batch, expected):
    measured = tuple(smaller(rows, micro_batch, part) for part in MEASURED_PARTS)

    assert measured == expected


@given(
    rows=st.integers(2, 512),
    a_row=st.integers(1, 2 * GIB),
    fixed=st.integers(0, 20 * GIB),
    free=st.integers(1, 80 * GIB),
)
def test_what_is_said_to_fit_fits_and_divides_the_step(rows, a_row, fixed, free):
    measured = {smaller(rows, rows, part) for part in MEASURED_PARTS}
    peaks = {few: fixed + few * a_row for few in measured}

    said = what_fits(rows=rows, micro_batch=rows, peaks=peaks, free_bytes=free)

    if "would fit" in said:
        fits = int(said.split("=")[2].split()[0])
        assert rows % fits == 0
        assert fixed + fits * a_row <= USABLE * free * (1 + 1e-9)
    elif len(peaks) == 2:  # one alone says nothing of fewer rows
        assert fixed + a_row > USABLE * free * (1 - 1e-9)
