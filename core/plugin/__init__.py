"""The pytest plugin: spec files are tests, trials run side by side, verdicts are results.

pytest is the front end and never the source of truth: what counts is in ``runs/``.
"""

from collections.abc import Generator
from pathlib import Path
from types import ModuleType

import pytest

from core.plugin.collect import Experiment, SpecFile
from core.plugin.document import place_of, write_document
from core.plugin.options import add_options
from core.plugin.session import PLUGIN_NAME, Session

SPECS = "specs"


def pytest_addoption(
    parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager
) -> None:
    """Declare the options; refuse code under specs/ before pytest imports it.

    This hook runs while the root conftest.py is being loaded, which is before the ones
    of the folders below it.

    Raises:
        UsageError: There is a conftest.py under specs/.
    """
    add_options(parser)
    for project in _projects(pluginmanager):
        for found in sorted((project / SPECS).rglob("conftest.py")):
            raise pytest.UsageError(
                f"{found} is code, and what is under {SPECS}/ is never executed.\n\n"
                "hint: move it to the conftest.py beside specs/, or remove it."
            )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what would collect specs in another way; start the session's own plugin.

    Raises:
        UsageError: pytest's root is not the project, or ``-n`` goes with ``specs/``.
    """
    for project in _projects(config.pluginmanager):
        if (project / SPECS).is_dir() and config.rootpath != project:
            raise pytest.UsageError(
                f"pytest's root is {config.rootpath}, and the project is {project}: "
                "its specs would be collected as something else.\n\n"
                "hint: keep pytest.ini or pyproject.toml beside conftest.py and none "
                "below specs/, and leave --rootdir out."
            )
    specs = (config.rootpath / SPECS).resolve()
    option = config.option
    if getattr(option, "dist", "no") != "no" and any(
        specs.is_relative_to(path) or path.is_relative_to(specs)
        for path in _argument_paths(config)
    ):
        raise pytest.UsageError(
            f"{'-n ' + str(option.numprocesses) if option.numprocesses else '--dist'}: "
            "experiments run one a device, and xdist's workers would share it.\n\n"
            "hint: leave it out; deltaspec itself runs one trial on each GPU."
        )
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Session(config), PLUGIN_NAME)


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(
    config: pytest.Config,
) -> Generator[None, int | None, int | None]:
    """Leave behind what ``--json`` asks for, however the session ends.

    Raises:
        UsageError: The file cannot be written, or the session cannot run.
    """
    if config.option.json is None or hasattr(config, "workerinput"):
        return (yield)
    path = place_of(config)
    try:
        code = yield
    except pytest.UsageError as refused:
        write_document(config, path, pytest.ExitCode.USAGE_ERROR, refused)
        raise
    if code is not None and config.pluginmanager.has_plugin(PLUGIN_NAME):
        write_document(config, path, code)
    return code


def _projects(pluginmanager: pytest.PytestPluginManager) -> list[Path]:
    """Return the folders of the conftest.py files that load this plugin."""
    return [
        Path(plugin.__file__ or "").parent
        for plugin in pluginmanager.get_plugins()
        if isinstance(plugin, ModuleType)
        and Path(plugin.__file__ or "").name == "conftest.py"
        and __name__ in getattr(plugin, "pytest_plugins", ())
    ]


def _argument_paths(config: pytest.Config) -> list[Path]:
    return [
        (config.invocation_params.dir / argument.split("::")[0]).resolve()
        for argument in config.args
    ]


def _under_specs(path: Path, config: pytest.Config) -> bool:
    return path.is_relative_to(config.rootpath / SPECS)


@pytest.hookimpl(tryfirst=True)
def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Dir | None:
    """Collect folders of specs as plain folders: an ``__init__.py`` is never imported."""
    if _under_specs(path, parent.config):
        return pytest.Dir.from_parent(parent, path=path)
    return None


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(
    file_path: Path, parent: pytest.Collector
) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Collect spec files ourselves, in place of whatever else wants them."""
    others = yield
    if not _under_specs(file_path, parent.config):
        return others
    if file_path.suffix != ".py" or file_path.name.startswith("_"):
        return []
    return [SpecFile.from_parent(parent, path=file_path)]


def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport, config: pytest.Config
) -> tuple[str, str, str | tuple[str, dict[str, bool]]] | None:
    """Show an experiment's verdict in place of passed or failed.

    Only the call phase carries a verdict: what fails before anything ran keeps pytest's
    own ``E``, so a broken experiment never looks like a refuted one.
    """
    if getattr(report, "when", None) != "call":
        return None
    word = dict(getattr(report, "user_properties", ())).get("verdict")
    if word is None:
        return None
    category = "failed" if report.outcome == "failed" else str(word)
    letter = "F" if category == "failed" else LETTERS.get(str(word), "?")
    markup = WORD_MARKUP.get(str(word), {})
    if config.get_verbosity() == 0:  # the session itself writes a line a verdict
        return category, "", (str(word).upper(), markup) if category == "failed" else ""
    return category, letter, (str(word).upper(), markup)


LETTERS = {"supported": "+", "refuted": "-", "measured": "."}
WORD_MARKUP = {
    "supported": {"green": True},
    "refuted": {"yellow": True},
    "crashed": {"red": True},
    "invalid": {"red": True},
}

__all__ = ["Experiment", "SpecFile"]
