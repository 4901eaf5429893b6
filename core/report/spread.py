"""How far val_bpb of the base moves with the seed, run by run."""

import statistics
from collections.abc import Sequence

from core.evidence import Outcome


def spread(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line for each seed with a number, and one for each device with two.

    Args:
        outcomes: Of the base, in one context; of a seed on a device the first counts.
    """
    lines = []
    for device in dict.fromkeys(outcome.device for outcome in outcomes):
        found: dict[int, float] = {}
        for outcome in outcomes:
            if outcome.device == device and outcome.val_bpb is not None:
                found.setdefault(outcome.seed, outcome.val_bpb)
        lines += [
            f"{'seed':<6}{seed:>4}  val_bpb {bpb:.5f}"
            for seed, bpb in sorted(found.items())
        ]
        if len(found) > 1:
            lines.append(
                f"{'mean':<10}  val_bpb {statistics.mean(found.values()):.5f}, "
                f"sd {statistics.stdev(found.values()):.5f} on {device}"
            )
    return lines
