"""Say what a GPU that ran out of memory was asked for, what was free, and what would fit."""

import re

import torch

MICRO_BATCH = "MICRO_BATCH_ROWS"  # the constant of a module that its memory grows with
MEASURED_PARTS = (8, 16)  # of the micro-batch that did not fit
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


def smaller(rows: int, micro_batch: int, part: int) -> int:
    """Return the micro-batch to measure with: *part* of it, and it divides *rows*."""
    return max(d for d in range(1, max(1, micro_batch // part) + 1) if rows % d == 0)


def what_fits(
    *, rows: int, micro_batch: int, peaks: dict[int, int], free_bytes: int
) -> str:
    """Return which micro-batch would fit, in a sentence.

    Memory is taken to grow in proportion to the rows, from what it takes without any.

    Args:
        rows: Of an optimizer step.
        micro_batch: Rows of a micro-batch that did not fit.
        peaks: Most memory that smaller ones took, in bytes by their rows.
        free_bytes: Memory that there is without any of it.
    """
    (few, low), (most, high) = min(peaks.items()), max(peaks.items())
    a_row = (high - low) / (most - few) if most > few else high / most

    def needed(count: int) -> float:
        more = count - most
        # What one size took says nothing of fewer rows.
        return high + (max(0, more) if most == few else more) * a_row

    needs = needed(micro_batch) / GIB
    fitting = [
        d
        for d in range(1, micro_batch)
        if rows % d == 0 and needed(d) <= USABLE * free_bytes
    ]
    fits = f"{MICRO_BATCH}={max(fitting)} would fit" if fitting else "not one row fits"
    measured = " and ".join(map(str, sorted(peaks)))
    return (
        f"{MICRO_BATCH}={micro_batch} needs about {needs:.1f} GiB, {fits} "
        f"(by what micro-batches of {measured} took)"
    )
