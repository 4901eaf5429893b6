"""Command-line options, and the session that they ask for."""

from pathlib import Path

import attrs
import platformdirs
import pytest

from core.errors import SessionError
from core.profile import Device, Profile, choose

MODULE_INI = "deltaspec_module"
TRAINING_MODULE = "core/training/train.py"


def add_options(parser: pytest.Parser) -> None:
    """Declare what a session can be told."""
    group = parser.getgroup("deltaspec", "experiments under specs/")
    group.addoption(
        "--profile",
        choices=("gpu", "cpu"),
        help="gpu or cpu; gpu where a CUDA GPU is seen",
    )
    group.addoption(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="training time of a trial (gpu: 300, cpu: 5)",
    )
    group.addoption(
        "--seeds",
        type=int,
        metavar="N",
        help="seeds an experiment may use at most (gpu: 6, cpu: 2)",
    )
    group.addoption(
        "--data",
        metavar="PATH",
        help="corpus: stdlib, or a file or folder of parquet or text (cpu: stdlib)",
    )
    group.addoption(
        "--rerun",
        action="store_true",
        help="test decided experiments once more, on fresh seeds",
    )
    group.addoption(
        "--strict-hypotheses",
        action="store_true",
        help="let a refuted hypothesis fail the run",
    )
    parser.addini(
        MODULE_INI,
        f"the training module that codemods rewrite (default: {TRAINING_MODULE})",
    )


@attrs.frozen(kw_only=True)
class Request:
    """What this session was asked to do.

    Attributes:
        profile: With budget and looks as the options override them.
        devices: One trial at a time on each.
        reason: Why this profile, in a few words.
        explicit_seeds: Whether ``--seeds`` was given.
        corpus: ``--data``.
        rerun: ``--rerun``.
        strict: ``--strict-hypotheses``.
        project: The folder of ``specs/``.
        library: The folder of ``core/``.
        module: The training module.
        cache: The user's cache.
    """

    profile: Profile
    devices: tuple[Device, ...]
    reason: str
    explicit_seeds: bool
    corpus: str | None
    rerun: bool
    strict: bool
    project: Path
    library: Path
    module: Path
    cache: Path


def read_request(config: pytest.Config) -> Request:
    """Return what the options of *config* ask for.

    Raises:
        SessionError: An option has an impossible value.
    """
    profile, devices, reason = choose(config.option.profile)
    budget, seeds = config.option.budget, config.option.seeds
    if budget is not None and not 0 < budget < 86_400:
        raise SessionError(
            f"--budget {budget:g} is not a training time.",
            hint="give seconds of training a trial, as --budget 60.",
        )
    if seeds is not None and not 1 <= seeds <= 64:
        raise SessionError(
            f"--seeds {seeds}: expected 1 to 64.",
            hint="give the number of seeds an experiment may use, as --seeds 4.",
        )
    library = Path(__file__).parents[2]
    named = config.getini(MODULE_INI)
    module = config.rootpath / named if named else library / TRAINING_MODULE
    if not module.is_file():
        raise SessionError(
            f"{MODULE_INI} = {named}: there is no such file.",
            hint="name the training module relative to the project.",
        )
    return Request(
        profile=attrs.evolve(
            profile,
            budget_seconds=budget or profile.budget_seconds,
            looks=seeds or profile.looks,
        ),
        devices=devices,
        reason=reason,
        explicit_seeds=seeds is not None,
        corpus=config.option.data,
        rerun=config.option.rerun,
        strict=config.option.strict_hypotheses,
        project=config.rootpath,
        library=library,
        module=module,
        cache=platformdirs.user_cache_path("deltaspec"),
    )
