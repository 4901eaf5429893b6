"""Budget, data, sizes and devices of a session: gpu (five minutes), cpu (embedded)."""

from importlib.metadata import version
from typing import Literal

import attrs

from core.device import Device, cpu, gpus
from core.errors import SessionError
from core.spec import CodemodCall


@attrs.frozen(kw_only=True)
class Profile:
    """How long a trial trains, on what, and when it counts as lost.

    Attributes:
        name: ``gpu`` or ``cpu``.
        clock: What the budget is measured on: ``wall``, or the trainer's ``cpu`` time.
        budget_seconds: Training time of a trial.
        looks: Seeds that a plan may use at most, and so the looks of its design.
        corpus: The corpus when ``--data`` names none; None if there is no default.
        overrides: Codemods that size the training module; they belong to the base.
        scored_tokens: Validation tokens that the judge scores, or all if there are fewer.
        scored_rows: Rows that the server answers at a time.
        rehearsal_steps: Steps on random tokens before the clock starts.
        startup_seconds: Importing, building and rehearsing may take this long.
        hang_seconds: A step, or an answer of the server, may take this long.
        grace_seconds: The last step may end this much after the budget.
        prior_sd: Seed standard deviation of val_bpb before any run has been seen.
        prior_df: Degrees of freedom that ``prior_sd`` is worth.
        overhead_seconds: Time of a trial beside training, before any run has been seen.
    """

    name: str
    clock: Literal["wall", "cpu"]
    budget_seconds: float
    looks: int
    corpus: str | None
    overrides: tuple[CodemodCall, ...] = ()
    scored_tokens: int
    scored_rows: int
    rehearsal_steps: int
    startup_seconds: float
    hang_seconds: float
    grace_seconds: float
    prior_sd: float
    prior_df: float
    overhead_seconds: float


def _sized(**constants: int) -> tuple[CodemodCall, ...]:
    return tuple(
        CodemodCall(
            reference="constants.SetConstant",
            options=(("name", name), ("value", value)),
        )
        for name, value in constants.items()
    )


GPU = Profile(
    name="gpu",
    clock="wall",
    budget_seconds=300.0,
    looks=6,
    corpus=None,
    scored_tokens=21_000_000,
    scored_rows=32,
    rehearsal_steps=6,
    startup_seconds=600.0,
    hang_seconds=60.0,
    grace_seconds=10.0,
    prior_sd=0.0018,
    prior_df=2.0,
    overhead_seconds=90.0,
)
CPU = Profile(
    name="cpu",
    clock="cpu",
    budget_seconds=5.0,
    looks=2,
    corpus="stdlib",
    overrides=_sized(
        DEPTH=2,
        HEAD_DIM=32,
        ASPECT_RATIO=32,
        VOCAB_SIZE=512,
        SEQUENCE_LEN=128,
        TOTAL_BATCH_TOKENS=512,
        MICRO_BATCH_ROWS=4,
    ),
    scored_tokens=65_536,
    scored_rows=64,
    rehearsal_steps=2,
    startup_seconds=120.0,
    hang_seconds=30.0,
    grace_seconds=0.5,
    prior_sd=0.02,
    prior_df=2.0,
    overhead_seconds=8.0,
)
PROFILES = {profile.name: profile for profile in (GPU, CPU)}


def choose(requested: str | None) -> tuple[Profile, tuple[Device, ...], str]:
    """Return the profile, its devices, and why it was chosen, in a few words.

    Raises:
        SessionError: ``gpu`` was requested, and there is no GPU that torch can use.
    """
    found = gpus()
    torch_build = version("torch")
    if "+cpu" in torch_build and found:
        reason = f"torch {torch_build} cannot use the {found[0].name} here"
        found = ()
    else:
        reason = f"{len(found)} CUDA GPU" if found else "no CUDA GPU seen"
    if requested == "gpu" and not found:
        raise SessionError(
            f"--profile gpu needs a CUDA GPU: {reason}.",
            hint="run on a machine with one, or use --profile cpu.",
        )
    if requested == "gpu" or (requested is None and found):
        return GPU, found, reason
    return CPU, (cpu(),), "--profile cpu" if requested else reason
