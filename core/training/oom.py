"""Say what a GPU that ran out of memory was asked for, what was free, and what would fit."""

import re

import torch

MICRO_BATCH = "MICRO_BATCH_ROWS"  # the constant of a module that its memory grows with
USABLE = 0.95  # of free memory; the rest is lost between blocks
GIB = 2**30


class OutOfMemory(MemoryError):
    """The GPU has less memory than the module asks for."""


def shortage(error: torch.OutOfMemoryError, device: torch.device) -> str:
    """Return what was asked for and what was free when *error* was raised."""
    asked = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
    free, total = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (
        f"{asked[1] if asked else 'more'} was asked for, and {free / GIB:.2f} of "
        f"{total / GIB:.2f} GiB were free"
    )


def smaller(rows: int, micro_batch: int) -> int:
    """Return the micro-batch to measure with: about an eighth, and it divides *rows*."""
    return max(d for d in range(1, max(1, micro_batch // 8) + 1) if rows % d == 0)


def what_fits(
    *,
    rows: int,
    micro_batch: int,
    measured: int,
    peak_bytes: int,
    kept_bytes: int,
    free_bytes: int,
) -> str:
    """Return which micro-batch would fit, in a sentence.

    Memory is taken to grow in proportion to the rows, from what is kept between steps;
    gradients count as growing, so the answer is rather too small than too large.

    Args:
        rows: Of an optimizer step.
        micro_batch: Rows of a micro-batch that did not fit.
        measured: Rows of the micro-batch that was measured.
        peak_bytes: Memory that it took at most.
        kept_bytes: Memory that it kept between steps.
        free_bytes: Memory that there is without any of it.
    """
    a_row = (peak_bytes - kept_bytes) / measured
    needs = (kept_bytes + micro_batch * a_row) / GIB
    fitting = [
        d
        for d in range(1, micro_batch)
        if rows % d == 0 and kept_bytes + d * a_row <= USABLE * free_bytes
    ]
    fits = f"{MICRO_BATCH}={max(fitting)} would fit" if fitting else "not one row fits"
    return (
        f"{MICRO_BATCH}={micro_batch} needs about {needs:.1f} GiB, {fits} "
        f"(by what {measured} rows took)"
    )
