"""What is known: trials that have ended, what was claimed, and what was decided."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

import attrs

from core.profile import Profile
from core.spec import Expect
from core.verdict import Noise, pool

SEEDS_AN_ATTEMPT = 1000  # a new attempt is a test on seeds that nobody has seen
LATEST_BASES = 8  # of a device: with older ones it may have been another machine


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
    epochs: float | None = None  # times that it read the training corpus
    claim: str | None = None  # `Claim.text` of what it was run for; None for the base
    device: str = ""  # UUID of the GPU, or cpu
    started_at: datetime | None = attrs.field(default=None, eq=False)  # UTC, naive

    @property
    def attempt(self) -> int:
        """The attempt that its seed belongs to."""
        return self.seed // SEEDS_AN_ATTEMPT


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
        looks: Of the design: candidate runs at which it ends; it may decide before.
        candidates: Seeds that the mutant ran with.
        bases: Runs of the base, all on devices that the mutant ran on.
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

    def finished(self, mutant: str, seed: int) -> list[Outcome]:
        """Return the trials of one mutant with one seed that gave a number."""
        return [o for o in self.of(mutant, seed) if o.val_bpb is not None]

    def paired(self, mutant: str, seed: int) -> Outcome | None:
        """Return the finished trial that has a partner, if there is one.

        Its partner is the base with the same seed on the same device.
        """
        bases = {outcome.device for outcome in self.finished(self.base, seed)}
        finished = self.finished(mutant, seed)
        return next((o for o in finished if o.device in bases), None)

    def noise(self) -> Noise:
        """Return the seed's noise, from every mutant of the context.

        It is what differs within a mutant and a device, since devices differ by more;
        and a seed's effect is drawn once, on however many devices it was seen: it counts
        where most other seeds of the mutant can be compared with it.
        """
        seen: dict[str, dict[str, dict[int, float]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        for o in self.outcomes:
            if o.val_bpb is not None:
                seen[o.mutant][o.device].setdefault(o.seed, o.val_bpb)
        blocks = [block for devices in seen.values() for block in _blocks(devices)]
        return pool(blocks, self.prior)

    def bases(self, devices: Iterable[str]) -> list[Outcome]:
        """Return the latest finished runs of the base on each of *devices*."""
        latest = []
        for device in dict.fromkeys(devices):
            there = [
                outcome
                for outcome in self.outcomes
                if (outcome.mutant, outcome.device) == (self.base, device)
                and outcome.val_bpb is not None
            ]
            latest += there[-LATEST_BASES:]
        return latest


def _blocks(devices: Mapping[str, dict[int, float]]) -> Iterator[list[float]]:
    """Share the seeds of one mutant out among its devices, the largest block first."""
    left = list(devices.values())
    while left:
        block = max(left, key=len)
        yield list(block.values())
        others = (other for other in left if other is not block)
        left = [
            rest
            for other in others
            if (rest := {seed: bpb for seed, bpb in other.items() if seed not in block})
        ]
