"""Say what the runs of one experiment mean: samples and a prediction in, one word out.

A group-sequential t-test, read after every candidate run; arithmetic only.  Where it
stops is in `design`.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import attrs
import numpy as np
from attrs.validators import gt, lt
from scipy.special import ndtr, ndtri, stdtrit

from core.verdict.design import (
    FALSE_REFUTATION,
    FALSE_SUPPORT,
    HOPELESS,
    Floats,
    as_t,
    boundaries,
    chances,
    estimated_sd,
    gauss_legendre,
    stops,
)

__all__ = [
    "COVERAGE",
    "FALSE_REFUTATION",
    "FALSE_SUPPORT",
    "HOPELESS",
    "Decision",
    "Estimate",
    "Measured",
    "Noise",
    "Sample",
    "boundaries",
    "decide",
    "estimate",
    "pool",
    "power",
    "seeds_needed",
]

COVERAGE = 0.90  # of the intervals
HALF_WIDTH = float(ndtri((1 + COVERAGE) / 2))  # of an interval, in standard errors


@attrs.frozen(kw_only=True)
class Measured:
    """A run that has a number.

    Attributes:
        val_bpb: In bits per byte.
        seed: Runs of one mutant with one seed are one draw of the seed's effect.
        device: A block: its speed adds the same to every run on it.
    """

    val_bpb: float = attrs.field(validator=[gt(-math.inf), lt(math.inf)])
    seed: int
    device: str


Sample = Sequence[Measured]  # runs of one mutant, in any order


@attrs.frozen(kw_only=True)
class Noise:
    """How much val_bpb moves with the seed alone, in bits per byte."""

    sd: float = attrs.field(validator=[gt(0), lt(math.inf)])
    df: float = attrs.field(validator=gt(0))  # degrees of freedom; math.inf: known


@attrs.frozen(kw_only=True)
class Estimate:
    """A measured effect in bits per byte, with an interval that has COVERAGE."""

    delta_bpb: float  # candidate minus base, within devices
    lower: float  # the interval is not corrected for having stopped early
    upper: float
    sd: float  # of the seed, and the degrees of freedom behind it
    df: float
    information: float  # sd^2 over the variance of delta_bpb
    candidates: int  # runs
    bases: int  # runs on devices that the candidate ran on


@attrs.frozen(kw_only=True)
class Decision:
    """What the runs so far say about a prediction."""

    word: str | None  # supported, refuted, inconclusive; None: go on
    reason: str  # one sentence, empty without a word
    estimate: Estimate
    replication: float | None = None  # P(an exact repetition is supported as well)
    size_held: bool | None = None  # does the interval hold it?  None: no size declared


def pool(blocks: Iterable[Sequence[float]], prior: Noise) -> Noise:
    """Estimate the seed's noise from every mutant of one context.

    The prior counts as ``prior.df`` more squared deviations of ``prior.sd``, a scaled
    inverse chi-squared (Gelman et al., Bayesian Data Analysis, section 2.6).

    Args:
        blocks: val_bpb of one mutant on one device over different seeds, since between
            devices it differs by more than the seed; one run alone adds nothing.
        prior: What was believed before the first run.
    """
    if math.isinf(prior.df):
        return prior
    squares, df = [prior.df * prior.sd**2], prior.df
    for block in blocks:
        mean = _mean(block)
        squares += [(value - mean) ** 2 for value in block]
        df += len(block) - 1
    return Noise(sd=math.sqrt(math.fsum(squares) / df), df=df)


def estimate(candidate: Sample, base: Sample, noise: Noise) -> Estimate:
    """Measure the effect of a candidate, with its interval; all in bits per byte.

    The difference is taken within each device, and the differences are averaged: the
    intra-block estimate of an unbalanced block design (Cochran & Cox, Experimental
    Designs (1957), section 9.3; Cox, Planning of Experiments (1958), chapter 3), so
    that a device's speed cancels.

    Args:
        candidate: Runs of the candidate.
        base: Runs of the base; those on a device without the candidate are ignored.
        noise: The seed's.

    Raises:
        ValueError: A device has the candidate's runs and none of the base, or there is
            no run at all.
    """
    shares = _shares(candidate, base)
    base = [run for run in base if run.device in shares]
    delta = math.fsum(
        share * (_mean(_on(device, candidate)) - _mean(_on(device, base)))
        for device, share in shares.items()
    )
    information = 1 / (_squares(candidate, shares) + _squares(base, shares))
    half = noise.sd / math.sqrt(information) * float(as_t(HALF_WIDTH, noise.df))
    return Estimate(
        delta_bpb=delta,
        lower=delta - half,
        upper=delta + half,
        sd=noise.sd,
        df=noise.df,
        information=information,
        candidates=len(candidate),
        bases=len(base),
    )


def _shares(candidate: Sample, base: Sample) -> dict[str, float]:
    """Return the weight of each device, by the variance of what is seen there."""
    n = Counter(run.device for run in candidate)
    m = Counter(run.device for run in base)
    if not n or n.keys() - m.keys():
        alone = ", ".join(sorted(n.keys() - m.keys())) or "any device"
        raise ValueError(f"Expected runs of candidate and base on {alone}.")
    weights = {device: n[device] * m[device] / (n[device] + m[device]) for device in n}
    total = math.fsum(weights.values())
    return {device: weight / total for device, weight in weights.items()}


def _on(device: str, sample: Sample) -> list[float]:
    return [run.val_bpb for run in sample if run.device == device]


def _squares(sample: Sample, shares: dict[str, float]) -> float:
    """Return the variance that a sample brings to the estimate, in seed variances.

    A seed that ran on several devices has one effect, which counts as often as it ran.
    That the runs are not quite as alike makes this too large rather than too small.
    """
    runs = Counter(run.device for run in sample)
    by_seed = defaultdict(list)
    for run in sample:
        by_seed[run.seed].append(shares[run.device] / runs[run.device])
    return math.fsum(math.fsum(parts) ** 2 for parts in by_seed.values())


def decide(
    *,
    candidate: Sample,
    base: Sample,
    delta_bpb: float | None,
    within: float | None = None,
    noise: Noise,
    looks: int,
) -> Decision:
    """Read the runs so far against the prediction.

    Args:
        candidate: Runs of the candidate; their number is the look.
        base: Runs of the base.
        delta_bpb: The predicted effect in bits per byte, negative for an improvement;
            0 claims equivalence; None predicts nothing and never gets a word.
        within: For equivalence: how far from 0 still counts as the same.
        noise: The seed's noise, pooled over the context with these runs.
        looks: Candidate runs at which the plan ends; a plan of one gets no word.

    Raises:
        ValueError: As for ``estimate``, too many candidate runs, or no *within*.
    """
    if delta_bpb == 0 and (within or 0) <= 0:
        raise ValueError("delta_bpb=0: expected within= of more than 0.")
    if len(candidate) > looks:
        raise ValueError(f"{len(candidate)} candidate runs: expected at most {looks}.")
    seen = estimate(candidate, base, noise)
    if delta_bpb is None:
        return Decision(word=None, reason="", estimate=seen)
    word, reason = _word(seen, delta_bpb, within, looks) if looks > 1 else (None, "")
    held = seen.lower <= delta_bpb <= seen.upper if delta_bpb != 0 else None
    decision = Decision(word=word, reason=reason, estimate=seen, size_held=held)
    if word != "supported":
        return decision
    chance = _replication(seen, delta_bpb, within, looks)
    return attrs.evolve(decision, replication=chance)


def power(
    delta_bpb: float, noise: Noise, looks: int, *, within: float | None = None
) -> float:
    """Return the chance of ``supported`` by the last look if the prediction is true.

    With as many base runs as candidate runs at each look, and with ``noise.sd`` as the
    true sd: ``noise.df`` says how well it is known beforehand.

    Args:
        delta_bpb: The predicted effect in bits per byte; 0 claims equivalence.
        noise: The seed's noise; the plan's own runs add to its degrees of freedom.
        looks: Candidate runs at which the plan ends.
        within: As for ``decide``.
    """
    if looks < 2:
        return 0.0
    as_declared = np.array([abs(delta_bpb) / noise.sd])
    return float(_chance(as_declared, delta_bpb, within, noise, looks)[0])


_power = power  # seeds_needed calls the level by this name


def seeds_needed(
    delta_bpb: float,
    noise: Noise,
    power: float = 0.8,
    *,
    at_most: int = 64,
    within: float | None = None,
) -> int | None:
    """Return the smallest number of looks with *power*, None if above *at_most*.

    The other arguments are those of the function ``power``.
    """
    first = 2
    if delta_bpb != 0:
        # No plan beats the same test read once, with a known sd (Neyman-Pearson).
        reach = max(ndtri(1 - FALSE_SUPPORT) + ndtri(power), 0.0)
        first = max(2, math.ceil(2 * (reach * noise.sd / delta_bpb) ** 2))
    for looks in range(first, at_most + 1):
        if _power(delta_bpb, noise, looks, within=within) >= power:
            return looks
    return None


def _word(
    seen: Estimate, delta_bpb: float, within: float | None, looks: int
) -> tuple[str | None, str]:
    n = seen.candidates
    if delta_bpb == 0:
        return _word_of_equivalence(seen, within) if n == looks else (None, "")
    m = 1 / (1 / seen.information - 1 / n)  # with which V is the actual one
    declared = abs(delta_bpb) / seen.sd
    limits = stops(n, m, looks=looks, df=seen.df, declared=declared)
    supported, refuted, hopeless = map(float, limits)
    root = math.sqrt(seen.information)
    z = math.copysign(1.0, delta_bpb) * seen.delta_bpb / seen.sd * root
    at = f"Look {n} of {looks}: the effect is {z:z.1f} standard errors"
    # An effect that exists but is smaller than declared crosses both boundaries, and
    # the upper one wins: `refuted` over a visible gain would be read as "nothing there",
    # and the size has its own column.  For the same reason nothing is refuted early
    # whose z would do for support at the last look.  Both error bounds hold either way,
    # since each boundary was computed as if the other did not exist.
    if z >= supported:
        kind = "improvement" if delta_bpb < 0 else "harm"
        return "supported", f"{at} of {kind}, at least {supported:.1f}."
    if z < refuted:
        expected = f"{declared * root:.1f} of the declared {delta_bpb:+g} bpb"
        return "refuted", f"{at}, too far below the {expected}."
    if n == looks:
        return "inconclusive", f"{at}, {supported:.1f} needed; too many to refute."
    if z < hopeless:
        chance = f"the chance of support by look {looks} is under {HOPELESS:.0%}"
        return "inconclusive", f"{at}; even if {delta_bpb:+g} bpb is true, {chance}."
    return None, ""


def _word_of_equivalence(seen: Estimate, within: float) -> tuple[str, str]:
    """Compare interval and claim (Schuirmann, J. Pharmacok. Biopharm. 15 (1987) 657)."""
    word, share = "inconclusive", "part"
    if max(-seen.lower, seen.upper) <= within:
        word, share = "supported", "all"
    elif max(seen.lower, -seen.upper) > within:
        word, share = "refuted", "none"
    interval = f"{seen.lower:+.2g} to {seen.upper:+.2g} bpb"
    return word, f"The {COVERAGE:.0%} interval, {interval}: {share} within ±{within:g}."


def _replication(
    seen: Estimate, delta_bpb: float, within: float | None, looks: int
) -> float:
    """Average the power over the effects that the runs leave possible.

    The integral of P(supported | effect) p(effect | runs), the effect being t about its
    estimate: Goodman, Stat. Med. 11 (1992) 875; Spiegelhalter, Freedman & Blackburn,
    Control. Clin. Trials 7 (1986) 8.  As the prior is flat and stopping at a boundary
    favours lucky draws, it is as hopeful as the estimate is.
    """
    points, weights = gauss_legendre(24)
    error = 1 / math.sqrt(seen.information)
    g = math.copysign(1.0, delta_bpb) * seen.delta_bpb / seen.sd
    effects = g + error * stdtrit(seen.df, (points + 1) / 2)
    noise = Noise(sd=seen.sd, df=seen.df)
    return float(weights / 2 @ _chance(effects, delta_bpb, within, noise, looks))


def _chance(
    effects: Floats, delta_bpb: float, within: float | None, noise: Noise, looks: int
) -> Floats:
    """P(supported) of a whole plan for each of the true effects, in seed sds."""
    if delta_bpb != 0:
        declared = abs(delta_bpb) / noise.sd
        return chances(effects, declared=declared, df=noise.df, looks=looks)
    ratio, weights = estimated_sd(noise.df, looks)  # (U, looks)
    root = math.sqrt(looks / 2)
    half = as_t(HALF_WIDTH, noise.df + 2 * (looks - 1)) * ratio[:, -1]
    room = np.maximum(within / noise.sd * root - half, 0.0)
    z = effects[:, None] * root
    return (ndtr(room - z) - ndtr(-room - z)) @ weights


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)  # exact, so the order does not matter
