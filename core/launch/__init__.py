"""Trial -> Result: child processes on one device, ended for certain."""

import itertools
import math
from enum import StrEnum
from pathlib import Path

import attrs

from core.device import Device
from core.profile import Profile


class Status(StrEnum):
    """How a trial ended.

    ``crashed`` is the candidate's own failure; ``killed`` and ``infrastructure`` are
    nobody's, and are tried again; ``invalid`` is the judge's refusal of a number.
    """

    FINISHED = "finished"
    CRASHED = "crashed"
    INVALID = "invalid"
    KILLED = "killed"
    INFRASTRUCTURE = "infrastructure"


class Crash(StrEnum):
    """What a crashed candidate did."""

    OOM = "oom"
    NAN = "nan"
    EXCEPTION = "exception"
    HANG = "hang"
    OVERRAN = "overran"


@attrs.frozen(kw_only=True)
class Trial:
    """One training of one mutant with one seed on one device.

    Attributes:
        run_id: Names the run folder and the row.
        source: The mutated training module.
        seed: Keys everything random.
        profile: Budget and limits.
        device: Where to run.
        training: Map of training rows, uint16 of shape (rows, sequence_len + 1).
        validation: Map of validation rows, of the same shape; the judge's alone.
        tokenizer: The tokenizer's file, for the judge's byte table.
        sequence_len: Tokens that a row predicts.
        vocab_size: Tokens that there are.
        project: Where ``core`` is imported from.
        is_confined: What runs edited code is in a sandbox.
    """

    run_id: str
    source: str
    seed: int
    profile: Profile
    device: Device
    training: Path
    validation: Path
    tokenizer: Path
    sequence_len: int
    vocab_size: int
    project: Path
    is_confined: bool = True


@attrs.frozen(kw_only=True)
class Step:
    """One optimizer step, as a row of the curve.

    Attributes:
        step: Counts from 1.
        seconds: On the parent's clock, from the start of training.
        tokens: Handed out so far.
        loss_nats: Mean training loss of the step, in nats a token.
    """

    step: int
    seconds: float
    tokens: int
    loss_nats: float


@attrs.frozen(kw_only=True)
class Score:
    """What the judge measured.

    Attributes:
        nats: Sum over the scored tokens.
        bytes: Sum of their own bytes.
        tokens: How many were scored; special tokens count for neither sum.
        val_bpb: nats / (ln 2 · bytes).
    """

    nats: float
    bytes: int
    tokens: int
    val_bpb: float


@attrs.frozen(kw_only=True)
class Audit:
    """What the judge's probes showed.

    Attributes:
        probes: Rows that were asked beside the scored ones.
        positions: Answers that had to agree with what was scored.
        worst_nats: Largest difference.
        mean_nats: Mean absolute difference far from any alteration.
        loud_share: Share of the positions there that differ beyond rounding.
        gain_nats: Mean of what the claims gained on the same positions without their
            future, just before it.
        seed: Of the draw.
        breach: What is wrong; empty if nothing is.
    """

    probes: int
    positions: int
    worst_nats: float
    mean_nats: float
    loud_share: float
    gain_nats: float
    seed: int
    breach: str = ""


@attrs.frozen(kw_only=True)
class Conditions:
    """What a GPU was seen to do while a trial trained; None where it does not say.

    Attributes:
        driver: Its version.
        sm_mhz: Mean clock of the multiprocessors.
        power_watts: Mean.
        temperature_c: Largest.
        foreign_mib: Most memory that processes of others held.
    """

    driver: str | None = None
    sm_mhz: float | None = None
    power_watts: float | None = None
    temperature_c: float | None = None
    foreign_mib: float | None = None


@attrs.frozen(kw_only=True)
class Result:
    """How a trial went.

    Attributes:
        status: How it ended.
        crash: What a crashed candidate did; None otherwise.
        phase: Where it ended: start, train, save, serve, score, done.
        message: One sentence; empty for a finished trial.
        log_tail: The last lines that trainer and server printed, escaped.
        score: None unless finished.
        audit: None unless the judge came so far.
        sandbox: How the trainer was confined.
        curve: Every step whose loss was seen.
        clock: When the budget's clock began and when the last step ended, in seconds
            of `time.monotonic`; None if it did not get there.
        train_seconds: From the start of the clock to the end of the last step, on the
            budget's clock.
        overtime_seconds: From the end of the budget until the weights were there, on
            the same clock.
        ahead_seconds: For how long its processes were up before the device was free.
        phase_seconds: Seconds of start, train, save, serve and score.
        peak_mib: Device memory on a GPU, else the trainer's resident memory.
        rehearsal_mib: Device memory that the rehearsal left allocated.
        compilations: Graphs that torch.compile compiled while the clock ran.
        conditions: What the GPU was seen to do; empty for a CPU.
        left_behind: Processes that had to be ended after the trial.
        device_fault: Why nothing more should run on the device; empty if it is sound.
    """

    status: Status
    crash: Crash | None = None
    phase: str
    message: str = ""
    log_tail: tuple[str, ...] = ()
    score: Score | None = None
    audit: Audit | None = None
    sandbox: str = "none"
    curve: tuple[Step, ...] = ()
    clock: tuple[float, float] | None = None
    train_seconds: float | None = None
    overtime_seconds: float | None = None
    ahead_seconds: float = 0.0
    phase_seconds: dict[str, float] = attrs.field(factory=dict)
    peak_mib: float | None = None
    rehearsal_mib: float | None = None
    compilations: int | None = None
    conditions: Conditions = Conditions()
    left_behind: int = 0
    device_fault: str = ""

    def step_seconds(self, share: float) -> float | None:
        """Return the quantile *share* of the seconds between steps; None without two."""
        ends = [step.seconds for step in self.curve]
        took = sorted(later - earlier for earlier, later in itertools.pairwise(ends))
        return took[math.ceil(share * len(took)) - 1] if took else None
