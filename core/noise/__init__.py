"""What is believed of the seed's noise while a context has no runs of its own.

Each file of ``measured/`` holds runs and the context that they speak of; docs/noise.md
explains them, and ``benchmarks/noise.py`` makes such a file.
"""

import json
import math
from pathlib import Path
from typing import Any

import attrs

from core.context import Context
from core.verdict import Noise

MEASURED = Path(__file__).with_name("measured")
# What a measurement is worth, of however many runs: another machine at another time was
# noisier or quieter, so it gives way to the first runs that say how noisy this one is.
MOST_DF = 2.0


@attrs.frozen(kw_only=True)
class Measurement:
    """How much val_bpb of the base moved with the seed alone.

    Attributes:
        context: The columns of its context that are known, by name.
        sd: Over seeds, in bits per byte.
        df: Degrees of freedom behind it.
    """

    context: dict[str, Any]
    sd: float
    df: float

    @property
    def conditions(self) -> str:
        """Where it was measured, in a few words."""
        return f"{self.context['budget_seconds']:g} s on {self.context['device']}"


@attrs.frozen(kw_only=True)
class Belief:
    """The prior of a context, and the measurements that it rests on."""

    noise: Noise
    measurements: tuple[Measurement, ...]

    @property
    def conditions(self) -> str:
        """Where they were measured, in a few words."""
        return ", ".join(measurement.conditions for measurement in self.measurements)


def measurements(folder: Path = MEASURED) -> list[Measurement]:
    """Return all measurements, in the order of their files' names."""
    found = []
    for path in sorted(folder.glob("*.json")):
        read = json.loads(path.read_text())
        found.append(
            Measurement(
                context=read["context"],
                sd=read["seed"]["sd"],
                df=read["seed"]["df"],
            )
        )
    return found


def believed(context: Context, folder: Path = MEASURED) -> Belief:
    """Return what to believe of the noise in *context* before its first run.

    Noise shrinks as training goes on: between two budgets it is interpolated, as a power
    of the budget.  Of several measurements with one budget that of most seeds counts.
    """
    ours = [
        one for one in measurements(folder) if one.context["profile"] == context.profile
    ]
    assert ours, f"a measurement for the profile {context.profile} is shipped"
    by_budget: dict[float, Measurement] = {}
    for one in sorted(ours, key=lambda one: (one.df, one.sd)):
        by_budget[one.context["budget_seconds"]] = one
    at = min(max(context.budget_seconds, min(by_budget)), max(by_budget))
    low = max(budget for budget in by_budget if budget <= at)
    high = min(budget for budget in by_budget if budget >= at)
    near = tuple(by_budget[budget] for budget in dict.fromkeys((low, high)))
    share = math.log(at / low) / math.log(high / low) if low < high else 0.0
    sd = near[0].sd ** (1 - share) * near[-1].sd ** share
    df = min(MOST_DF, *(one.df for one in near))
    return Belief(noise=Noise(sd=sd, df=df), measurements=near)
