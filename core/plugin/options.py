"""Command-line options, and the session that they ask for."""

from pathlib import Path

import attrs
import platformdirs
import pytest

from core.device import Device
from core.errors import SessionError
from core.plugin.choice import choose
from core.profile import PROFILES, Profile
from core.settings import LIBRARY, TRAINING_MODULE, read_settings


def _each(field: str) -> str:
    """Return a default as each profile has it."""
    values = {name: getattr(profile, field) for name, profile in PROFILES.items()}
    return ", ".join(f"{name}: {v}" for name, v in values.items() if v is not None)


def add_options(parser: pytest.Parser) -> None:
    """Declare what a session can be told."""
    group = parser.getgroup("deltaspec", "experiments under specs/")
    group.addoption(
        "--profile",
        choices=tuple(PROFILES),
        help="gpu or cpu; gpu where a CUDA GPU is seen",
    )
    group.addoption(
        "--gpus",
        type=int,
        metavar="N",
        help="GPUs to use: one trial at a time on each (all that are seen)",
    )
    group.addoption(
        "--shared-gpu",
        action="store_true",
        help="run although another process uses the GPU, and record it",
    )
    group.addoption(
        "--budget",
        type=float,
        metavar="SECONDS",
        help=f"training time of a trial ({_each('budget_seconds')})",
    )
    group.addoption(
        "--seeds",
        type=int,
        metavar="N",
        help=f"seeds an experiment may use at most ({_each('looks')})",
    )
    group.addoption(
        "--base-seeds",
        type=int,
        metavar="N",
        help="run the base alone, with N seeds: how much val_bpb varies here",
    )
    group.addoption(
        "--data",
        metavar="PATH",
        help="corpus: stdlib, climbmix, or a file or folder of parquet or text "
        f"({_each('corpus')})",
    )
    group.addoption(
        "--rerun",
        action="store_true",
        help="test decided experiments once more, on fresh seeds",
    )
    group.addoption(
        "--sandbox",
        choices=("full", "none"),
        default="full",
        help="none: let edited code reach whatever you can; its runs are never "
        "compared with others (%(default)s)",
    )
    group.addoption(
        "--strict-hypotheses",
        action="store_true",
        help="let a refuted hypothesis fail the run",
    )


@attrs.frozen(kw_only=True)
class Request:
    """What this session was asked to do.

    Attributes:
        profile: With the budget as the option overrides it.
        devices: One trial at a time on each.
        reason: Why this profile, in a few words.
        shared: ``--shared-gpu``.
        seeds: ``--seeds``.
        base_seeds: ``--base-seeds``.
        corpus: ``--data``.
        rerun: ``--rerun``.
        strict: ``--strict-hypotheses``.
        confined: Not ``--sandbox=none``.
        project: The folder of ``specs/``.
        library: The folder of ``core/``.
        module: The training module.
        cache: The user's cache.
    """

    profile: Profile
    devices: tuple[Device, ...]
    reason: str
    shared: bool
    seeds: int | None
    base_seeds: int | None
    corpus: str | None
    rerun: bool
    strict: bool
    confined: bool
    project: Path
    library: Path
    module: Path
    cache: Path


def user_cache() -> Path:
    """Return the folder of all that can be made again, for every project of a user.

    Raises:
        SessionError: It cannot be made.
    """
    cache = platformdirs.user_cache_path("deltaspec").absolute()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SessionError(
            f"the cache folder {cache} cannot be made: {error.strerror}.",
            hint="set XDG_CACHE_HOME to a folder that you can write to.",
        ) from error
    return cache


def read_request(config: pytest.Config) -> Request:
    """Return what the options of *config* ask for.

    Raises:
        SessionError: An option has an impossible value.
    """
    settings = read_settings(config.rootpath)
    module = settings.training_module(config.rootpath)
    profile, devices, reason = choose(
        config.option.profile,
        count=config.option.gpus,
        shared=config.option.shared_gpu,
        shipped=module.resolve() == LIBRARY / TRAINING_MODULE,
        dry=config.option.collectonly,
    )
    budget, seeds = config.option.budget, config.option.seeds
    if budget is not None and not 0 < budget < 86_400:
        raise SessionError(
            f"--budget {budget:g} is not a training time.",
            hint="give seconds of training a trial, as --budget 60.",
        )
    base_seeds = config.option.base_seeds
    if seeds is not None and not 1 <= seeds <= 64:
        raise SessionError(
            f"--seeds {seeds}: expected 1 to 64.",
            hint="give the number of seeds an experiment may use, as --seeds 4.",
        )
    if base_seeds is not None:
        _check_base_alone(config, base_seeds, len(devices))
    return Request(
        profile=attrs.evolve(profile, budget_seconds=budget or profile.budget_seconds),
        devices=devices,
        reason=reason,
        shared=config.option.shared_gpu,
        seeds=seeds,
        base_seeds=base_seeds,
        corpus=config.option.data,
        rerun=config.option.rerun,
        strict=config.option.strict_hypotheses,
        confined=config.option.sandbox == "full",
        project=config.rootpath,
        library=LIBRARY,
        module=module,
        cache=user_cache(),
    )


def _check_base_alone(config: pytest.Config, seeds: int, devices: int) -> None:
    """Refuse seeds that show no spread, and options that speak of candidates.

    Raises:
        SessionError: An option has no effect, or there are too few seeds.
    """
    options = {
        "--seeds": config.option.seeds is not None,
        "--rerun": config.option.rerun,
        "--strict-hypotheses": config.option.strict_hypotheses,
    }
    idle = [name for name, is_given in options.items() if is_given]
    if idle:
        raise SessionError(
            f"--base-seeds runs no candidate, so {idle[0]} has no effect.",
            hint=f"leave out {idle[0]}, or --base-seeds.",
        )
    least = 2 * devices
    if not least <= seeds <= 64:
        on = "" if devices == 1 else f" on {devices} GPUs"
        raise SessionError(
            f"--base-seeds {seeds}{on}: expected {least} to 64, since the spread is "
            "that of two or more seeds on one device.",
            hint=f"give more seeds, as --base-seeds {2 * least}"
            + (".", ", or fewer GPUs: --gpus 1.")[devices > 1],
        )
