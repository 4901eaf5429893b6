"""What pyproject.toml may set, and how a mistake there is told."""

from pathlib import Path

import pytest

from core.errors import SessionError
from core.settings import (
    LIBRARY,
    TRAINING_MODULE,
    AgentSettings,
    Settings,
    find_project,
    read_settings,
)


def told(project: Path, text: str) -> str:
    """Return what is said of a pyproject.toml."""
    (project / "pyproject.toml").write_text(text)
    with pytest.raises(SessionError) as caught:
        read_settings(project)
    return str(caught.value)


def test_a_project_without_settings_has_the_defaults(tmp_path: Path):
    assert read_settings(tmp_path) == Settings(module=None, agent=AgentSettings())
    assert Settings().training_module(tmp_path) == LIBRARY / TRAINING_MODULE


def test_what_is_set_replaces_the_default_and_nothing_else(tmp_path: Path):
    (tmp_path / "pyproject.toml").write_text(
        '[tool.deltaspec]\nmodule = "mine.py"\n[tool.deltaspec.agent]\nusd = 2\n'
    )
    (tmp_path / "mine.py").write_text("")

    settings = read_settings(tmp_path)

    assert settings == Settings(module="mine.py", agent=AgentSettings(usd=2))
    assert settings.training_module(tmp_path) == tmp_path / "mine.py"


def test_a_mistake_in_the_settings_says_what_to_write(tmp_path: Path):
    assert told(tmp_path, "[tool.deltaspec.agent]\nround = 3\n") == (
        "pyproject.toml: tool.deltaspec.agent has no setting 'round'.\n\n"
        "hint: did you mean 'rounds'?"
    )
    assert told(tmp_path, "[tool.deltaspec]\nprofile = 'cpu'\n") == (
        "pyproject.toml: tool.deltaspec has no setting 'profile'.\n\n"
        "hint: use one of its settings: module."
    )
    assert told(tmp_path, "[tool.deltaspec.agent]\nrounds = 0\n") == (
        "pyproject.toml: tool.deltaspec.agent.rounds = 0: expected a whole number "
        "from 1.\n\nhint: correct it, or leave it out for 6."
    )
    assert told(tmp_path, "[tool.deltaspec.agent]\nusd = '5'\n") == (
        "pyproject.toml: tool.deltaspec.agent.usd = '5': expected a number above 0.\n\n"
        "hint: correct it, or leave it out for 5.0."
    )
    assert told(tmp_path, "[tool\n").startswith(
        f"{tmp_path / 'pyproject.toml'} cannot be read: "
    )


def test_a_training_module_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(SessionError) as caught:
        Settings(module="mine.py").training_module(tmp_path)

    assert str(caught.value) == (
        "pyproject.toml: tool.deltaspec.module = 'mine.py': there is no such file.\n\n"
        "hint: name the training module relative to the project."
    )


def test_a_project_is_found_from_any_folder_in_it(tmp_path: Path):
    (tmp_path / "conftest.py").write_text('pytest_plugins = ("core.plugin",)\n')
    below = tmp_path / "specs" / "agent"
    below.mkdir(parents=True)
    (tmp_path / "specs" / "conftest.py").write_text("")

    assert find_project(below) == tmp_path


def test_a_folder_without_a_project_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(SessionError) as caught:
        find_project(tmp_path)

    assert str(caught.value) == (
        f"{tmp_path} lies in no project: no conftest.py here or above loads "
        "core.plugin.\n\nhint: run it in a project, or make one: a conftest.py that "
        'says pytest_plugins = ("core.plugin",).'
    )
