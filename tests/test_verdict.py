import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri
from scipy.stats import multivariate_normal

from core import verdict
from core.verdict import (
    FALSE_REFUTATION,
    FALSE_SUPPORT,
    Noise,
    boundaries,
    decide,
    estimate,
    pool,
    power,
    seeds_needed,
)

KNOWN = Noise(sd=1.0, df=math.inf)


def obrien_fleming(t):
    return 2 * (1 - ndtr(ndtri(1 - 0.025 / 2) / np.sqrt(t)))


def pocock(t):
    return 0.025 * np.log(1 + (math.e - 1) * t)


# Two-sided 5 %, as in the tables of Lan & DeMets (1983), Jennison & Turnbull (2000)
# and Reboussin, DeMets, Kim & Lan, Control. Clin. Trials 21 (2000) 190.
@pytest.mark.parametrize(
    ("spending", "published"),
    [
        (obrien_fleming, (2.963, 1.969)),
        (obrien_fleming, (4.877, 3.357, 2.680, 2.290, 2.031)),
        (pocock, (2.157, 2.201)),
        (pocock, (2.438, 2.427, 2.410, 2.397, 2.386)),
    ],
)
def test_boundaries_agree_with_published_tables(spending, published):
    fractions = np.arange(1, len(published) + 1) / len(published)

    found = boundaries(tuple(spending(fractions).tolist()))

    assert found == pytest.approx(published, abs=1e-3)


def test_boundaries_spend_what_the_joint_normal_distribution_says():
    spent = (0.005, 0.02, 0.05)
    look = np.arange(1, 4)
    correlation = np.sqrt(np.minimum.outer(look, look) / np.maximum.outer(look, look))

    found = boundaries(spent)

    for n in look:
        joint = multivariate_normal(cov=correlation[:n, :n])
        assert 1 - joint.cdf(found[:n]) == pytest.approx(spent[n - 1], abs=1e-5)


def test_a_look_that_spends_nothing_is_never_crossed():
    assert boundaries((0.0, 0.01, 0.01)) == pytest.approx((
        math.inf,
        ndtri(0.99),
        math.inf,
    ))


def says(effect, *, n=2, m=None, looks=6, delta_bpb=-1.0, noise=KNOWN, within=None):
    """Decide on n runs that all improve by *effect* on m runs of the base."""
    return decide(
        candidate=[3.0 - effect] * n,
        base=[3.0] * (m or n),
        delta_bpb=delta_bpb,
        within=within,
        noise=noise,
        looks=looks,
    )


def test_one_pair_is_never_enough_for_support():
    assert says(100.0, n=1, delta_bpb=-100.0).word is None
    assert says(100.0, n=2, delta_bpb=-100.0).word == "supported"


def test_one_pair_can_refute():
    assert says(0.0, n=1, delta_bpb=-8.0).word == "refuted"


@pytest.mark.parametrize("delta_bpb", [-9.0, 9.0])
@pytest.mark.parametrize("effect", [-9.0, 0.0, 9.0])
def test_a_plan_of_one_run_never_gets_a_word(delta_bpb, effect):
    assert says(effect, n=1, looks=1, delta_bpb=delta_bpb).word is None
    assert power(delta_bpb, KNOWN, looks=1) == 0.0


@pytest.mark.parametrize("n", [1, 3, 6])
def test_without_a_prediction_there_is_an_estimate_and_no_word(n):
    decision = says(2.0, n=n, delta_bpb=None)

    assert (decision.word, decision.reason) == (None, "")
    assert decision.size_held is None
    assert decision.estimate.delta_bpb == -2.0


def test_harm_is_supported_by_harm_and_refuted_by_improvement():
    assert says(-6.0, n=3, delta_bpb=6.0).word == "supported"
    assert says(6.0, n=3, delta_bpb=6.0).word == "refuted"


def test_an_effect_larger_than_declared_is_supported_and_its_size_did_not_hold():
    decision = says(9.0, n=4, delta_bpb=-3.0)

    assert decision.word == "supported"
    assert decision.size_held is False


def test_an_effect_that_exists_but_is_smaller_than_declared_is_supported():
    decision = says(8.0, n=3, delta_bpb=-16.0)

    assert decision.word == "supported"
    assert decision.size_held is False


def test_a_visible_effect_is_not_refuted_before_support_can_be_said():
    assert says(8.0, n=1, delta_bpb=-16.0).word is None


def test_the_end_of_the_plan_always_has_a_word():
    for effect in np.linspace(-3, 6, 91):
        for delta_bpb in (-0.1, -2.0, -5.0):
            assert says(effect, n=6, delta_bpb=delta_bpb).word is not None


@pytest.mark.parametrize(
    ("runs", "word", "reason"),
    [
        (
            dict(effect=3.0, n=6, delta_bpb=-2.0),
            "supported",
            "Look 6 of 6: the effect is 5.2 standard errors of improvement, "
            "at least 2.5.",
        ),
        (
            dict(effect=-0.5, n=2, delta_bpb=-2.5),
            "refuted",
            "Look 2 of 6: the effect is -0.5 standard errors, "
            "too far below the 2.5 of the declared -2.5 bpb.",
        ),
        (
            dict(effect=1.0, n=6, delta_bpb=-2.0),
            "inconclusive",
            "Look 6 of 6: the effect is 1.7 standard errors, 2.5 needed; "
            "too many to refute.",
        ),
        (
            dict(effect=0.0, n=1, delta_bpb=-0.5),
            "inconclusive",
            "Look 1 of 6: the effect is 0.0 standard errors; even if -0.5 bpb is true, "
            "the chance of support by look 6 is under 20%.",
        ),
        (
            dict(effect=0.0, n=6, delta_bpb=0, within=1.0),
            "supported",
            "The 90% interval, -0.95 to +0.95 bpb: all within ±1.",
        ),
        (
            dict(effect=-2.0, n=6, delta_bpb=0, within=1.0),
            "refuted",
            "The 90% interval, +1.1 to +2.9 bpb: none within ±1.",
        ),
        (
            dict(effect=0.5, n=6, delta_bpb=0, within=1.0),
            "inconclusive",
            "The 90% interval, -1.4 to +0.45 bpb: part within ±1.",
        ),
    ],
)
def test_every_word_comes_with_a_reason(runs, word, reason):
    decision = says(**runs)

    assert (decision.word, decision.reason) == (word, reason)
    assert (decision.replication is not None) == (word == "supported")


def test_equivalence_is_decided_at_the_last_look_only():
    assert [
        says(0.0, n=n, delta_bpb=0, within=1.0, looks=6).word for n in range(1, 7)
    ] == [None] * 5 + ["supported"]


def test_the_interval_is_that_of_a_t_test():
    seen = estimate([1.0, 2.0], [4.0, 5.0, 6.0], Noise(sd=2.0, df=5))

    half = 2.0 * math.sqrt(1 / 2 + 1 / 3) * 2.0150484  # t table: 95 %, 5 df
    assert seen.delta_bpb == -3.5
    assert (seen.lower, seen.upper) == pytest.approx((-3.5 - half, -3.5 + half))


def test_the_pool_weighs_groups_and_prior_by_degrees_of_freedom():
    noise = pool([[1.0, 3.0], [5.0], [0.0, 0.0, 3.0]], Noise(sd=2.0, df=4))

    assert noise.df == 7
    assert noise.sd == pytest.approx(math.sqrt((4 * 4 + 2 + 0 + 6) / 7))
    assert pool([], Noise(sd=2.0, df=4)) == Noise(sd=2.0, df=4)


@pytest.mark.parametrize(("sd", "df"), [(0, 3), (-1, 3), (math.nan, 3), (1, 0)])
def test_a_noise_without_noise_is_our_mistake(sd, df):
    with pytest.raises(ValueError, match="must be > 0"):
        Noise(sd=sd, df=df)


@pytest.mark.parametrize("sample", [[], [math.nan], [1.0, math.inf]])
def test_a_sample_that_is_empty_or_not_finite_is_an_error(sample):
    with pytest.raises(ValueError, match="expected finite numbers"):
        estimate(sample, [1.0], KNOWN)
    with pytest.raises(ValueError, match="expected finite numbers"):
        estimate([1.0], sample, KNOWN)


def test_more_runs_than_the_plan_has_looks_are_an_error():
    with pytest.raises(ValueError, match="7 candidate runs: expected at most 6"):
        says(0.0, n=7)


def test_equivalence_without_a_width_is_an_error():
    with pytest.raises(ValueError, match="within="):
        says(0.0, delta_bpb=0)


# Multiples of 1 / 1024, so that sums and differences are exact.
bpb = st.integers(-4096, 4096).map(lambda k: k / 1024)
plans = st.integers(2, 6).flatmap(
    lambda looks: st.fixed_dictionaries({
        "candidate": st.lists(bpb, min_size=1, max_size=looks),
        "base": st.lists(bpb, min_size=1, max_size=8),
        "delta_bpb": bpb.filter(bool),
        "noise": st.builds(
            Noise,
            sd=st.floats(0.05, 4),
            df=st.sampled_from([1.0, 3.0, 12.5, math.inf]),
        ),
        "looks": st.just(looks),
    })
)
thorough = settings(max_examples=100, deadline=None)


def core_of(decision):
    return decision.word, decision.size_held, pytest.approx(decision.replication)


@thorough
@given(plans)
def test_improvement_and_harm_are_mirror_images(plan):
    mirrored = plan | {
        "candidate": [-value for value in plan["candidate"]],
        "base": [-value for value in plan["base"]],
        "delta_bpb": -plan["delta_bpb"],
    }

    assert core_of(decide(**mirrored)) == core_of(decide(**plan))


@thorough
@given(plans, bpb)
def test_a_constant_added_to_every_val_bpb_changes_nothing(plan, constant):
    moved = plan | {
        "candidate": [value + constant for value in plan["candidate"]],
        "base": [value + constant for value in plan["base"]],
    }

    assert core_of(decide(**moved)) == core_of(decide(**plan))


@thorough
@given(plans, st.floats(0.001, 1000))
def test_the_unit_of_val_bpb_changes_nothing(plan, c):
    scaled = plan | {
        "candidate": [value * c for value in plan["candidate"]],
        "base": [value * c for value in plan["base"]],
        "delta_bpb": plan["delta_bpb"] * c,
        "noise": Noise(sd=plan["noise"].sd * c, df=plan["noise"].df),
    }

    assert core_of(decide(**scaled)) == core_of(decide(**plan))


@thorough
@given(plans, st.randoms(use_true_random=False))
def test_the_order_of_the_runs_changes_nothing(plan, random):
    shuffled = plan | {
        side: random.sample(plan[side], len(plan[side]))
        for side in ("candidate", "base")
    }

    assert decide(**shuffled) == decide(**plan)


@thorough
@given(plans)
def test_the_pool_does_not_depend_on_order_or_level(plan):
    groups, prior = [plan["candidate"], plan["base"]], plan["noise"]

    noise = pool(groups, prior)

    assert pool([group[::-1] for group in groups[::-1]], prior).df == noise.df
    moved = pool([[value + 1 for value in group] for group in groups], prior)
    assert moved.sd == pytest.approx(noise.sd)


# Simulation.  Runs have sd 1; base runs are filled with the candidate's, or all there.


def draw(effect, looks, repetitions, *, bases=None, seed=0):
    rng = np.random.default_rng(seed)
    candidate = rng.normal(-effect, 1, (repetitions, looks))
    return candidate, rng.normal(0, 1, (repetitions, bases or looks))


def words(candidate, base, declared, prior, *, filled=True):
    """Return the word of each repetition and the candidate runs that it took."""
    repetitions, looks = candidate.shape
    word, runs = np.full(repetitions, "", dtype="U12"), np.zeros(repetitions, int)
    for n in range(1, looks + 1):
        m = n if filled else base.shape[1]
        x, b = candidate[:, :n], base[:, :m]
        df = prior.df + n - 1 + m - 1
        sd = np.full(repetitions, prior.sd)
        if math.isfinite(df):
            squares = prior.df * prior.sd**2 + n * x.var(axis=1) + m * b.var(axis=1)
            sd = np.sqrt(squares / df)
        z = (b.mean(axis=1) - x.mean(axis=1)) / sd / math.sqrt(1 / n + 1 / m)
        supported, refuted, hopeless = verdict._stops(
            n, m, looks=looks, df=df, declared=declared / sd
        )
        now = np.select(
            [z >= supported, z < refuted, z < hopeless],
            ["supported", "refuted", "inconclusive"],
            "",
        )
        new = (word == "") & (now != "")
        word[new], runs[new] = now[new], n
    return word, runs


REPETITIONS = 60_000


def within_error(bound):
    """The bound plus four standard errors of the simulation."""
    return bound + 4 * math.sqrt(bound * (1 - bound) / REPETITIONS)


@pytest.mark.parametrize("looks", [2, 6])
def test_the_simulation_says_what_decide_says(looks):
    prior = Noise(sd=0.7, df=2)
    for effect in (0.0, 3.0):
        candidate, base = draw(effect, looks, 60, seed=1)
        simulated, runs = words(candidate, base, 3.0, prior)

        for x, b, word, n in zip(candidate, base, simulated, runs, strict=True):
            said = [
                decide(
                    candidate=x[:k],
                    base=b[:k],
                    delta_bpb=-3.0,
                    noise=pool([x[:k], b[:k]], prior),
                    looks=looks,
                ).word
                for k in range(1, n + 1)
            ]
            assert said == [None] * (n - 1) + [word]


@pytest.mark.parametrize("bases", [None, 8])
@pytest.mark.parametrize("looks", [2, 6])
@pytest.mark.parametrize(
    "prior",
    [
        Noise(sd=1.0, df=math.inf),
        Noise(sd=1.0, df=3),
        Noise(sd=1.0, df=1),
        Noise(sd=0.5, df=1),  # half the truth, and hardly believed
    ],
    ids=str,
)
def test_false_words_stay_within_their_bounds(prior, looks, bases):
    declared = effect_with_power(Noise(sd=1.0, df=prior.df), looks)
    filled = bases is None

    none = words(
        *draw(0.0, looks, REPETITIONS, bases=bases), declared, prior, filled=filled
    )[0]
    true = words(
        *draw(declared, looks, REPETITIONS, bases=bases), declared, prior, filled=filled
    )[0]

    assert np.mean(none == "supported") <= within_error(FALSE_SUPPORT)
    assert np.mean(true == "refuted") <= within_error(FALSE_REFUTATION)


# The price of a prior that is wrong by a factor of two, while nothing else is known of
# the context: above the stated bounds, and worse the more the prior is believed.
@pytest.mark.parametrize(
    ("df", "looks", "false_support", "false_refutation"),
    [
        (2, 2, 0.013, 0.05),
        (2, 6, 0.014, 0.055),
        (3, 2, 0.013, 0.07),
        (3, 6, 0.018, 0.075),
        (10, 6, 0.045, 0.17),
    ],
)
def test_a_prior_of_half_the_true_sd_costs_this_much(
    df, looks, false_support, false_refutation
):
    declared = effect_with_power(Noise(sd=1.0, df=df), looks)
    prior = Noise(sd=0.5, df=df)

    none = words(*draw(0.0, looks, REPETITIONS), declared, prior)[0]
    true = words(*draw(declared, looks, REPETITIONS), declared, prior)[0]

    assert np.mean(none == "supported") < false_support
    assert np.mean(true == "refuted") < false_refutation


def effect_with_power(noise, looks, level=0.8):
    low, high = 0.0, 100.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (
            (low, middle) if power(middle, noise, looks) > level else (middle, high)
        )
    return high


@pytest.mark.parametrize("looks", [2, 3, 6])
@pytest.mark.parametrize("df", [2, 3, 20, math.inf])
@pytest.mark.parametrize("level", [0.3, 0.8, 0.95])
def test_power_agrees_with_the_simulation(level, df, looks):
    noise = Noise(sd=1.0, df=df)
    declared = effect_with_power(noise, looks, level)

    word, _ = words(*draw(declared, looks, REPETITIONS, seed=2), declared, noise)

    assert np.mean(word == "supported") == pytest.approx(level, abs=0.03)


def test_power_does_not_depend_on_unit_or_sign():
    expected = power(2.0, Noise(sd=1.0, df=3), 6)

    assert power(-0.002, Noise(sd=0.001, df=3), 6) == pytest.approx(expected)


def test_the_power_of_an_equivalence_agrees_with_a_simulation():
    noise, looks, within = Noise(sd=1.0, df=3), 6, 1.5
    candidate, base = draw(0.0, looks, 4000, seed=3)

    said = [
        verdict._word_of_equivalence(estimate(x, b, pool([x, b], noise)), within)[0]
        for x, b in zip(candidate, base, strict=True)
    ]

    share = np.mean(np.array(said) == "supported")
    assert share == pytest.approx(power(0, noise, looks, within=within), abs=0.03)


def test_a_smaller_effect_needs_more_seeds():
    noise = Noise(sd=1.0, df=3)

    needed = [seeds_needed(effect, noise) for effect in (-5, -3, 2, -1.5, 1)]

    assert needed == sorted(needed)
    assert needed[0] == 2
    for effect, looks in zip((5, 3, 2, 1.5, 1), needed, strict=True):
        assert power(effect, noise, looks) >= 0.8
        assert looks == 2 or power(effect, noise, looks - 1) < 0.8


def test_seeds_needed_gives_up_beyond_the_most_that_one_can_pay():
    assert seeds_needed(-1.0, KNOWN, at_most=10) is None
    assert seeds_needed(0, KNOWN, within=0.1, at_most=10) is None
    assert seeds_needed(0, KNOWN, within=1.5) == 8


def test_replication_is_the_power_of_a_plan_averaged_over_what_was_seen():
    seen = says(2.0, n=6, delta_bpb=-2.0)
    effects = np.random.default_rng(4).normal(2.0, math.sqrt(1 / 3), 20_000)

    rng = np.random.default_rng(5)
    candidate = rng.normal(-effects[:, None], 1, (20_000, 6))
    word, _ = words(candidate, rng.normal(0, 1, (20_000, 6)), 2.0, KNOWN)

    assert seen.word == "supported"
    assert seen.replication == pytest.approx(np.mean(word == "supported"), abs=0.015)


def test_replication_grows_with_the_effect_and_never_reaches_certainty():
    chances = [says(effect, n=6, delta_bpb=-2.0).replication for effect in (2, 3, 4)]

    assert chances == sorted(chances)
    assert 0.5 < chances[0] < chances[-1] < 1
