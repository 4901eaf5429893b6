"""The hooks that need a memory: codemods, trials, verdicts of one pytest session."""

import time
from collections.abc import Generator, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from core.errors import DeltaspecError, SpecError
from core.mutate import Mutant
from core.plugin.collect import BrokenSpec, Experiment
from core.plugin.dryrun import apply_codemods, write_report
from core.plugin.options import Request, read_request

if TYPE_CHECKING:
    from core.plugin.trials import Trials

PLUGIN_NAME = "deltaspec-session"


class Session:
    """One pytest session that may hold experiments."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.foreign_errors = False
        self.request: Request | None = None
        self.base: Mutant | None = None
        self.experiments: list[Experiment] = []
        self.broken: list[SpecError] = []
        self.past: dict[str, str] = {}
        self.ready: Iterator[pytest.TestReport] | None = None
        self.trials: Trials | None = None

    @property
    def terminal(self) -> Any:
        """Pytest's terminal reporter, which is there unless it was switched off."""
        return self.config.pluginmanager.get_plugin("terminalreporter")

    @pytest.hookimpl
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Notice whether anything but a spec file failed to collect."""
        broken = report.failed and report.nodeid.split("::")[0].endswith(".py")
        if report.failed and not (broken and report.nodeid.startswith("specs/")):
            self.foreign_errors = True

    @pytest.hookimpl
    def pytest_exception_interact(self, call: pytest.CallInfo[Any]) -> None:
        """Remember the errors of a spec file, which a report has as text alone."""
        if call.excinfo is not None and isinstance(call.excinfo.value, BrokenSpec):
            self.broken += call.excinfo.value.errors

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Run experiments after tests, and without a test between them."""
        items.sort(key=lambda item: isinstance(item, Experiment))

    @pytest.hookimpl(wrapper=True)
    def pytest_collection_finish(self, session: pytest.Session) -> Generator[None]:
        """Apply the codemods of what was selected; nothing was executed so far.

        Raises:
            UsageError: The session cannot run here, with these options.
        """
        self.experiments = [i for i in session.items if isinstance(i, Experiment)]
        if not self.experiments:
            return (yield)
        try:
            self.request = read_request(self.config)
            self.base = apply_codemods(self.experiments, self.request)
        except DeltaspecError as error:
            raise pytest.UsageError(str(error)) from error
        yield
        if self.config.option.collectonly and self.terminal is not None:
            self.past = _past_words(self.request, self.terminal)
            write_report(
                self.experiments,
                self.terminal,
                verbosity=self.config.get_verbosity(),
                past=self.past,
            )
        return None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Let a broken spec file fail the run without stopping the other files."""
        if not self.foreign_errors:
            session.config.option.continue_on_collection_errors = True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Report the next experiment that is decided, whichever it is.

        pytest asks once for each item, so that ``-x`` and Ctrl-C work as everywhere.
        """
        if not isinstance(item, Experiment):
            return None
        if self.ready is None:
            self.ready = self._reports()
        for report in next(self.ready):
            self._log(report)
        return True

    def _log(self, report: pytest.TestReport) -> None:
        hook = self.config.hook
        # Without -v the trials write a line a verdict, and pytest would add the file.
        announced = self.config.get_verbosity() != 0 or report.outcome != "passed"
        if report.when == "setup" and announced:
            hook.pytest_runtest_logstart(nodeid=report.nodeid, location=report.location)
        hook.pytest_runtest_logreport(report=report)
        if report.when == "teardown":
            hook.pytest_runtest_logfinish(
                nodeid=report.nodeid, location=report.location
            )

    def _reports(self) -> Iterator[list[pytest.TestReport]]:
        """Yield the reports of one experiment after another."""
        assert self.request is not None
        assert self.base is not None
        runnable = []
        for item in self.experiments:
            if self.request.base_seeds is not None:  # the base runs whatever they are
                runnable.append(item)
            elif item.problem is not None and item.refused is None:
                yield _phases(item, "setup", "failed", str(item.problem))
            elif item.is_unimplemented and self.request.agent is not None:
                runnable.append(item)
            elif item.skip_reason:
                yield _phases(item, "setup", "skipped", _skip(item))
            else:
                runnable.append(item)
        if not runnable:
            return
        # DuckDB, Arrow and the statistics take half a second to import: only now.
        from core.plugin.trials import Trials

        try:
            self.trials = Trials(self.request, self.base, runnable, self.terminal)
            for ended in self.trials:
                yield _phases(
                    ended.item,
                    ended.when,
                    ended.outcome,
                    ended.text if ended.outcome != "skipped" else _skip(ended.item),
                    started=ended.started,
                    seconds=ended.seconds,
                    properties=ended.properties,
                )
        except DeltaspecError as error:
            raise pytest.UsageError(str(error)) from error

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """End what still runs, and let a dry run with problems fail."""
        if self.trials is not None:
            self.trials.close()
        problems = any(item.problem for item in self.experiments)
        if session.config.option.collectonly and problems and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Write the verdict table."""
        if self.trials is not None:
            self.trials.write_summary(terminalreporter)


def _past_words(request: Request, terminal: Any) -> dict[str, str]:
    """Return the latest word on each mutant; say so where that cannot be known."""
    database = request.project / "runs.duckdb"
    if not database.exists():
        return {}
    # DuckDB takes a moment to import, and a first dry run has no history to ask.
    from core.store.connection import Held, past_words

    try:
        return past_words(database)
    except Held as held:
        terminal.write_line(
            f"runs.duckdb is open in {held}: what ran before is unknown"
        )
    except DeltaspecError as error:
        terminal.write_line(f"what ran before is unknown: {error}", yellow=True)
    return {}


def _skip(item: Experiment) -> tuple[str, int, str]:
    return str(item.path), item.case.line, item.skip_reason


def _phases(
    item: Experiment,
    when: str,
    outcome: str,
    longrepr: Any,
    *,
    started: datetime | None = None,
    seconds: float = 0.0,
    properties: list[tuple[str, object]] | None = None,
) -> list[pytest.TestReport]:
    """Return the reports of the three phases; *when* is the one that says something."""
    start = time.time() if started is None else started.timestamp()
    reports = []
    for phase in ("setup", "call", "teardown"):
        said = phase == when
        if when == "setup" and phase == "call":
            continue
        reports.append(
            pytest.TestReport(
                nodeid=item.nodeid,
                location=item.location,
                keywords={name: 1 for name in item.keywords},
                outcome=outcome if said else "passed",
                longrepr=longrepr if said and outcome != "passed" else None,
                when=phase,
                duration=seconds if phase == "call" else 0.0,
                start=start,
                stop=start + (seconds if phase == "call" else 0.0),
                user_properties=list(properties or ()),
            )
        )
    return reports
