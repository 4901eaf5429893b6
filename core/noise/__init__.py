"""What is believed of the seed's noise while a context has no runs of its own.

Each file of ``measured/`` is a measurement by ``benchmarks/noise.py``, or one that was
published, with the context that it speaks of; docs/noise.md explains them.
"""

import json
import math
from pathlib import Path
from typing import Any

import attrs

from core.context import Context
from core.verdict import Noise

MEASURED = Path(__file__).with_name("measured")
# Of a measurement in another context: it says how large the noise may be, and gives way
# to the first runs that say how large it is.
BORROWED_DF = 2.0


@attrs.frozen(kw_only=True)
class Measurement:
    """How much val_bpb of the base moved with the seed alone.

    Attributes:
        source: Who measured it.
        context: The columns of its context that are known, by name.
        sd: Over seeds, in bits per byte.
        df: Degrees of freedom behind it.
    """

    source: str
    context: dict[str, Any]
    sd: float
    df: float

    @property
    def conditions(self) -> str:
        """Where it was measured, in a few words."""
        return f"{self.context['budget_seconds']:g} s on {self.context['device']}"


@attrs.frozen(kw_only=True)
class Belief:
    """The prior of a context, and the measurement that it rests on."""

    noise: Noise
    measurement: Measurement


def measurements(folder: Path = MEASURED) -> list[Measurement]:
    """Return all measurements, in the order of their files' names."""
    found = []
    for path in sorted(folder.glob("*.json")):
        read = json.loads(path.read_text())
        seed = read["seed"]
        found.append(
            Measurement(
                source=read["source"],
                context=read["context"],
                sd=seed["sd"],
                df=seed["df"],
            )
        )
    return found


def believed(context: Context, folder: Path = MEASURED) -> Belief:
    """Return what to believe of the noise in *context* before its first run.

    Of the measurements of its profile that of the nearest budget: noise shrinks as
    training goes on, more than it differs between machines.  Of several the largest.
    """
    near = [
        one for one in measurements(folder) if one.context["profile"] == context.profile
    ]
    assert near, f"a measurement for the profile {context.profile} is shipped"
    asked = attrs.asdict(context)
    same = [one for one in near if one.context == asked]
    nearest = max(same or near, key=lambda one: (-_distance(one, context), one.sd))
    df = nearest.df if same else min(nearest.df, BORROWED_DF)
    return Belief(noise=Noise(sd=nearest.sd, df=df), measurement=nearest)


def _distance(one: Measurement, context: Context) -> float:
    return abs(math.log(one.context["budget_seconds"] / context.budget_seconds))
