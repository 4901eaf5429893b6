"""Which trials an experiment still needs, and when it needs none any more.

A plan is a function of what is known: whoever asks it again after a trial, or after a
night that was interrupted, gets the next step and nothing is done twice.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import attrs

from core.profile import Profile
from core.spec import Expect
from core.verdict import Decision, Estimate, Noise, decide, pool, power, seeds_needed

SEEDS_AN_ATTEMPT = 1000  # a new attempt is a test on seeds that nobody has seen
LATEST_BASES = 8  # older base runs may have drifted away from today's machine
POWER = 0.8
MOST_SEEDS = 64  # that anybody is advised to run
CRASHES = 2  # on one seed: the second time it is no accident
RETRIES = 2  # of a trial that was killed, or that a machine failed

FINAL = ("supported", "refuted", "crashed", "invalid")


@attrs.frozen(kw_only=True)
class Outcome:
    """A trial that has ended, as far as a plan asks about it."""

    run: str
    mutant: str
    seed: int
    status: str
    crash: str | None = None
    message: str = ""
    log_tail: tuple[str, ...] = ()
    val_bpb: float | None = None
    wall_seconds: float = 0.0


@attrs.frozen(kw_only=True)
class Claim:
    """What is to be decided under a profile, which may be nothing.

    Attributes:
        delta_bpb: The predicted change; None when nothing is predicted here.
        within: For a claim of equivalence.
        why_none: Why nothing is predicted, for the reader of a verdict.
    """

    delta_bpb: float | None = None
    within: float | None = None
    why_none: str = attrs.field(default="", eq=False)

    @property
    def text(self) -> str:
        """The claim in one word, by which verdicts are found again."""
        if self.delta_bpb is None:
            return "none"
        if self.delta_bpb == 0:
            return f"0±{self.within:g}"
        return f"{self.delta_bpb:+g}"


def claim_under(expect: Expect | None, profile: Profile) -> Claim:
    """Return what *expect* claims under *profile*."""
    if expect is None:
        return Claim(why_none="The spec predicts nothing.")
    if expect.on != profile.name:
        return Claim(
            why_none=f"The prediction speaks of {expect.on}; this is {profile.name}."
        )
    return Claim(delta_bpb=float(expect.delta_bpb), within=expect.within)


@attrs.frozen(kw_only=True)
class Verdict:
    """A decision about a mutant and a claim, with what it rests on.

    Attributes:
        mutant: Digest of the mutant.
        claim: `Claim.text`.
        attempt: 0, then one more for each test on fresh seeds.
        word: supported, refuted, inconclusive, invalid, crashed or measured.
        reason: One sentence.
        delta_bpb: Measured change, None for invalid and crashed, as are its ends.
        lower_bpb: Lower end of the interval.
        upper_bpb: Upper end of the interval.
        predicted_bpb: The predicted change, None when nothing is predicted here.
        size_held: Whether the interval holds it.
        replication: The chance that a repetition is supported too.
        noise_sd: Seed sd that was used, with its degrees of freedom.
        noise_df: They.
        looks: Candidate runs that the plan allowed; it may decide before.
        candidates: Runs of the mutant.
        bases: Runs of the base.
        seconds: Wall-clock time of the runs of the mutant.
        runs: All runs, by name.
    """

    mutant: str
    claim: str
    attempt: int
    word: str
    reason: str
    delta_bpb: float | None = None
    lower_bpb: float | None = None
    upper_bpb: float | None = None
    predicted_bpb: float | None = None
    size_held: bool | None = None
    replication: float | None = None
    noise_sd: float
    noise_df: float
    looks: int
    candidates: int
    bases: int
    seconds: float
    runs: tuple[str, ...]


@attrs.define
class Known:
    """All trials of a context, stored ones and those of this session.

    Attributes:
        base: Digest of the base.
        prior: The seed's noise before any run.
        outcomes: Oldest first.
        lost: Trials of this session that are nobody's verdict: killed, failed by the
            machine, or of the base without a number.  Earlier sessions' do not count.
    """

    base: str
    prior: Noise
    outcomes: list[Outcome] = attrs.field(factory=list)
    lost: list[Outcome] = attrs.field(factory=list)

    def add(self, outcome: Outcome) -> None:
        """Take in a trial that has just ended."""
        broken = outcome.mutant == self.base and outcome.val_bpb is None
        if broken or outcome.status in ("killed", "infrastructure"):
            self.lost.append(outcome)
        else:
            self.outcomes.append(outcome)

    def of(self, mutant: str, seed: int) -> list[Outcome]:
        """Return the trials of one mutant with one seed that count."""
        return [o for o in self.outcomes if (o.mutant, o.seed) == (mutant, seed)]

    def noise(self) -> Noise:
        """Return the seed's noise, from every mutant of the context."""
        groups: dict[str, dict[int, float]] = defaultdict(dict)
        for outcome in self.outcomes:
            if outcome.val_bpb is not None:
                groups[outcome.mutant].setdefault(outcome.seed, outcome.val_bpb)
        return pool([tuple(seeds.values()) for seeds in groups.values()], self.prior)

    def bases(self) -> list[Outcome]:
        """Return the latest finished runs of the base."""
        finished = [
            o for o in self.outcomes if o.mutant == self.base and o.val_bpb is not None
        ]
        return finished[-LATEST_BASES:]


@attrs.frozen(kw_only=True)
class Need:
    """A trial that has to run: this mutant with this seed."""

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
        looks: Candidate runs at most.
        attempt: Chooses the seeds.
    """

    mutant: str
    base: str
    claim: Claim
    looks: int
    attempt: int = 0

    def seed(self, look: int) -> int:
        """Return the seed of a look, counted from 1."""
        return self.attempt * SEEDS_AN_ATTEMPT + look - 1

    def advance(self, known: Known) -> Need | Verdict | Lost:
        """Return the next trial, or the verdict if there is nothing more to run."""
        candidates: list[Outcome] = []
        for look in range(1, self.looks + 1):
            for mutant in (self.base, self.mutant):
                seen = self._look(known, mutant, self.seed(look))
                if isinstance(seen, Need | Lost):
                    # Decided by all that is known: later base runs may move an
                    # earlier look, which must not end the plan without the rest.
                    return self._decided(known, candidates) or seen
                if seen.val_bpb is None:
                    return self._without_estimate(known, seen)
            candidates.append(seen)
        verdict = self._decided(known, candidates)
        assert verdict is not None, "a plan decides at its last look"
        return verdict

    def _look(self, known: Known, mutant: str, seed: int) -> Outcome | Need | Lost:
        """Return the trial of one mutant with one seed, or what it takes to have it."""
        seen = known.of(mutant, seed)
        if mutant == self.base:  # without a number it is nobody's verdict
            seen = [outcome for outcome in seen if outcome.val_bpb is not None]
        for outcome in seen:
            if outcome.status in ("finished", "invalid"):
                return outcome
        if len(seen) >= CRASHES:
            return seen[-1]
        lost = [o for o in known.lost if (o.mutant, o.seed) == (mutant, seed)]
        broken = [o for o in lost if o.status not in ("killed", "infrastructure")]
        if len(broken) >= CRASHES:
            return Lost(
                reason="the base itself failed "
                f"({broken[-1].crash or broken[-1].status}): {broken[-1].message}",
                outcome=broken[-1],
            )
        if len(lost) > RETRIES:
            return Lost(
                reason=f"seed {seed} was lost {len(lost)} times: {lost[-1].message}",
                outcome=lost[-1],
            )
        return Need(mutant=mutant, seed=seed)

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
        bases = known.bases()
        decision = decide(
            candidate=_bpb(candidates),
            base=_bpb(bases),
            delta_bpb=self.claim.delta_bpb,
            within=self.claim.within,
            noise=known.noise(),
            looks=self.looks,
        )
        word, reason = decision.word, decision.reason
        if word is None and len(candidates) < self.looks:
            return None
        if word is None:
            word = "measured"
            reason = self.claim.why_none or "One seed is never enough for a word."
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
            candidates=len(runs),
            bases=len(bases),
            seconds=math.fsum(outcome.wall_seconds for outcome in runs),
            runs=tuple(outcome.run for outcome in (*runs, *bases)),
        )


def _bpb(outcomes: Iterable[Outcome]) -> list[float]:
    return [outcome.val_bpb for outcome in outcomes if outcome.val_bpb is not None]


def past_verdict(
    verdicts: Iterable[Verdict], mutant: str, claim: Claim, looks: int
) -> Verdict | None:
    """Return the verdict that already answers the question, if there is one.

    One that was not decided is taken up again when more seeds are allowed.

    Args:
        verdicts: Oldest first.
        mutant: Digest of the mutant.
        claim: What is to be decided.
        looks: Candidate runs that are allowed now.
    """
    ours = [v for v in verdicts if (v.mutant, v.claim) == (mutant, claim.text)]
    if not ours:
        return None
    latest = sorted(ours, key=lambda verdict: verdict.attempt)[-1]  # and last decided
    decided = latest.word in FINAL or latest.looks >= looks
    return latest if decided else None


def next_attempt(
    verdicts: Iterable[Verdict], mutant: str, claim: Claim, *, rerun: bool
) -> int:
    """Return the attempt that a new plan belongs to.

    A repetition is tested on fresh seeds; so is a prediction that was made, or changed,
    after runs of the mutant had been seen.
    """
    ours = [verdict for verdict in verdicts if verdict.mutant == mutant]
    seen = max((verdict.attempt for verdict in ours), default=-1)
    again = [verdict.attempt for verdict in ours if verdict.claim == claim.text]
    if again and not rerun:
        return max(again)
    return seen + 1


def underpowered(claim: Claim, looks: int, noise: Noise) -> str | None:
    """Return why a plan cannot show what it claims, None if it can.

    Stated before anything runs: the chance of ``supported`` if the claim is true.
    """
    if claim.delta_bpb is None or looks < 2:
        return None
    chance = power(claim.delta_bpb, noise, looks, within=claim.within)
    if chance >= POWER:
        return None
    needed = seeds_needed(
        claim.delta_bpb, noise, POWER, at_most=MOST_SEEDS, within=claim.within
    )
    larger = "claim a wider equivalence" if claim.within else "predict something larger"
    advice = (
        f"needs more than {MOST_SEEDS} seeds: say how many with --seeds, or {larger}"
        if needed is None
        else f"needs about {needed} seeds: --seeds {needed}, or {larger}"
    )
    return (
        f"{looks} seeds would show {claim.text} with a chance of {chance:.0%} "
        f"(noise sd {noise.sd:.4f}): {advice}."
    )
