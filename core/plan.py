"""Which trials an experiment still needs, and when it needs none any more.

A plan is a function of what is known: whoever asks it again after a trial, or after a
night that was interrupted, gets the next step and nothing is done twice.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

import attrs

from core.evidence import SEEDS_AN_ATTEMPT, Claim, Known, Outcome, Verdict
from core.verdict import (
    Decision,
    Estimate,
    Measured,
    Noise,
    decide,
    power,
    seeds_needed,
)

CANDIDATES_A_BASE = 6  # so that about one run in seven is the base's
BASE_LASTS = timedelta(hours=6)
POWER = 0.8
MOST_SEEDS = 64  # that anybody is advised to run
CRASHES = 2  # on one seed: the second time it is no accident
RETRIES = 2  # of a trial that was killed, or that a machine failed

FINAL = ("supported", "refuted", "crashed", "invalid")


@attrs.frozen(kw_only=True)
class Need:
    """A trial that has to run: this mutant with this seed.

    A candidate's is met when the base has run with that seed on the same device, too.
    """

    mutant: str
    seed: int


@attrs.frozen(kw_only=True)
class Lost:
    """A plan cannot go on, and this is nobody's verdict."""

    reason: str
    outcome: Outcome


@attrs.frozen(kw_only=True)
class Plan:
    """The way of one mutant and one claim to a verdict.

    Attributes:
        mutant: Digest of the mutant.
        base: Digest of the base.
        claim: What is to be decided.
        looks: Of the design: its boundaries are those of so many candidate runs.
        allowed: Candidate runs that this session may use; fewer only pause the design,
            since a design that is chosen while looking has no error rate.
        attempt: Chooses the seeds.
    """

    mutant: str
    base: str
    claim: Claim
    looks: int
    allowed: int
    attempt: int = 0

    def seed(self, look: int) -> int:
        """Return the seed of a look, counted from 1."""
        return self.attempt * SEEDS_AN_ATTEMPT + look - 1

    def advance(self, known: Known) -> Need | Verdict | Lost:
        """Return the next candidate trial, or the verdict if no more is to run."""
        candidates: list[Outcome] = []
        for look in range(1, self.allowed + 1):
            seen = self._look(known, look)
            if isinstance(seen, Need | Lost):
                # Decided by all that is known: later base runs may move an
                # earlier look, which must not end the plan without the rest.
                return self._decided(known, candidates) or seen
            if seen.status == "crashed":
                # It may have run ahead of a look that made it superfluous.
                decided = self._decided(known, candidates)
                return decided or self._without_estimate(known, seen)
            if seen.val_bpb is None:
                return self._without_estimate(known, seen)
            candidates.append(seen)
        verdict = self._decided(known, candidates)
        assert verdict is not None, "a plan decides at its last look"
        return verdict

    def ahead(self, known: Known) -> Iterator[Need]:
        """Yield the trials after the due one, which a device may run that idles.

        In the order of the looks, up to one that ends the plan whatever comes before.
        """
        is_due = True
        for look in range(1, self.allowed + 1):
            seen = self._look(known, look)
            if isinstance(seen, Need):
                if not is_due:
                    yield seen
                is_due = False
            elif isinstance(seen, Lost) or seen.val_bpb is None:
                return

    def blocked(self, known: Known, need: Need) -> Lost | None:
        """Return why neither the need nor its partner is worth another trial, if so."""
        for mutant in (self.base, need.mutant):
            lost = [o for o in known.lost if (o.mutant, o.seed) == (mutant, need.seed)]
            broken = [o for o in lost if o.status not in ("killed", "infrastructure")]
            if len(broken) >= CRASHES:
                return Lost(
                    reason="the base itself failed "
                    f"({broken[-1].crash or broken[-1].status}): {broken[-1].message}",
                    outcome=broken[-1],
                )
            if len(lost) > RETRIES:
                return Lost(
                    reason=f"seed {need.seed} was lost {len(lost)} times: "
                    f"{lost[-1].message}",
                    outcome=lost[-1],
                )
        return None

    def _look(self, known: Known, look: int) -> Outcome | Need | Lost:
        """Return the trial that a look rests on, or what it takes to have it."""
        seed = self.seed(look)
        seen = known.of(self.mutant, seed)
        invalid = [outcome for outcome in seen if outcome.status == "invalid"]
        if invalid:
            return invalid[0]
        paired = known.paired(self.mutant, seed)
        if paired is not None:
            return paired
        crashed = [outcome for outcome in seen if outcome.status == "crashed"]
        if len(crashed) >= CRASHES:
            return crashed[-1]
        need = Need(mutant=self.mutant, seed=seed)
        return self.blocked(known, need) or need

    def _without_estimate(self, known: Known, outcome: Outcome) -> Verdict:
        """Return the verdict on a mutant that has no number."""
        again = ", twice" if outcome.status == "crashed" else ""
        kind = outcome.crash or outcome.status
        return self._verdict(
            known,
            word="invalid" if outcome.status == "invalid" else "crashed",
            reason=f"{kind} with seed {outcome.seed}{again}: {outcome.message}",
            runs=known.of(self.mutant, outcome.seed),
            bases=[],
        )

    def _decided(self, known: Known, candidates: list[Outcome]) -> Verdict | None:
        if not candidates:
            return None
        bases = known.bases(outcome.device for outcome in candidates)
        decision = decide(
            candidate=_measured(candidates),
            base=_measured(bases),
            delta_bpb=self.claim.delta_bpb,
            within=self.claim.within,
            noise=known.noise(),
            looks=self.looks,
        )
        word, reason = decision.word, decision.reason
        if word is None and len(candidates) < self.allowed:
            return None
        if word is None:
            word = "measured"
            reason = self.claim.why_none or (
                f"Undecided after look {len(candidates)} of {self.looks}: "
                f"--seeds {self.looks} goes on."
            )
        return self._verdict(
            known,
            word=word,
            reason=reason,
            runs=candidates,
            bases=bases,
            decision=decision,
        )

    def _verdict(
        self,
        known: Known,
        *,
        word: str,
        reason: str,
        runs: Sequence[Outcome],
        bases: Sequence[Outcome],
        decision: Decision | None = None,
    ) -> Verdict:
        noise = known.noise()
        seen: Estimate | None = None if decision is None else decision.estimate
        return Verdict(
            mutant=self.mutant,
            claim=self.claim.text,
            attempt=self.attempt,
            word=word,
            reason=reason,
            delta_bpb=None if seen is None else seen.delta_bpb,
            lower_bpb=None if seen is None else seen.lower,
            upper_bpb=None if seen is None else seen.upper,
            predicted_bpb=self.claim.delta_bpb,
            size_held=None if decision is None else decision.size_held,
            replication=None if decision is None else decision.replication,
            noise_sd=noise.sd,
            noise_df=noise.df,
            looks=self.looks,
            candidates=len({outcome.seed for outcome in runs}),
            bases=len(bases),
            seconds=math.fsum(outcome.wall_seconds for outcome in runs),
            runs=tuple(outcome.run for outcome in (*runs, *bases)),
        )


def _measured(outcomes: Iterable[Outcome]) -> list[Measured]:
    return [
        Measured(val_bpb=outcome.val_bpb, seed=outcome.seed, device=outcome.device)
        for outcome in outcomes
        if outcome.val_bpb is not None
    ]


def trial(known: Known, need: Need, device: str) -> Need:
    """Return what has to run on *device* for *need*: its partner first, then itself.

    A base that cannot run costs no candidate its slot.

    Args:
        known: All trials of the context.
        need: Of a candidate, not met yet.
        device: UUID of the GPU, or cpu.
    """
    bases = known.finished(known.base, need.seed)
    if any(outcome.device == device for outcome in bases):
        return need
    return Need(mutant=known.base, seed=need.seed)


def base_due(known: Known, now: datetime, device: str) -> Need | None:
    """Return the base run that is due on a device before its next candidate, if one is.

    The machine drifts, and base runs that are all old would blame the candidates.

    Args:
        known: All trials of the context.
        now: UTC.
        device: UUID of the GPU, or cpu.
    """
    here = [outcome for outcome in known.outcomes if outcome.device == device]
    finished = [outcome for outcome in here if outcome.val_bpb is not None]
    last = max(
        (i for i, o in enumerate(finished) if o.mutant == known.base), default=None
    )
    if last is None:
        return None  # the plans themselves ask for it
    began = finished[last].started_at
    is_old = began is not None and now.replace(tzinfo=None) - began > BASE_LASTS
    if len(finished) - 1 - last < CANDIDATES_A_BASE and not is_old:
        return None
    # A new draw: a seed of another device would tell less of the noise.  Devices share
    # out the seeds, so that two that are due at once do not take the same.
    used = {outcome.seed for outcome in known.outcomes if outcome.mutant == known.base}
    devices = sorted({outcome.device for outcome in known.outcomes})
    seeds = itertools.count(devices.index(device), len(devices))
    seed = next(seed for seed in seeds if seed not in used)
    lost = [
        outcome
        for outcome in known.lost
        if (outcome.mutant, outcome.seed) == (known.base, seed)
        and outcome.device == device
    ]
    if len(lost) > RETRIES:
        return None
    return Need(mutant=known.base, seed=seed)


def past_verdict(verdicts: Iterable[Verdict], plan: Plan) -> Verdict | None:
    """Return the verdict that already answers what *plan* asks, if there is one.

    Args:
        verdicts: Oldest first.
        plan: Of any attempt.
    """
    ours = [
        v for v in verdicts if (v.mutant, v.claim) == (plan.mutant, plan.claim.text)
    ]
    if not ours:
        return None
    latest = sorted(ours, key=lambda verdict: verdict.attempt)[-1]  # and last decided
    if latest.word in FINAL:
        return latest
    if plan.claim.delta_bpb is not None and latest.looks < plan.looks:
        return None  # a larger design was asked for
    gave_up = latest.word == "inconclusive"
    return latest if gave_up or latest.candidates >= plan.allowed else None


def next_attempt(
    verdicts: Iterable[Verdict],
    outcomes: Iterable[Outcome],
    plan: Plan,
    *,
    rerun: bool,
) -> int:
    """Return the attempt that *plan* belongs to.

    Fresh seeds are for a repetition, for a design that is larger than the one that was
    decided, and for a prediction that was made, or changed, after runs of the mutant
    had been seen.

    Args:
        verdicts: Of the context.
        outcomes: Of the context.
        plan: Of any attempt.
        rerun: Whether what is decided is to be repeated.
    """
    decided = [verdict for verdict in verdicts if verdict.mutant == plan.mutant]
    ran = [outcome for outcome in outcomes if outcome.mutant == plan.mutant]
    ours = [verdict for verdict in decided if verdict.claim == plan.claim.text]
    latest = max((verdict.attempt for verdict in ours), default=-1)
    under_way = max((o.attempt for o in ran if o.claim == plan.claim.text), default=-1)
    if under_way > latest:
        return under_way
    is_larger = plan.claim.delta_bpb is not None and any(
        verdict.attempt == latest and verdict.looks < plan.looks for verdict in ours
    )
    if ours and not rerun and not is_larger:
        return latest
    seen = [verdict.attempt for verdict in decided] + [o.attempt for o in ran]
    return max(seen, default=-1) + 1


def underpowered(plan: Plan, noise: Noise, trial_seconds: float) -> str | None:
    """Return why a plan cannot show what it claims, None if it can.

    Stated before anything runs: the chance of ``supported`` if the claim is true.

    Args:
        plan: With its claim.
        noise: The seed's noise in the context.
        trial_seconds: What a run costs.
    """
    claim, looks = plan.claim, plan.looks
    if claim.delta_bpb is None or looks < 2:
        return None
    chance = power(claim.delta_bpb, noise, looks, within=claim.within)
    if chance >= POWER:
        return None
    needed = seeds_needed(
        claim.delta_bpb, noise, POWER, at_most=MOST_SEEDS, within=claim.within
    )
    larger = "claim a wider equivalence" if claim.within else "predict something larger"
    if needed is None:
        advice = f"needs more than {MOST_SEEDS} seeds: say how many with --seeds"
    else:
        minutes = needed * trial_seconds / 60
        advice = (
            f"needs about {needed} seeds: --seeds {needed} ({minutes:.0f} min for the "
            "candidate, as many for the base)"
        )
    return (
        f"{looks} seeds would show {claim.text} with a chance of {chance:.0%} "
        f"(noise sd {noise.sd:.4f}): {advice}, or {larger}."
    )
