import math
import random
from datetime import datetime

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.evidence import (
    LATEST_BASES,
    SEEDS_AN_ATTEMPT,
    Claim,
    Known,
    Outcome,
    Verdict,
    claim_under,
)
from core.plan import (
    CRASHES,
    RETRIES,
    Lost,
    Need,
    Plan,
    base_due,
    next_attempt,
    past_verdict,
    trial,
    underpowered,
)
from core.profile import CPU, GPU
from core.spec import Expect
from core.verdict import Noise

BASE, MUTANT, OTHER = "base", "mutant", "other"
BETTER = Claim(delta_bpb=-0.01)
SD = 0.001


def unknown(df=math.inf):
    """Return what is known before any run, with a noise of SD."""
    return Known(base=BASE, prior=Noise(sd=SD, df=df))


def a_plan(claim=BETTER, looks=6, *, mutant=MUTANT, allowed=None, **fields):
    return Plan(
        mutant=mutant,
        base=BASE,
        claim=claim,
        looks=looks,
        allowed=allowed or looks,
        **fields,
    )


def ended(mutant, seed, val_bpb=None, **fields):
    """Return a trial that has ended: finished if it has a val_bpb."""
    said = {"status": "crashed" if val_bpb is None else "finished", **fields}
    if said["status"] == "crashed":
        said = {"crash": "oom", "message": "out of memory", **said}
    return Outcome(
        run=f"{mutant}-{seed}-{said['status']}",
        mutant=mutant,
        seed=seed,
        val_bpb=val_bpb,
        wall_seconds=2.0,
        **said,
    )


def pairs(seeds, effect=0.0, device=""):
    """Return finished runs of base and mutant, *effect* apart, seed by seed."""
    for seed in seeds:
        yield ended(BASE, seed, 1.0, device=device)
        yield ended(MUTANT, seed, 1.0 + effect, device=device)


def knowing(outcomes, **options):
    known = unknown(**options)
    for outcome in outcomes:
        known.add(outcome)
    return known


def next_trial(plan, known, device=""):
    """Return what *device* has to run for the plan, or its end."""
    step = plan.advance(known)
    return trial(known, step, device) if isinstance(step, Need) else step


def carried_out(plan, known, *, effect=0.0, speeds=None):
    """Run what the plan asks for until it ends; return its end and what was run.

    The seeds take the devices in turn; *speeds* is what each adds to val_bpb.
    """
    devices = list((speeds or {"": 0.0}).items())
    ran = []
    while True:
        step = plan.advance(known)
        if not isinstance(step, Need):
            return step, ran
        device, speed = devices[step.seed % len(devices)]
        need = trial(known, step, device)
        ran.append((need.mutant, need.seed))
        shift = effect if need.mutant == plan.mutant else 0.0
        known.add(ended(need.mutant, need.seed, 1.0 + speed + shift, device=device))


# What is asked for


def test_each_seed_is_run_with_the_base_first_and_then_with_the_candidate():
    _, asked = carried_out(a_plan(Claim(), looks=3), unknown())

    assert asked == [(m, seed) for seed in range(3) for m in (BASE, MUTANT)]


def test_a_base_run_that_is_known_is_not_run_again():
    known = knowing(ended(BASE, seed, 1.0) for seed in range(3))

    _, asked = carried_out(a_plan(Claim(), looks=3), known)

    assert asked == [(MUTANT, 0), (MUTANT, 1), (MUTANT, 2)]


def test_runs_of_other_mutants_are_nobody_elses():
    known = knowing([ended(BASE, 0, 1.0), ended(OTHER, 0, 0.9)])

    assert a_plan().advance(known) == Need(mutant=MUTANT, seed=0)


def test_an_interrupted_plan_asks_for_exactly_what_is_missing():
    known = knowing([*pairs((0, 1, 3)), ended(BASE, 2, 1.0)])

    _, asked = carried_out(a_plan(Claim(), looks=5), known)

    assert asked == [(MUTANT, 2), (BASE, 4), (MUTANT, 4)]


def test_asking_twice_changes_nothing():
    plan, known = a_plan(), knowing(pairs((0,), effect=-0.01))

    assert plan.advance(known) == plan.advance(known) == Need(mutant=MUTANT, seed=1)


def test_a_new_attempt_is_on_seeds_that_nobody_has_seen():
    seeds = [
        a_plan(attempt=attempt).seed(look)
        for attempt in range(3)
        for look in (1, SEEDS_AN_ATTEMPT)
    ]

    assert seeds == [0, 999, 1000, 1999, 2000, 2999]


# Words


def test_an_effect_is_not_supported_by_one_pair_and_is_by_the_second():
    known = knowing(pairs((0,), effect=-0.5))
    assert a_plan().advance(known) == Need(mutant=MUTANT, seed=1)

    verdict, _ = carried_out(a_plan(), known, effect=-0.5)

    assert (verdict.word, verdict.candidates, verdict.bases) == ("supported", 2, 2)
    assert verdict.replication > 0.9
    assert verdict.delta_bpb == pytest.approx(-0.5)
    assert verdict.lower_bpb < -0.5 < verdict.upper_bpb
    assert verdict.size_held is False


def test_one_pair_without_the_effect_can_refute_it():
    verdict, asked = carried_out(a_plan(), unknown(), effect=0.0)

    assert (verdict.word, len(asked)) == ("refuted", 2)
    assert verdict.runs == ("mutant-0-finished", "base-0-finished")
    assert verdict.seconds == 2.0
    assert (verdict.noise_sd, verdict.noise_df) == (SD, math.inf)


def test_a_predicted_harm_is_supported_by_harm():
    verdict, _ = carried_out(a_plan(Claim(delta_bpb=0.01)), unknown(), effect=0.01)

    assert (verdict.word, verdict.claim) == ("supported", "+0.01")


def test_what_cannot_be_told_at_the_last_look_is_inconclusive():
    plan = a_plan(Claim(delta_bpb=-0.003), looks=2)

    verdict, asked = carried_out(plan, unknown(), effect=-0.002)

    assert (verdict.word, len(asked)) == ("inconclusive", 4)
    assert verdict.reason.startswith("Look 2 of 2: ")


@pytest.mark.parametrize(
    ("effect", "word"), [(0.0, "supported"), (0.1, "refuted"), (0.005, "inconclusive")]
)
def test_equivalence_is_decided_at_the_last_look_only(effect, word):
    plan = a_plan(Claim(delta_bpb=0.0, within=0.005), looks=4)

    verdict, asked = carried_out(plan, unknown(), effect=effect)

    assert (verdict.word, verdict.candidates, len(asked)) == (word, 4, 8)
    assert (verdict.claim, verdict.size_held) == ("0±0.005", None)


def test_a_plan_of_one_seed_is_measured_without_a_word_and_goes_on_later():
    known = unknown()

    verdict, _ = carried_out(a_plan(allowed=1), known, effect=-0.01)
    later, asked = carried_out(a_plan(), known, effect=-0.01)

    assert (verdict.word, verdict.reason) == (
        "measured",
        "Undecided after look 1 of 6: --seeds 6 goes on.",
    )
    assert verdict.predicted_bpb == -0.01
    assert (later.word, asked) == ("supported", [(BASE, 1), (MUTANT, 1)])


def test_the_word_rests_on_all_runs_that_are_known_not_on_an_earlier_look():
    # The base of seed 0 was lucky: read alone, the first pair would refute.
    known = knowing([
        ended(BASE, 0, 0.985),
        ended(MUTANT, 0, 0.990),
        *pairs((1, 2), effect=-0.01),
    ])

    verdict = a_plan(looks=3).advance(known)

    assert verdict.candidates == 3


def test_base_runs_that_arrive_later_do_not_end_a_plan_at_an_earlier_look():
    plan = a_plan(Claim(delta_bpb=-0.002))
    known = knowing([*pairs((0,), effect=0.0), *pairs((1,), effect=-0.004)])
    assert plan.advance(known) == Need(mutant=MUTANT, seed=2)

    for seed in range(6):  # of another plan; against these the first pair refutes
        known.add(ended(BASE, 2000 + seed, 0.999))

    assert plan.advance(known) == Need(mutant=MUTANT, seed=2)


# Nothing predicted


@pytest.mark.parametrize(
    ("expect", "profile", "reason"),
    [
        (None, GPU, "The spec predicts nothing."),
        (
            Expect(delta_bpb=-0.01),
            CPU,
            "The prediction speaks of gpu; this is cpu.",
        ),
        (
            Expect(delta_bpb=-0.01, on="cpu"),
            GPU,
            "The prediction speaks of cpu; this is gpu.",
        ),
    ],
)
def test_what_nobody_predicted_here_is_measured_and_the_reason_is_said(
    expect, profile, reason
):
    plan = a_plan(claim_under(expect, profile), looks=2)

    verdict, asked = carried_out(plan, unknown(), effect=-0.5)

    assert (verdict.word, verdict.reason, verdict.claim) == ("measured", reason, "none")
    assert (verdict.predicted_bpb, verdict.size_held) == (None, None)
    assert verdict.delta_bpb == pytest.approx(-0.5)
    assert len(asked) == 4


@pytest.mark.parametrize(
    ("expect", "text"),
    [
        (Expect(delta_bpb=-0.0009, sd=0.5), "-0.0009"),
        (Expect(delta_bpb=1), "+1"),
        (Expect(delta_bpb=0, within=0.001), "0±0.001"),
    ],
)
def test_a_claim_is_the_number_that_is_tested_and_nothing_else(expect, text):
    claim = claim_under(expect, GPU)

    assert (claim.text, claim.why_none) == (text, "")


# Trials without a number


def test_a_crash_is_a_verdict_only_when_the_same_seed_crashes_again():
    plan = a_plan()
    known = knowing([ended(BASE, 0, 1.0), ended(MUTANT, 0)])
    assert plan.advance(known) == Need(mutant=MUTANT, seed=0)

    known.add(ended(MUTANT, 0))
    verdict = plan.advance(known)

    assert (verdict.word, verdict.reason) == (
        "crashed",
        "oom with seed 0, twice: out of memory",
    )
    assert (verdict.delta_bpb, verdict.lower_bpb, verdict.size_held) == (None,) * 3
    assert (verdict.candidates, verdict.bases, verdict.seconds) == (1, 0, 4.0)


def test_a_crash_that_does_not_come_back_is_forgotten():
    known = knowing([ended(BASE, 0, 1.0), ended(MUTANT, 0), ended(MUTANT, 0, 0.99)])

    verdict, asked = carried_out(a_plan(), known, effect=-0.01)

    assert (verdict.word, asked) == ("supported", [(BASE, 1), (MUTANT, 1)])


def test_crashes_of_different_seeds_are_not_one_crash_reproduced():
    known = knowing([
        *pairs((0,), effect=-0.01),
        ended(MUTANT, 0),
        ended(BASE, 1, 1.0),
        ended(MUTANT, 1),
    ])

    assert a_plan().advance(known) == Need(mutant=MUTANT, seed=1)


def test_a_trial_that_the_judge_refused_is_invalid_at_once():
    known = knowing([
        *pairs((0,), effect=-0.01),
        ended(BASE, 1, 1.0),
        ended(MUTANT, 1, status="invalid", message="it reads the future"),
    ])

    verdict = a_plan().advance(known)

    assert (verdict.word, verdict.reason) == (
        "invalid",
        "invalid with seed 1: it reads the future",
    )
    assert verdict.delta_bpb is None
    assert verdict.runs == ("mutant-1-invalid",)


@pytest.mark.parametrize("status", ["killed", "infrastructure"])
@pytest.mark.parametrize("mutant", [BASE, MUTANT])
def test_a_trial_that_was_lost_is_run_again_and_given_up_after_three(mutant, status):
    known = knowing([] if mutant == BASE else [ended(BASE, 0, 1.0)])
    lost = ended(mutant, 0, status=status, message="no such device")
    asked = 0

    while next_trial(a_plan(), known) == Need(mutant=mutant, seed=0):
        asked += 1
        known.add(lost)

    assert asked == RETRIES + 1 == 3
    assert a_plan().advance(known) == Lost(
        reason="seed 0 was lost 3 times: no such device", outcome=lost
    )


def test_trials_that_earlier_sessions_lost_do_not_count():
    known = knowing([ended(BASE, 0, 1.0)])
    for _ in range(3):
        known.add(ended(MUTANT, 0, status="killed"))
    assert isinstance(a_plan().advance(known), Lost)

    next_session = attrs.evolve(known, lost=[])

    assert a_plan().advance(next_session) == Need(mutant=MUTANT, seed=0)


def test_a_killed_trial_does_not_reproduce_a_crash():
    known = knowing([
        ended(BASE, 0, 1.0),
        ended(MUTANT, 0),
        ended(MUTANT, 0, status="killed"),
    ])

    assert a_plan().advance(known) == Need(mutant=MUTANT, seed=0)


@pytest.mark.parametrize(
    ("status", "crash", "reason"),
    [
        ("crashed", "nan", "the base itself failed (nan): loss is nan"),
        ("invalid", None, "the base itself failed (invalid): loss is nan"),
    ],
)
def test_a_base_that_fails_twice_is_nobodys_verdict(status, crash, reason):
    failed = ended(BASE, 0, status=status, crash=crash, message="loss is nan")
    known = knowing([failed])
    assert next_trial(a_plan(), known) == Need(mutant=BASE, seed=0)

    known.add(failed)

    assert a_plan().advance(known) == Lost(reason=reason, outcome=failed)


@pytest.mark.parametrize("status", ["crashed", "invalid"])
def test_a_base_that_failed_in_an_earlier_session_is_tried_again(status):
    stored = [ended(BASE, 0, status=status)] * CRASHES

    next_session = attrs.evolve(unknown(), outcomes=stored)

    assert next_trial(a_plan(), next_session) == Need(mutant=BASE, seed=0)


# Devices

A, B, C = "GPU-a", "GPU-b", "GPU-c"


def test_on_every_device_the_base_runs_before_the_candidate():
    plan, known = a_plan(), knowing([ended(BASE, 0, 1.0, device=A)])

    assert next_trial(plan, known, A) == Need(mutant=MUTANT, seed=0)
    assert next_trial(plan, known, B) == Need(mutant=BASE, seed=0)


def test_a_base_run_that_failed_on_a_device_is_none_there():
    known = knowing([ended(BASE, 0, device=A), ended(BASE, 0, status="killed")])

    assert next_trial(a_plan(), known, A) == Need(mutant=BASE, seed=0)


def test_candidate_and_base_on_different_devices_are_not_a_pair():
    known = knowing([ended(BASE, 0, 1.0, device=A), ended(MUTANT, 0, 0.5, device=B)])
    assert known.paired(MUTANT, 0) is None
    assert a_plan().advance(known) == Need(mutant=MUTANT, seed=0)
    assert next_trial(a_plan(), known, B) == Need(mutant=BASE, seed=0)

    known.add(ended(BASE, 0, 1.0, device=B))

    assert known.paired(MUTANT, 0).device == B
    assert a_plan().advance(known) == Need(mutant=MUTANT, seed=1)


def test_the_first_candidate_run_that_has_a_partner_is_the_one_that_counts():
    known = knowing([
        ended(MUTANT, 0, 0.9, device=A),
        *pairs((0,), device=B),
        *pairs((0,), device=C),
    ])

    assert known.paired(MUTANT, 0).device == B


def test_a_crash_is_no_partner():
    known = knowing([ended(BASE, 0, device=A), ended(MUTANT, 0, 1.0, device=A)])

    assert known.paired(MUTANT, 0) is None
    assert known.finished(BASE, 0) == []


@pytest.mark.parametrize("looks", [2, 6])
def test_the_speed_of_a_device_is_no_effect(looks):
    plan = a_plan(Claim(), looks)
    speeds = {A: 0.0, B: 0.08, C: -0.05}

    one, _ = carried_out(plan, unknown(), effect=-0.01)
    three, ran = carried_out(plan, unknown(), effect=-0.01, speeds=speeds)

    assert three.delta_bpb == pytest.approx(-0.01)
    assert three.lower_bpb == pytest.approx(one.lower_bpb)
    assert len(ran) == 2 * looks


def test_only_base_runs_on_the_devices_of_the_candidate_are_counted():
    known = knowing([
        *pairs((0,), effect=-0.01, device=A),
        ended(BASE, 1, 1.0, device=A),
        *(ended(BASE, seed, 1.5, device=B) for seed in range(5)),
    ])

    verdict = a_plan(allowed=1).advance(known)

    assert (verdict.candidates, verdict.bases) == (1, 2)
    assert verdict.runs == ("mutant-0-finished", "base-0-finished", "base-1-finished")
    assert verdict.delta_bpb == pytest.approx(-0.01)


def test_a_crash_on_another_device_reproduces_one():
    known = knowing([
        ended(BASE, 0, 1.0, device=A),
        ended(MUTANT, 0, device=A),
        ended(BASE, 0, 1.0, device=B),
        ended(MUTANT, 0, device=B),
    ])

    assert a_plan().advance(known).word == "crashed"


def test_what_the_judge_refused_on_one_device_is_invalid_on_all():
    known = knowing([
        ended(BASE, 0, 1.0, device=A),
        ended(MUTANT, 0, device=A, status="invalid", message="it reads the future"),
        *pairs((0, 1), effect=-0.5, device=B),
    ])

    assert a_plan().advance(known).word == "invalid"


# Ahead of the look that is due


def ahead(known, plan=None):
    return [(need.mutant, need.seed) for need in (plan or a_plan()).ahead(known)]


def test_a_device_that_idles_may_run_the_looks_after_the_due_one():
    known = knowing([*pairs((0, 2), effect=-0.01), ended(MUTANT, 4)])

    assert a_plan().advance(known) == Need(mutant=MUTANT, seed=1)
    assert ahead(known) == [(MUTANT, 3), (MUTANT, 4), (MUTANT, 5)]
    assert ahead(unknown(), a_plan(allowed=3)) == [(MUTANT, 1), (MUTANT, 2)]


def test_a_look_that_ran_ahead_is_not_read_before_the_due_one():
    known = knowing([*pairs((1, 2), effect=-0.5)])
    assert a_plan().advance(known) == Need(mutant=MUTANT, seed=0)

    for outcome in pairs((0,), effect=-0.5):
        known.add(outcome)

    assert a_plan().advance(known).candidates == 3


@pytest.mark.parametrize(
    "bad",
    [
        [ended(MUTANT, 3)] * CRASHES,
        [ended(MUTANT, 3, status="invalid")],
        [ended(MUTANT, 3, status="killed")] * (RETRIES + 1),
        [ended(BASE, 3)] * CRASHES,
    ],
    ids=["crashed", "invalid", "lost", "base"],
)
def test_nothing_runs_ahead_of_a_look_that_ends_the_plan(bad):
    assert ahead(knowing(bad)) == [(MUTANT, 1), (MUTANT, 2)]


def test_a_look_that_crashed_ahead_does_not_undo_what_was_decided_before_it():
    crashes = [ended(MUTANT, 2)] * CRASHES
    decided_before = knowing([*pairs((0, 1), effect=-0.5), *crashes])
    undecided = knowing([*pairs((0, 1), effect=-0.002), *crashes])
    plan = a_plan(Claim(delta_bpb=-0.003))

    assert plan.advance(decided_before).word == "supported"
    assert plan.advance(undecided).word == "crashed"


@pytest.mark.parametrize(
    "lost",
    [
        [ended(BASE, 0, status="invalid", message="loss is nan")] * CRASHES,
        [ended(BASE, 0, status="killed")] * (RETRIES + 1),
        [ended(MUTANT, 0, status="infrastructure")] * (RETRIES + 1),
    ],
    ids=["base failed", "base lost", "candidate lost"],
)
def test_why_a_seed_is_blocked_is_known_without_reading_a_look(lost):
    plan, need = a_plan(), Need(mutant=MUTANT, seed=0)

    assert plan.blocked(knowing(lost[1:]), need) is None
    assert plan.blocked(knowing(lost), need) == plan.advance(knowing(lost))
    assert plan.blocked(knowing(lost), Need(mutant=MUTANT, seed=1)) is None


# Noise and bases


def test_noise_is_pooled_within_mutants_never_between_them():
    known = knowing([*pairs(range(4), effect=-0.5)], df=2.0)

    noise = known.noise()

    assert noise.df == 2.0 + 3 + 3
    assert noise.sd == pytest.approx(SD * math.sqrt(2 / 8))


def test_the_speed_of_a_device_is_no_noise():
    speeds = {A: 0.0, B: 0.08}
    known = unknown(df=2.0)

    carried_out(a_plan(Claim(), looks=6), known, effect=-0.5, speeds=speeds)

    noise = known.noise()
    assert noise.df == 2.0 + 2 * (2 + 2)
    assert noise.sd == pytest.approx(SD * math.sqrt(2 / 10))


def test_a_seed_that_was_run_on_two_devices_counts_once_for_the_noise():
    known = knowing(
        [
            *(ended(BASE, seed, 1.0 + seed * SD, device=A) for seed in range(2)),
            *(ended(BASE, seed, 2.0 + seed * SD, device=B) for seed in range(4)),
        ],
        df=2.0,
    )

    noise = known.noise()

    # All four on B; none is left for A.
    assert noise.df == 2.0 + 3
    assert noise.sd == pytest.approx(SD * math.sqrt((2 + 5) / 5))


def test_a_seed_counts_where_it_can_be_compared_whichever_device_was_first():
    known = knowing(
        [
            ended(BASE, 0, 1.0, device=A),
            ended(BASE, 0, 1.1, device=B),
            ended(BASE, 1, 1.2, device=B),
        ],
        df=2.0,
    )

    noise = known.noise()

    assert noise.df == 2.0 + 1
    assert noise.sd == pytest.approx(math.sqrt((2 * SD**2 + 0.005) / 3))


def test_a_seed_that_was_run_twice_counts_once_for_the_noise():
    known = knowing([ended(BASE, 0, 1.0), ended(BASE, 0, 1.0), ended(BASE, 0)], df=2.0)

    assert known.noise() == Noise(sd=SD, df=2.0)


def test_the_noise_grows_with_what_is_seen():
    known = knowing([ended(MUTANT, seed, seed * 0.1) for seed in range(3)], df=2.0)

    assert known.noise().sd == pytest.approx(math.sqrt((2 * SD**2 + 0.02) / 4))


def test_only_the_latest_base_runs_of_each_device_count():
    known = knowing(
        ended(BASE, seed, seed / 10, device=device)
        for seed in range(LATEST_BASES + 3)
        for device in (A, B)
    )

    latest = list(range(3, LATEST_BASES + 3))
    assert [outcome.seed for outcome in known.bases([A])] == latest
    assert [(o.device, o.seed) for o in known.bases([B, A, B])] == [
        (device, seed) for device in (B, A) for seed in latest
    ]
    assert known.bases([C]) == []


def test_base_runs_without_a_number_are_no_base():
    known = knowing([ended(BASE, 0, 1.0), ended(BASE, 1), ended(MUTANT, 0, 0.9)])

    assert [outcome.seed for outcome in known.bases([""])] == [0]


# Attempts


def decided(
    word="supported", attempt=0, candidates=6, looks=6, claim=BETTER.text, **fields
):
    return Verdict(
        mutant=MUTANT,
        claim=claim,
        attempt=attempt,
        word=word,
        reason="",
        noise_sd=SD,
        noise_df=2.0,
        looks=looks,
        candidates=candidates,
        bases=6,
        seconds=1.0,
        runs=(),
        **fields,
    )


@pytest.mark.parametrize("word", ["supported", "refuted", "crashed", "invalid"])
def test_what_is_decided_is_reported_and_not_run_again(word):
    past = decided(word, candidates=2)

    assert past_verdict([past], a_plan(BETTER, looks=6)) is past
    assert past_verdict([past], a_plan(BETTER, looks=60)) is past


@pytest.mark.parametrize("word", ["inconclusive", "measured"])
def test_what_was_not_decided_goes_on_when_more_seeds_are_allowed(word):
    past = decided(word, candidates=6)

    assert past_verdict([past], a_plan(BETTER, looks=6)) is past
    assert past_verdict([past], a_plan(BETTER, looks=12)) is None
    assert next_attempt([past], [], a_plan(BETTER), rerun=False) == 0


def test_a_plan_that_gave_up_early_is_not_taken_up_again_by_itself():
    past = decided("inconclusive", candidates=2, looks=6)

    assert past_verdict([past], a_plan(BETTER, looks=6)) is past
    assert past_verdict([past], a_plan(BETTER, looks=7)) is None


def test_the_answer_of_a_plan_that_went_on_is_its_last():
    went_on = [decided("inconclusive"), decided("supported", candidates=9, looks=12)]

    assert past_verdict(went_on, a_plan(BETTER, looks=12)) is went_on[1]
    assert past_verdict(went_on, a_plan(BETTER, looks=6)) is went_on[1]


def test_the_latest_attempt_answers():
    attempts = [decided("refuted", attempt=1), decided("supported", attempt=0)]

    assert past_verdict(attempts, a_plan(BETTER, looks=6)) is attempts[0]


def test_verdicts_on_another_mutant_or_claim_answer_nothing():
    past = [decided(), decided(claim="none", attempt=1)]

    assert past_verdict(past, a_plan(BETTER, looks=6, mutant=OTHER)) is None
    assert past_verdict(past, a_plan(Claim(delta_bpb=-0.02), looks=6)) is None
    assert past_verdict([], a_plan(BETTER, looks=6)) is None


def test_a_claim_in_other_words_keeps_its_verdict():
    # What the prose says, and how sure the author is, is no part of what is tested.
    said_otherwise = claim_under(Expect(delta_bpb=-0.01, sd=0.5), GPU)
    unpredicted = claim_under(Expect(delta_bpb=-0.01), CPU)
    measured = decided("measured", claim="none")

    assert past_verdict([decided()], a_plan(said_otherwise, looks=6)) == decided()
    assert past_verdict([measured], a_plan(unpredicted, looks=6)) is measured
    assert past_verdict([measured], a_plan(claim_under(None, GPU))) is measured


def test_the_first_plan_of_a_mutant_is_attempt_zero():
    others = [attrs.evolve(decided(attempt=4), mutant=OTHER)]

    assert next_attempt(others, [], a_plan(BETTER), rerun=False) == 0
    assert next_attempt([], [], a_plan(BETTER), rerun=True) == 0


def test_a_rerun_is_on_fresh_seeds():
    past = [decided(attempt=0), decided(attempt=1)]

    assert next_attempt(past, [], a_plan(BETTER), rerun=True) == 2


@pytest.mark.parametrize("seen", ["none", "-0.02", "0±0.001"])
def test_a_prediction_made_after_runs_were_judged_is_tested_on_fresh_seeds(seen):
    past = [decided("measured", claim=seen)]

    assert next_attempt(past, [], a_plan(BETTER), rerun=False) == 1


def test_a_prediction_made_after_runs_were_seen_is_tested_on_fresh_seeds():
    # Interrupted: there is no verdict yet, but anybody could look at the run.
    seen = [ended(MUTANT, 0, 0.98, claim="none")]

    assert next_attempt([], seen, a_plan(BETTER), rerun=False) == 1
    assert next_attempt([], seen, a_plan(Claim()), rerun=False) == 0


def test_a_larger_design_is_a_new_test_and_fewer_seeds_only_pause_one():
    past = [decided("inconclusive", looks=6)]

    assert next_attempt(past, [], a_plan(looks=12), rerun=False) == 1
    assert next_attempt(past, [], a_plan(looks=6, allowed=2), rerun=False) == 0


def test_a_rerun_that_was_interrupted_goes_on():
    past, runs = [decided()], [ended(MUTANT, 1000, 0.98, claim=BETTER.text)]

    assert next_attempt(past, runs, a_plan(BETTER), rerun=True) == 1


# The base in between


NEW_YEAR = datetime(2026, 1, 1)


def test_a_base_run_is_due_after_six_candidates():
    known = knowing([ended(BASE, 0, 1.0), *(ended(OTHER, n, 1.0) for n in range(5))])

    before = base_due(known, NEW_YEAR, "")
    known.add(ended(MUTANT, 0, 1.0))
    after = base_due(known, NEW_YEAR, "")

    assert before is None
    assert after == Need(mutant=BASE, seed=1)


def test_a_base_run_is_due_where_the_candidates_ran():
    known = knowing([
        ended(BASE, 0, 1.0, device=A),
        ended(BASE, 1, 1.0, device=B),
        ended(BASE, 2, 1.0, device=A),
        *(ended(OTHER, seed, 1.0, device=A) for seed in range(6)),
        *(ended(OTHER, seed, 1.0, device=B) for seed in range(5)),
    ])

    assert base_due(known, NEW_YEAR, A) == Need(mutant=BASE, seed=4)
    assert base_due(known, NEW_YEAR, B) is None
    assert base_due(known, NEW_YEAR, C) is None


def test_base_runs_that_are_due_at_once_are_of_new_and_different_seeds():
    known = knowing(
        outcome
        for seed, device in enumerate((A, B, C))
        for outcome in [
            ended(BASE, seed, 1.0, device=device),
            *(ended(OTHER, look, 1.0, device=device) for look in range(6)),
        ]
    )

    due = {base_due(known, NEW_YEAR, device).seed for device in (A, B, C)}

    assert due == {3, 4, 5}


def test_a_base_run_of_yesterday_is_too_old_to_compare_with():
    known = knowing([ended(BASE, 0, 1.0, started_at=NEW_YEAR)])

    assert base_due(known, datetime(2026, 1, 1, 1), "") is None
    assert base_due(known, datetime(2026, 1, 2), "") == Need(mutant=BASE, seed=1)


def test_before_the_first_base_run_the_plans_ask_for_it_themselves():
    assert base_due(unknown(), NEW_YEAR, "") is None


def test_a_base_run_that_is_lost_again_and_again_is_not_waited_for():
    known = knowing([ended(BASE, 0, 1.0, started_at=NEW_YEAR)])
    for _ in range(3):
        known.add(ended(BASE, 1, status="killed"))

    assert base_due(known, datetime(2026, 1, 2), "") is None


def test_a_prediction_that_comes_back_goes_on_where_it_was():
    past = [
        decided("inconclusive", attempt=0),
        decided("refuted", attempt=1, claim="-0.02"),
    ]

    assert next_attempt(past, [], a_plan(BETTER), rerun=False) == 0


def test_a_rerun_uses_none_of_the_candidate_runs_that_decided_before():
    known = unknown()
    first, _ = carried_out(a_plan(), known, effect=-0.01)

    attempt = next_attempt([first], [], a_plan(BETTER), rerun=True)
    again, asked = carried_out(a_plan(attempt=attempt), known, effect=-0.01)

    assert {seed for _, seed in asked} == {1000, 1001}
    assert again.attempt == 1
    assert not set(again.runs[: again.candidates]) & set(first.runs)


# Power


@pytest.mark.parametrize(
    ("claim", "looks", "text"),
    [
        (
            Claim(delta_bpb=-0.002),
            6,
            "6 seeds would show -0.002 with a chance of 8% (noise sd 0.0018): needs "
            "about 22 seeds: --seeds 22 (132 min for the candidate, as many for the "
            "base), or predict something larger.",
        ),
        (
            Claim(delta_bpb=-0.0001),
            6,
            "6 seeds would show -0.0001 with a chance of 0% (noise sd 0.0018): "
            "needs more than 64 seeds: say how many with --seeds, or predict something "
            "larger.",
        ),
        (
            Claim(delta_bpb=0.0, within=0.002),
            4,
            "4 seeds would show 0±0.002 with a chance of 4% (noise sd 0.0018): needs "
            "about 15 seeds: --seeds 15 (90 min for the candidate, as many for the "
            "base), or claim a wider equivalence.",
        ),
    ],
)
def test_a_plan_without_power_says_what_it_would_take(claim, looks, text):
    plan, noise = a_plan(claim, looks), Noise(sd=0.0018, df=2.0)

    assert underpowered(plan, noise, trial_seconds=360.0) == text


@pytest.mark.parametrize(
    ("claim", "looks"),
    [(Claim(delta_bpb=-0.1), 6), (Claim(), 6), (Claim(delta_bpb=-1e-6), 1)],
)
def test_a_plan_with_power_or_without_a_test_is_not_stopped(claim, looks):
    plan, noise = a_plan(claim, looks), Noise(sd=0.0018, df=2.0)

    assert underpowered(plan, noise, trial_seconds=360.0) is None


# Whatever happens

CLAIMS = st.sampled_from([
    BETTER,
    Claim(delta_bpb=0.003),
    Claim(delta_bpb=0.0, within=0.002),
    Claim(why_none="The spec predicts nothing."),
])
STATUSES = st.sampled_from([
    *["finished"] * 6,
    "crashed",
    "invalid",
    "killed",
    "infrastructure",
])
BPB = st.floats(0.98, 1.02)


@settings(max_examples=60)
@given(
    st.data(),
    CLAIMS,
    st.integers(1, 6),
    st.integers(0, 2),
    st.sampled_from(["A", "AB", "ABCD"]),
)
def test_whatever_happens_a_plan_ends_and_asks_for_nothing_twice(
    data, claim, looks, attempt, devices
):
    plan, known = a_plan(claim, looks, attempt=attempt), unknown(df=2.0)
    ran = []

    while isinstance(step := plan.advance(known), Need):
        assert step.mutant == MUTANT
        later = list(plan.ahead(known))
        seeds = [need.seed for need in (step, *later)]
        assert seeds == sorted(set(seeds))
        assert set(seeds) <= set(map(plan.seed, range(1, looks + 1)))
        device = data.draw(st.sampled_from(devices))
        need = trial(known, data.draw(st.sampled_from([step, *later])), device)
        there = [o for o in known.of(need.mutant, need.seed) if o.device == device]
        assert not {o.status for o in there} & {"finished", "invalid"}
        assert plan.blocked(known, need) is None
        ran.append((need, device))
        for other in data.draw(st.lists(st.integers(5000, 5003), max_size=2)):
            known.add(ended(BASE, other, data.draw(BPB), device=device))
        status = data.draw(STATUSES)
        bpb = data.draw(BPB) if status == "finished" else None
        known.add(ended(need.mutant, need.seed, bpb, status=status, device=device))

    repeats = sum(o.val_bpb is None for o in [*known.outcomes, *known.lost])
    assert len(ran) <= (1 + len(devices)) * looks + repeats
    assert max(ran.count(place) for place in ran) <= RETRIES + CRASHES
    if isinstance(step, Lost):
        assert step.outcome in known.lost
    elif step.word in ("crashed", "invalid"):
        assert (step.delta_bpb, step.candidates, step.bases) == (None, 1, 0)
    else:
        assert step.delta_bpb is not None
        assert step.word != "supported" or step.candidates >= 2
        assert len(step.runs) == step.candidates + step.bases


@settings(max_examples=60)
@given(
    CLAIMS,
    st.lists(st.tuples(BPB, BPB), max_size=6),
    st.randoms(use_true_random=False),
)
def test_the_order_in_which_trials_ended_does_not_matter(claim, values, chance):
    outcomes = [
        ended(mutant, seed, bpb)
        for seed, pair in enumerate(values)
        for mutant, bpb in zip((BASE, MUTANT), pair, strict=True)
    ]
    shuffled = chance.sample(outcomes, len(outcomes))

    first, second = (
        a_plan(claim).advance(knowing(some, df=2.0)) for some in (outcomes, shuffled)
    )

    if isinstance(first, Verdict):
        first, second = (
            attrs.evolve(v, runs=tuple(sorted(v.runs))) for v in (first, second)
        )
    assert first == second


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(0, 12))
def test_a_night_that_is_interrupted_comes_to_the_same_verdict(seed, trials):
    def run(need):
        drawn = random.Random(f"{seed} {need.mutant} {need.seed}")
        shift = -0.002 if need.mutant == MUTANT else 0.0
        return ended(need.mutant, need.seed, drawn.gauss(1.0 + shift, SD))

    def advanced(known, most=99):
        for _ in range(most):
            step = next_trial(plan, known)
            if not isinstance(step, Need):
                return step
            known.add(run(step))
        return None

    plan, known = a_plan(Claim(delta_bpb=-0.002)), unknown(df=2.0)
    advanced(known, trials)
    next_session = attrs.evolve(known, outcomes=list(known.outcomes), lost=[])

    assert advanced(next_session) == advanced(unknown(df=2.0))
