"""What a project sets once: the table ``[tool.deltaspec]`` of its pyproject.toml."""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from core.errors import SessionError

LIBRARY = Path(__file__).resolve().parents[1]  # the folder of core/
TRAINING_MODULE = "core/training/train.py"
FILE = "pyproject.toml"
TABLE = "tool.deltaspec"


def _counted(owner: object, attribute: attrs.Attribute, value: object) -> None:
    if type(value) is not int or value < 1:
        raise ValueError("a whole number from 1")


def _positive(owner: object, attribute: attrs.Attribute, value: object) -> None:
    if type(value) not in (int, float) or not value > 0:
        raise ValueError("a number above 0")


def _name(owner: object, attribute: attrs.Attribute, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a name")


@attrs.frozen(kw_only=True)
class AgentSettings:
    """How the agent writes codemods: ``[tool.deltaspec.agent]``.

    Attributes:
        model: Whom to ask.
        usd: What one command may spend.
        rounds: Codemods that it may dry-run for one experiment.
        calls: Answers that it may give for one experiment, looking things up included.
        conversations: Experiments that are written at once.
        output_tokens: Of one answer, thinking included.
        timeout_seconds: Without a byte from the server.
        retries: Of one call, when the server or the network fails.
    """

    model: str = attrs.field(default="claude-opus-5-5", validator=_name)
    usd: float = attrs.field(default=5.0, validator=_positive)
    rounds: int = attrs.field(default=6, validator=_counted)
    calls: int = attrs.field(default=24, validator=_counted)
    conversations: int = attrs.field(default=4, validator=_counted)
    output_tokens: int = attrs.field(default=16_000, validator=_counted)
    timeout_seconds: float = attrs.field(default=120.0, validator=_positive)
    retries: int = attrs.field(default=5, validator=_counted)


@attrs.frozen(kw_only=True)
class Settings:
    """What a project sets.

    Attributes:
        module: The training module that codemods rewrite, relative to the project;
            None for the one that deltaspec comes with.
        agent: How the agent writes codemods.
    """

    module: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(_name)
    )
    agent: AgentSettings = attrs.field(factory=AgentSettings)

    def training_module(self, project: Path) -> Path:
        """Return the training module.

        Raises:
            SessionError: There is no such file.
        """
        if self.module is None:
            return LIBRARY / TRAINING_MODULE
        if not (project / self.module).is_file():
            raise SessionError(
                f"{FILE}: {TABLE}.module = {self.module!r}: there is no such file.",
                hint="name the training module relative to the project.",
            )
        return project / self.module


def find_project(start: Path) -> Path:
    """Return the folder of ``specs/`` that *start* lies in; else the one of conftest.py.

    Raises:
        SessionError: There is none.
    """
    for folder in (start.resolve(), *start.resolve().parents):
        conftest = folder / "conftest.py"
        if conftest.is_file() and "core.plugin" in conftest.read_text(errors="replace"):
            return folder
    raise SessionError(
        f"{start} lies in no project: no conftest.py here or above loads core.plugin.",
        hint="run it in a project, or make one: a conftest.py that says "
        'pytest_plugins = ("core.plugin",).',
    )


def read_settings(project: Path) -> Settings:
    """Return what the pyproject.toml of *project* sets; defaults where it has none.

    Raises:
        SessionError: It cannot be read, or sets what there is not.
    """
    path = project / FILE
    if not path.is_file():
        return Settings()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SessionError(
            f"{path} cannot be read: {error}.", hint="correct it: it is TOML."
        ) from error
    table = content.get("tool", {}).get("deltaspec", {})
    agent = _read(AgentSettings, table.get("agent", {}), f"{TABLE}.agent")
    rest = {name: value for name, value in table.items() if name != "agent"}
    return attrs.evolve(_read(Settings, rest, TABLE), agent=agent)


def _read(kind: type, given: Mapping[str, Any], table: str) -> Any:
    """Return *kind* with what is *given* in *table*."""
    known = [field.name for field in attrs.fields(kind) if field.name != "agent"]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise SessionError(
                f"{FILE}: {table} has no setting {name!r}.",
                hint=f"did you mean {near[0]!r}?"
                if near
                else f"use one of its settings: {', '.join(known)}.",
            )
    for name, value in given.items():
        try:
            kind(**{name: value})
        except ValueError as error:
            raise SessionError(
                f"{FILE}: {table}.{name} = {value!r}: expected {error}.",
                hint=f"correct it, or leave it out for {_default(kind, name)!r}.",
            ) from error
    return kind(**given)


def _default(kind: type, name: str) -> object:
    return getattr(kind(), name)
