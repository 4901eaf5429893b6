"""Say what the runs of one experiment mean: samples and a prediction in, one word out.

A group-sequential t-test, read after every candidate run; arithmetic only.  All of it
works on z = g / sqrt(V), where g is the effect in the declared direction and V its
variance, so that nothing depends on the unit or the sign of val_bpb.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import attrs
import numpy as np
from attrs.validators import gt, lt
from scipy.special import chdtri, ndtr, ndtri, stdtrit

FALSE_SUPPORT = 0.01  # P(supported | no effect in the declared direction), at most
FALSE_REFUTATION = 0.05  # P(refuted | the effect is as declared), at most
HOPELESS = 0.20  # a conditional power below this ends an experiment
COVERAGE = 0.90  # of the intervals

# Spent over the information fraction t as error * t^power: Lan & DeMets, Biometrika 70
# (1983) 659; Kim & DeMets, Biometrika 74 (1987) 149; Jennison & Turnbull, Group
# Sequential Methods (2000), chapter 7.  Support is spent late: what others build on
# should rest on several runs; not as late as O'Brien & Fleming, whose second look of
# six is never crossed in t.  Refutation is spent in proportion, so that the first run
# can end a dead idea: most ideas are, and the slot is worth more to the next one.
SUPPORT_POWER = 2.0
REFUTATION_POWER = 1.0

HALF_WIDTH = float(ndtri((1 + COVERAGE) / 2))  # of an interval, in standard errors
TAIL = 8.0  # standard deviations beyond which a normal density is dropped

Floats = np.ndarray[Any, np.dtype[np.float64]]
Numbers = Any  # one number or an array of them

gauss_legendre = lru_cache(np.polynomial.legendre.leggauss)


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
    half = noise.sd / math.sqrt(information) * float(_as_t(HALF_WIDTH, noise.df))
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


@lru_cache(maxsize=256)
def boundaries(spent: tuple[float, ...]) -> tuple[float, ...]:
    """Return the critical value of a normal z at each of equally spaced looks.

    One-sided, as if no other boundary existed, by recursive numerical integration of
    what has not crossed (Armitage, McPherson & Rowe, J. R. Stat. Soc. A 132 (1969) 235).

    Args:
        spent: Error probability spent up to each look, never falling; a look at which
            it does not grow has an infinite boundary.
    """
    critical = []
    nodes, mass = np.zeros((1, 1)), np.ones((1, 1))
    for look, share in enumerate(np.diff(spent, prepend=0.0), start=1):
        root = math.sqrt(look)
        low, high = (-TAIL, TAIL) if share > 0 else (math.inf, math.inf)
        while high - low > 1e-10:
            middle = (low + high) / 2
            crossed = float((mass * ndtr(nodes - middle * root)).sum())
            low, high = (middle, high) if crossed > share else (low, middle)
        critical.append(high)
        kept = np.array([[-math.inf, high * root]])
        nodes, mass = _carry(nodes, mass, kept, np.zeros(1), look)
    return tuple(critical)


def _carry(
    nodes: Floats, mass: Floats, kept: Floats, drift: Floats, look: int
) -> tuple[Floats, Floats]:
    """Move the density of S = z * sqrt(look) to this look, within the range kept.

    Each look adds to S a normal with mean *drift*, (B,), and variance 1.  Nodes and
    mass are of shape (B, n), the range (B, 2).
    """
    # Less than one standard deviation of the step between nodes: there the quadrature
    # of a normal density is exact to more digits than anybody reads.
    points, weights = gauss_legendre(32 * math.ceil(math.sqrt(look)))
    spread = TAIL * math.sqrt(look)
    low = np.maximum(kept[:, 0], look * drift - spread)
    half = np.maximum(np.minimum(kept[:, 1], look * drift + spread) - low, 0.0) / 2
    after = low[:, None] + half[:, None] * (points + 1)
    steps = after[:, :, None] - (nodes + drift[:, None])[:, None, :]
    density = (np.exp(-0.5 * steps**2) @ mass[:, :, None])[:, :, 0]
    return after, density / math.sqrt(2 * math.pi) * half[:, None] * weights


def _stops(
    n: Numbers, m: Numbers, *, looks: int, df: Numbers, declared: Numbers
) -> tuple[Floats, Floats, Floats]:
    """Return the z for ``supported`` (or more), ``refuted`` and hopeless (or less).

    With n candidate runs, m of the base, and *declared* in seed sds estimated with df.
    V is the actual one, but the boundaries are those of fractions n / looks.  With
    m > n successive z are more alike than planned, unless n / m falls from look to
    look, and crossing anywhere is less likely (Slepian, Bell Syst. Tech. J. 41 (1962)
    463): conservative.

    On several devices m is that of a base on one device with the same information.
    It is below n where runs of one base seed on two devices count as one draw; the
    estimate is then not the most precise one, as that argument asks for.  There, and
    where the bases of a device grow in number between two looks, the bound of support
    is known to hold by simulation; that of refutation is missed by a little if they
    grow from one to many.
    """
    fraction = np.arange(1, looks + 1) / looks
    spent = FALSE_SUPPORT * fraction**SUPPORT_POWER
    spent[0] = 0.0  # one pair is never enough
    support = np.array(boundaries(tuple(spent.tolist())))
    spent = FALSE_REFUTATION * fraction**REFUTATION_POWER
    refutation = np.array(boundaries(tuple(spent.tolist())))
    most = m + np.clip(looks - m, 0, looks - n)  # each run to come brings its partner
    last = _as_t(support[-1], df + (looks - n) + (most - m))  # a run to come adds one
    now, then = _information(n, m), _information(looks, most)
    short = declared * np.sqrt(now) - _as_t(refutation[n - 1], df)
    # The conditional power of the last look (Lan, Simon & Halperin, Seq. Anal. 1 (1982)
    # 207) as if sd were known, solved for z.  At the cap it is 0 or 1.
    left = 1 - now / then
    needed = last + ndtri(HOPELESS) * np.sqrt(left) - declared * np.sqrt(then) * left
    refuted = np.minimum(short, last)  # see _word on an effect that is only too small
    return _as_t(support[n - 1], df), refuted, needed / np.sqrt(now / then)


def _word(
    seen: Estimate, delta_bpb: float, within: float | None, looks: int
) -> tuple[str | None, str]:
    n = seen.candidates
    if delta_bpb == 0:
        return _word_of_equivalence(seen, within) if n == looks else (None, "")
    m = 1 / (1 / seen.information - 1 / n)  # so that _information(n, m) is the actual
    declared = abs(delta_bpb) / seen.sd
    stops = _stops(n, m, looks=looks, df=seen.df, declared=declared)
    supported, refuted, hopeless = map(float, stops)
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
    n = np.arange(1, looks + 1)
    df = noise.df + 2 * (n - 1)
    ratio, weights = _estimated_sd(noise.df, looks)  # (U, looks)
    if delta_bpb == 0:
        root = math.sqrt(looks / 2)
        half = _as_t(HALF_WIDTH, df[-1]) * ratio[:, -1]
        room = np.maximum(within / noise.sd * root - half, 0.0)
        z = effects[:, None] * root
        return (ndtr(room - z) - ndtr(-room - z)) @ weights
    declared = abs(delta_bpb) / noise.sd / ratio
    stops = _stops(n, n, looks=looks, df=df, declared=declared)
    top, refuted, hopeless = (stop * ratio * np.sqrt(n) for stop in stops)
    kept = np.stack([np.maximum(refuted, hopeless), top], axis=-1)
    # Every effect meets every sd, as one batch of B = effects x U.
    kept = np.tile(kept, (len(effects), 1, 1))
    drift = np.repeat(effects / math.sqrt(2), len(weights))
    nodes, mass = np.zeros((drift.size, 1)), np.ones((drift.size, 1))
    crossed = np.zeros(drift.size)
    for k in range(looks):
        beyond = (drift - kept[:, k, 1])[:, None]
        crossed += (mass * ndtr(nodes + beyond)).sum(axis=1)
        nodes, mass = _carry(nodes, mass, kept[:, k], drift, k + 1)
    return crossed.reshape(len(effects), -1) @ weights


def _estimated_sd(df: float, looks: int) -> tuple[Floats, Floats]:
    """Return quantiles of estimated over true sd, (U, looks), with their weights.

    What is known beforehand is right, and pools with what the plan's own runs show; one
    quantile serves all looks of a plan, as if the estimate did not wander.
    """
    if math.isinf(df):
        return np.ones((1, looks)), np.ones(1)
    points, weights = gauss_legendre(12)
    added = 2.0 * np.arange(1, looks)  # look 1 adds none
    squares = chdtri(added, (1 - points[:, None]) / 2)
    ratio = np.sqrt((df + squares) / (df + added))
    return np.insert(ratio, 0, 1.0, axis=1), weights / 2


def _as_t(z: Numbers, df: Numbers) -> Floats:
    """Return the t quantile at the level of a normal quantile.

    It keeps the level of each look, and that of a plan nearly (Pocock, Biometrika 64
    (1977) 191).  Taken from the lower tail, where small levels keep their digits.
    """
    return np.where(np.isinf(z), z, -stdtrit(df, ndtr(-np.asarray(z))))


def _information(n: Numbers, m: Numbers) -> Numbers:
    """Return 1 / V in units of 1 / sd^2.

    A share rho of the seed's effect in common would divide V by 1 - rho^2 and correct
    g; it counts as 0 until measured, since too high a guess multiplies false supports.
    """
    return 1 / (1 / n + 1 / m)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)  # exact, so the order does not matter
