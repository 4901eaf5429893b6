"""When a plan of equally spaced looks stops, and how likely it is to.

All of it works on z = g / sqrt(V), where g is the effect in the declared direction and V
its variance, so that nothing depends on the unit or the sign of val_bpb.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import chdtri, ndtr, ndtri, stdtrit

FALSE_SUPPORT = 0.01  # P(supported | no effect in the declared direction), at most
FALSE_REFUTATION = 0.05  # P(refuted | the effect is as declared), at most
HOPELESS = 0.20  # a conditional power below this ends an experiment

# Spent over the information fraction t as error * t^power: Lan & DeMets, Biometrika 70
# (1983) 659; Kim & DeMets, Biometrika 74 (1987) 149; Jennison & Turnbull, Group
# Sequential Methods (2000), chapter 7.  Support is spent late: what others build on
# should rest on several runs; not as late as O'Brien & Fleming, whose second look of
# six is never crossed in t.  Refutation is spent in proportion, so that the first run
# can end a dead idea: most ideas are, and the slot is worth more to the next one.
SUPPORT_POWER = 2.0
REFUTATION_POWER = 1.0

TAIL = 8.0  # standard deviations beyond which a normal density is dropped

Floats = np.ndarray[Any, np.dtype[np.float64]]
Numbers = Any  # one number or an array of them

gauss_legendre = lru_cache(np.polynomial.legendre.leggauss)


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


def stops(
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
    last = as_t(support[-1], df + (looks - n) + (most - m))  # a run to come adds one
    now, then = _information(n, m), _information(looks, most)
    short = declared * np.sqrt(now) - as_t(refutation[n - 1], df)
    # The conditional power of the last look (Lan, Simon & Halperin, Seq. Anal. 1 (1982)
    # 207) as if sd were known, solved for z.  At the cap it is 0 or 1.
    left = 1 - now / then
    needed = last + ndtri(HOPELESS) * np.sqrt(left) - declared * np.sqrt(then) * left
    refuted = np.minimum(short, last)  # the reason is with core.verdict._word
    return as_t(support[n - 1], df), refuted, needed / np.sqrt(now / then)


def chances(effects: Floats, *, declared: float, df: float, looks: int) -> Floats:
    """Return P(supported) of a whole plan for each of the true effects, in seed sds.

    With as many base runs as candidate runs at each look.  *declared* is in true seed
    sds too, and df says how well the sd is known beforehand.
    """
    n = np.arange(1, looks + 1)
    ratio, weights = estimated_sd(df, looks)  # (U, looks)
    limits = stops(n, n, looks=looks, df=df + 2 * (n - 1), declared=declared / ratio)
    top, refuted, hopeless = (limit * ratio * np.sqrt(n) for limit in limits)
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


def estimated_sd(df: float, looks: int) -> tuple[Floats, Floats]:
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


def as_t(z: Numbers, df: Numbers) -> Floats:
    """Return the t quantile at the level of a normal quantile.

    It keeps the level of each look, and that of a plan nearly (Pocock, Biometrika 64
    (1977) 191).  Taken from the lower tail, where small levels keep their digits.
    """
    return np.where(np.isinf(z), z, -stdtrit(df, ndtr(-np.asarray(z))))


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


def _information(n: Numbers, m: Numbers) -> Numbers:
    """Return 1 / V in units of 1 / sd^2.

    A share rho of the seed's effect in common would divide V by 1 - rho^2 and correct
    g; it counts as 0 until measured, since too high a guess multiplies false supports.
    """
    return 1 / (1 / n + 1 / m)
