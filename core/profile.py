"""Budget, data and sizes of a session: gpu (five minutes), cpu (embedded)."""

import ast
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import attrs

from core.spec import CodemodCall
from core.syntax import parse


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
        small: Codemods that size it for the gates, which run on CPU cores.
        scored_tokens: Validation tokens that the judge scores, or all if there are fewer.
        least_scored_tokens: A corpus with fewer validation tokens is refused.
        scored_rows: Rows that the server answers at a time.
        rehearsal_steps: Steps on random tokens before the clock starts.
        ahead: The next trial's processes start while one trains; on a CPU they would
            take the time that is measured.
        startup_seconds: Importing, building and rehearsing may take this long.
        hang_seconds: A step, or an answer of the server, may take this long.
        grace_seconds: The last step may end this much after the budget.
        save_seconds: The weights may be there this much later still, on the same clock.
        load_seconds: A server may take this long for the weights, on the same clock.
        file_mib: Largest file that a trial may write, and all that it may.
        host_mib: Memory of the machine that a process of a trial may ask for.
        overhead_seconds: Time of a trial beside training, before any run has been seen.
        tokens_per_second: Of the shipped module, before any run has been seen.
        memory_mib: GPU memory that a trial of the shipped module takes.
        capability: Compute capability that the shipped module asks for.
    """

    name: str
    clock: Literal["wall", "cpu"]
    budget_seconds: float
    looks: int
    corpus: str | None
    overrides: tuple[CodemodCall, ...] = ()
    small: tuple[CodemodCall, ...]
    scored_tokens: int
    least_scored_tokens: int
    scored_rows: int
    rehearsal_steps: int
    ahead: bool
    startup_seconds: float
    hang_seconds: float
    grace_seconds: float
    save_seconds: float
    load_seconds: float
    file_mib: float
    host_mib: float
    overhead_seconds: float
    tokens_per_second: float
    memory_mib: float
    capability: tuple[int, int] | None = None


def _sized(**constants: int) -> tuple[CodemodCall, ...]:
    return tuple(
        CodemodCall(
            reference="constants.SetConstant",
            options=(("name", name), ("value", value)),
        )
        for name, value in constants.items()
    )


TINY = _sized(
    DEPTH=2,
    HEAD_DIM=32,
    ASPECT_RATIO=32,
    VOCAB_SIZE=512,
    SEQUENCE_LEN=128,
    TOTAL_BATCH_TOKENS=512,
    MICRO_BATCH_ROWS=4,
)
# Rows of full length: a window may be a number of tokens.
NARROW = _sized(
    DEPTH=2,
    HEAD_DIM=32,
    ASPECT_RATIO=32,
    VOCAB_SIZE=512,
    TOTAL_BATCH_TOKENS=8192,
    MICRO_BATCH_ROWS=2,
)
GPU = Profile(
    name="gpu",
    small=NARROW,
    clock="wall",
    budget_seconds=300.0,
    looks=6,
    corpus=None,
    scored_tokens=21_000_000,
    least_scored_tokens=1_000_000,
    scored_rows=32,
    rehearsal_steps=3,
    ahead=True,
    startup_seconds=600.0,
    hang_seconds=60.0,
    grace_seconds=10.0,
    save_seconds=5.0,
    load_seconds=10.0,
    file_mib=16_384.0,
    host_mib=65_536.0,
    overhead_seconds=90.0,
    tokens_per_second=1.9e6,  # an H200's
    memory_mib=60_000.0,  # trainer 45,055; servers and judge; CUDA contexts of 617
    capability=(8, 0),  # bfloat16
)
CPU = Profile(
    name="cpu",
    clock="cpu",
    budget_seconds=5.0,
    looks=2,
    corpus="stdlib",
    overrides=TINY,
    small=TINY,
    scored_tokens=65_536,
    least_scored_tokens=8_192,
    scored_rows=64,
    rehearsal_steps=2,
    ahead=False,
    startup_seconds=120.0,
    hang_seconds=30.0,
    grace_seconds=0.5,
    save_seconds=0.5,
    load_seconds=0.25,
    file_mib=1_024.0,
    host_mib=4_096.0,
    overhead_seconds=8.0,
    tokens_per_second=2e4,
    memory_mib=0.0,
)
PROFILES = {profile.name: profile for profile in (GPU, CPU)}


@attrs.frozen(kw_only=True)
class TorchBuild:
    """Which torch the trials import.

    Attributes:
        version: As the installed package states it.
        cuda: The CUDA that it is built for, as ``13.0``; None if for none.
        has_bindings: Whether cuda-bindings is there, through which trials share memory.
    """

    version: str
    cuda: str | None
    has_bindings: bool = True


def torch_build() -> TorchBuild:
    """Return the build of torch, which this process never imports."""
    spec = find_spec("torch")
    assert spec is not None, "torch is a dependency"
    assert spec.origin is not None
    cuda = None
    source = Path(spec.origin).with_name("version.py").read_text()
    for statement in parse(source).body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name("cuda")], value=ast.Constant(value))
                | ast.AnnAssign(target=ast.Name("cuda"), value=ast.Constant(value))
            ):
                cuda = value
    has_bindings = bool(find_spec("cuda") and find_spec("cuda.bindings"))
    return TorchBuild(version=version("torch"), cuda=cuda, has_bindings=has_bindings)
