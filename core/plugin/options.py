"""Command-line options, and the session that they ask for."""

import math
from pathlib import Path
from typing import Any

import attrs
import platformdirs
import pytest

from core.device import Device
from core.errors import SessionError
from core.plugin.choice import choose
from core.profile import PROFILES, Profile
from core.settings import LIBRARY, TRAINING_MODULE, AgentSettings, read_settings

# Of `pytest --agent` and `deltaspec implement`
AGENT_OPTIONS: dict[str, dict[str, Any]] = {
    "--agent-model": {
        "metavar": "MODEL",
        "help": f"who writes ({AgentSettings().model}, or as [tool.deltaspec.agent] says)",
    },
    "--usd": {
        "type": float,
        "metavar": "X",
        "help": "what the agent may spend, checked before each call "
        f"({AgentSettings().usd:g}, or as [tool.deltaspec.agent] says)",
    },
    "--usd-per-mtok": {
        "type": float,
        "nargs": 2,
        "metavar": ("IN", "OUT"),
        "help": "US dollars a million tokens, for a model whose price is not known",
    },
}


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
    group.addoption(
        "--agent",
        action="store_true",
        help="write the codemods that are missing, through the Anthropic API",
    )
    for name, told in AGENT_OPTIONS.items():
        group.addoption(name, **told)
    group.addoption(
        "--json",
        metavar="FILE",
        help="write what the session found, for programs (docs/json.md)",
    )


def agent_of(option: Any, settings: AgentSettings) -> AgentSettings:
    """Return how the agent writes: as the project sets it, but for what is given.

    Raises:
        SessionError: An option has an impossible value.
    """
    if option.usd is not None and not 0 < option.usd < math.inf:
        raise SessionError(
            f"--usd {option.usd:g} buys nothing.",
            hint=f"give US dollars, as --usd {AgentSettings().usd:g}.",
        )
    given = {"model": option.agent_model, "usd": option.usd}
    return attrs.evolve(settings, **{k: v for k, v in given.items() if v is not None})


def _check_agent(config: pytest.Config) -> None:
    """Refuse options of the agent without the agent."""
    option = config.option
    idle = {
        "--agent-model": option.agent_model,
        "--usd": option.usd,
        "--usd-per-mtok": option.usd_per_mtok,
    }
    for name, value in idle.items():
        if value is not None and not option.agent:
            raise SessionError(
                f"{name} speaks of the agent, and --agent is not given.",
                hint=f"add --agent, or leave out {name}.",
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
        agent: How missing codemods are written; None without ``--agent``.
        usd_per_mtok: ``--usd-per-mtok``.
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
    agent: AgentSettings | None
    usd_per_mtok: tuple[float, float] | None
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
    _check_agent(config)
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
        agent=agent_of(config.option, settings.agent) if config.option.agent else None,
        usd_per_mtok=config.option.usd_per_mtok,
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
        "--agent": config.option.agent,
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
