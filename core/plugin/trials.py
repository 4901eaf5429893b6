"""The trials of one pytest session: from selected experiments to reports of verdicts."""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import attrs

from core.agent.conversation import Assignment, Outcome
from core.agent.writer import Writer, assignments
from core.device import DeviceFailed
from core.errors import SessionError
from core.evidence import Verdict, claim_under
from core.gates import Work
from core.launch import examine
from core.launch.gauge import Gauge
from core.launch.local import MAINS
from core.launch.log import escaped
from core.mutate import Mutant
from core.pipeline import PATIENCE_SECONDS, Lab, open_lab
from core.plan import Lost, Plan, next_attempt, past_verdict, underpowered
from core.plugin.agent import counted, open_writer, planned_by, summary, told, why_not
from core.plugin.collect import Experiment
from core.plugin.dryrun import apply_codemods
from core.plugin.gating import examined
from core.plugin.header import by_heart, of_seeds, write_header
from core.plugin.live import Live
from core.plugin.lock import agent_lock, locked
from core.plugin.options import Request
from core.plugin.scheduler import Decided, Scheduler, Undecided, base_alone
from core.process.child import Zygote, sandbox_of
from core.report.outcome import Told
from core.report.spread import spread
from core.report.table import Row, line, table
from core.sandbox import NotConfined
from core.spec import Expect

FAILED = ("crashed", "invalid")


@attrs.frozen(kw_only=True)
class Ended:
    """What pytest is told of one experiment.

    Attributes:
        item: Which.
        when: ``call``, or ``setup`` when nothing ran.
        outcome: passed, failed or skipped.
        text: What a failure says.
        started: When its first trial began, if one did.
        seconds: How long it took in this session.
        properties: For junitxml and for the verdict's word.
    """

    item: Experiment
    when: str
    outcome: str
    text: str = ""
    started: datetime | None = None
    seconds: float = 0.0
    properties: list[tuple[str, object]] = attrs.field(factory=list)


class Trials:
    """Plan the selected experiments, run what they need, tell each as it is decided.

    Args:
        request: What the session was asked to do.
        base: The base module, sizes included.
        items: Experiments with their work; those without a codemod are written by the
            agent.
        terminal: pytest's terminal reporter, or None.

    Raises:
        DeltaspecError: The session cannot run: no data, a lock that is taken.
    """

    def __init__(
        self, request: Request, base: Mutant, items: list[Experiment], terminal: Any
    ) -> None:
        self.request = request
        self.terminal = terminal
        self.rows: list[Row] = []
        self.told: dict[str, Told] = {}  # by pytest id
        self.interrupted = False
        self.invalid: list[tuple[Experiment, Verdict]] = []
        self.notes: list[str] = []
        self.writer: Writer | None = None
        self.outcomes: list[Outcome] = []
        is_base_alone = request.base_seeds is not None
        self.unwritten = [i for i in items if i.is_unimplemented and not is_base_alone]
        items = [item for item in items if item not in self.unwritten]
        self.scheduler: Scheduler | None = None
        self.locks = locked(request.project, request.devices)
        self.live = Live(terminal)
        try:
            self.sandbox = self._check_sandbox()
            self.zygote = self.locks.enter_context(
                Zygote(request.library, (*MAINS.values(), examine.MAIN))
            )
            assigned = self._open_writer(base)
            gauges = self._open_gauges()
            self.lab = self._open_lab(base)
            self.lab.gauges.update(gauges)
            self.swept = self.lab.journal.sweep()
            if request.base_seeds is None:
                self.stored, self.refused, planned = self._plan(self._gate(items))
            else:
                self.stored, self.refused = [], items
                planned = [base_alone(self.lab.base.digest, request.base_seeds)]
                for item in items:
                    item.skip_reason = "--base-seeds: only the base runs"
            if terminal is not None:
                write_header(
                    terminal,
                    request,
                    self.lab,
                    planned,
                    refused=len(self.refused),
                    sandbox=self.sandbox,
                    notes=self.notes,
                    swept=self.swept,
                    trial_seconds=self._trial_seconds(),
                    written=len(assigned),
                )
        except BaseException:  # Ctrl-C too: the next session must find the locks free
            self.live.close()
            self.locks.close()
            raise
        self.scheduler = Scheduler(
            lab=self.lab,
            devices=request.devices,
            undecided=planned,
            watch=self.live.watch,
            alarm=self._alarm,
            expected=len(assigned),
        )
        if self.writer is not None:
            self._say(f"agent   {planned_by(self.writer, assigned)}")
            self.writer.start(assigned)

    def __iter__(self) -> Iterator[Ended]:
        """Yield each experiment when it is decided; stored verdicts come first."""
        assert self.scheduler is not None
        if self.request.base_seeds is not None:
            self._run_base()  # first: pytest asks no more often than it has items
        for item, verdict in self.invalid:
            yield self._told(item, verdict, stored=False)
        for item, verdict in self.stored:
            yield self._told(item, verdict, stored=True)
        for item in self.refused:
            yield Ended(item=item, when="setup", outcome="skipped")
        while self.scheduler.undecided or self.scheduler.expected:
            self.live.start()
            step = self.scheduler.next_decided()
            self.live.pause()
            if isinstance(step, Decided):
                yield self._end(step)
            else:
                yield from self._arrived(step.what)

    def close(self) -> None:
        """End what still runs, insert what waits, give the devices back."""
        self.live.close()
        with contextlib.ExitStack() as after:  # whatever of it fails
            after.callback(self.locks.close)
            after.callback(self.lab.insert, PATIENCE_SECONDS)
            if self.writer is not None:
                after.callback(self.writer.stop)
            if self.scheduler is not None:
                self.interrupted = bool(
                    self.scheduler.undecided or self.scheduler.expected
                )
                after.callback(self.scheduler.stop)

    def _open_writer(self, base: Mutant) -> list[Assignment]:
        """Return what the agent is to write; nothing is asked yet.

        Raises:
            SessionError: It cannot: no key, no price, another agent in this project.
        """
        if not self.unwritten:
            return []
        self.locks.enter_context(agent_lock(self.request.project))
        self.writer = open_writer(
            self.request, base, self.zygote, self._tell_written, self.live.write_about
        )
        journal = self.writer.correspondent.journal
        return assignments([item.case for item in self.unwritten], journal)

    def _tell_written(self, outcome: object) -> None:
        """Take an outcome from a thread of the writer's."""
        assert self.scheduler is not None
        self.scheduler.arrive(outcome)

    def _arrived(self, outcome: object) -> Iterator[Ended]:
        """Take up the experiments of a codemod that was written; tell of the others.

        Raises:
            DeltaspecError: The agent's own machinery broke.
        """
        if isinstance(outcome, BaseException):
            raise outcome
        assert isinstance(outcome, Outcome)
        assert self.scheduler is not None
        self.outcomes.append(outcome)
        self.lab.insert()  # its calls
        self._say(f"agent   {told(outcome)}", bad=outcome.path is None)
        ids = {case.id for case in outcome.assignment.cases}
        items = [item for item in self.unwritten if item.case.id in ids]
        if outcome.path is None:
            for item in items:
                item.skip_reason = why_not(outcome)
                yield Ended(item=item, when="setup", outcome="skipped")
            return
        for item in items:
            item.is_unimplemented, item.skip_reason = False, ""
        apply_codemods(items, self.request)
        broken = [i for i in items if i.problem is not None and i.refused is None]
        for item in broken:
            text = str(item.problem)
            yield Ended(item=item, when="setup", outcome="failed", text=text)
        known = len(self.invalid)
        passed = self._gate([item for item in items if item not in broken])
        for item, verdict in self.invalid[known:]:
            yield self._told(item, verdict, stored=False)
        stored, refused, planned = self._plan(passed)
        self.refused += refused
        for item, verdict in stored:
            yield self._told(item, verdict, stored=True)
        for item in refused:
            yield Ended(item=item, when="setup", outcome="skipped")
        self.scheduler.undecided += planned

    def _say(self, text: str, *, bad: bool = False) -> None:
        """Write a line between the bars."""
        if self.terminal is not None:
            with self.live.paused():
                self.terminal.ensure_newline()
                self.terminal.write_line(text, yellow=bad)

    def _open_gauges(self) -> dict[str, Gauge]:
        """Return the gauges of the session's GPUs; they close with the locks."""
        try:
            return {
                device.id: self.locks.enter_context(
                    Gauge.on(device, shared=self.request.shared)
                )
                for device in self.request.devices
                if device.kind == "cuda"
            }
        except DeviceFailed as failed:
            raise SessionError(
                f"{failed}.",
                hint="look at nvidia-smi, or leave the GPU out: CUDA_VISIBLE_DEVICES.",
            ) from failed

    def _check_sandbox(self) -> str:
        """Return how edited code will be confined here.

        Raises:
            SessionError: It cannot be.
        """
        if not self.request.confined:
            return "none: edited code reaches whatever you can (--sandbox=none)"
        try:
            level, tried = sandbox_of(self.request.library)
        except NotConfined as refused:
            raise SessionError(
                f"edited code cannot be confined on this machine: {refused}.",
                hint="run on Linux 6.2 or newer with Landlock, or allow user "
                "namespaces, on x86-64; or trust what you run, and have its numbers "
                "kept apart: --sandbox=none.",
            ) from refused
        return f"{level}; each process proves it ({tried} attempts must fail)"

    def _alarm(self, text: str) -> None:
        """Say at once, and loudly, what cannot wait for the summary."""
        if self.terminal is not None:
            with self.live.paused():
                self.terminal.ensure_newline()
                self.terminal.write_line(text, red=True, bold=True)

    def _open_lab(self, base: Mutant) -> Lab:
        request = self.request
        lab = open_lab(
            project=request.project,
            library=request.library,
            cache=request.cache,
            profile=request.profile,
            devices=request.devices,
            base=base,
            corpus=request.corpus,
            zygote=self.zygote,
            shared=request.shared,
            confined=request.confined,
            progress=self.live.preparing,
        )
        self.live.prepared()
        return lab

    def _gate(self, items: list[Experiment]) -> list[Experiment]:
        """Return what passes the gates; decide at once what does not.

        Raises:
            SessionError: An examination could not be made.
        """
        works = [item.work for item in items if item.work is not None]
        found = examined(works, self.request, self.zygote, self.live.preparing)
        self.live.prepared()
        passed = []
        for item in items:
            work = item.work or item.refused
            assert work is not None
            if item.problem is not None:
                reason = item.problem.message
            else:
                finding = found[work.mutant.digest]
                reason = finding.breach
                if finding.note:
                    self.notes.append(f"{item.case.id} was {finding.note}")
            if not reason:
                passed.append(item)
                continue
            self.invalid.append((item, self._invalid(work, reason)))
        return passed

    def _invalid(self, work: Work, reason: str) -> Verdict:
        """Return the verdict on what a gate refuses; it is recorded once."""
        claim = claim_under(work.case.expect, self.request.profile)
        noise = self.lab.known.noise()
        verdict = Verdict(
            mutant=work.mutant.digest,
            claim=claim.text,
            attempt=0,
            word="invalid",
            reason=reason,
            predicted_bpb=claim.delta_bpb,
            noise_sd=noise.sd,
            noise_df=noise.df,
            looks=0,
            candidates=0,
            bases=0,
            seconds=0.0,
            runs=(),
        )
        told = {(past.mutant, past.claim, past.reason) for past in self.lab.verdicts}
        if (verdict.mutant, verdict.claim, verdict.reason) not in told:
            self.lab.record_verdict(verdict, work)
        return verdict

    def _plan(
        self, items: list[Experiment]
    ) -> tuple[list[tuple[Experiment, Verdict]], list[Experiment], list[Undecided]]:
        """Return what is decided already, what is refused, and what is to run."""
        request, lab = self.request, self.lab
        stored, refused, planned = [], [], []
        for item in items:
            assert item.work is not None
            plan = Plan(
                mutant=item.work.mutant.digest,
                base=lab.base.digest,
                claim=claim_under(item.case.expect, request.profile),
                looks=max(request.profile.looks, request.seeds or 0),
                allowed=request.seeds or request.profile.looks,
            )
            # A gate's word holds as long as the gate says it.
            ran = [verdict for verdict in lab.verdicts if verdict.runs]
            past = past_verdict(ran, plan)
            if past is not None and not request.rerun:
                stored.append((item, past))
                continue
            weak = underpowered(plan, lab.known.noise(), self._trial_seconds())
            if weak is not None and request.seeds is None:
                item.skip_reason = weak
                refused.append(item)
                continue
            attempt = next_attempt(ran, lab.known.outcomes, plan, rerun=request.rerun)
            plan = attrs.evolve(plan, attempt=attempt)
            planned.append(Undecided(key=item, work=item.work, plan=plan))
        return stored, refused, planned

    def _run_base(self) -> None:
        """Run what it takes to know how far the base varies; nothing is decided.

        Raises:
            SessionError: The base does not run.
        """
        assert self.scheduler is not None
        self.live.start()
        decided = self.scheduler.next_decided()
        assert isinstance(decided, Decided)
        end = decided.end
        self.live.pause()
        if isinstance(end, Lost):
            raise SessionError(
                f"{escaped(end.reason).rstrip('.')}.",
                hint="look at the machine, and at the end of log.txt in "
                f"{self.lab.journal.folder.name}/{end.outcome.run}, then run again: "
                "nothing is lost.",
            )

    def _trial_seconds(self) -> float:
        """Return how long a trial takes, by what finished ones of the context took."""
        took = [
            o.wall_seconds for o in self.lab.known.outcomes if o.val_bpb is not None
        ]
        profile = self.request.profile
        expected = profile.budget_seconds + profile.overhead_seconds
        return sum(took) / len(took) if took else expected

    def _end(self, decided: Decided) -> Ended:
        item = decided.key
        assert isinstance(item, Experiment)
        seconds = (decided.ended - decided.started).total_seconds()
        if isinstance(decided.end, Lost):
            self.told[item.case.id] = Told(
                lost=decided.end.reason, log_tail=decided.end.outcome.log_tail
            )
            return Ended(
                item=item,
                when="setup",
                outcome="failed",
                text=_failure(decided.end.reason, decided.end.outcome.log_tail)
                + "\n\nhint: look at the machine, then run again: nothing is lost, and "
                "no verdict was made.",
                started=decided.started,
            )
        return self._told(
            item, decided.end, stored=False, started=decided.started, seconds=seconds
        )

    def _told(
        self,
        item: Experiment,
        verdict: Verdict,
        *,
        stored: bool,
        started: datetime | None = None,
        seconds: float = 0.0,
    ) -> Ended:
        row = Row(
            id=item.case.id,
            expect=item.case.expect,
            verdict=verdict,
            stored=stored,
            earlier=tuple(
                past.word
                for past in self.lab.verdicts
                if past.mutant == verdict.mutant and past.attempt < verdict.attempt
            ),
        )
        self.rows.append(row)
        self.told[row.id] = Told(
            verdict=verdict,
            stored=stored,
            earlier=row.earlier,
            log_tail=self._log_tail(verdict),
        )
        if self.terminal is not None and self.terminal.verbosity == 0:
            self.terminal.ensure_newline()
            text, markup = line(row)
            self.terminal.write_line(text, **markup)
        failed = verdict.word in FAILED or (
            self.request.strict and verdict.word == "refuted"
        )
        return Ended(
            item=item,
            when="call",
            outcome="failed" if failed else "passed",
            text=_failure(f"{verdict.word}: {verdict.reason}", self._log_tail(verdict)),
            started=started,
            seconds=seconds,
            properties=_properties(verdict, item.case.expect),
        )

    def _log_tail(self, verdict: Verdict) -> tuple[str, ...]:
        for outcome in self.lab.known.outcomes:
            if outcome.run in verdict.runs and outcome.log_tail:
                place = self.lab.journal.folder.name
                return (f"the end of {place}/{outcome.run}/log.txt:", *outcome.log_tail)
        return ()

    def agent_did(self) -> dict[str, Any] | None:
        """Return what the agent did, as plain data; None where it was not asked."""
        return None if self.writer is None else counted(self.writer, self.outcomes)

    def write_summary(self, terminal: Any) -> None:
        """Write the verdict table, and where to look next."""
        terminal.ensure_newline()
        known = self.lab.known
        shown = {run for row in self.rows for run in row.verdict.runs}
        if self.rows:
            terminal.section("verdicts", sep="=")
            terminal.write_line(table(self.rows, colour=terminal.hasmarkup))
        bases = [o for o in known.outcomes if o.mutant == known.base]
        if self.request.base_seeds is not None and bases:
            shown = {outcome.run for outcome in bases}
            terminal.section("the base", sep="=")
            for text in spread(bases):
                terminal.write_line(text)
            terminal.write_line(
                f"noise   {of_seeds(known.noise())}, as verdicts use it"
            )
        read = [o.epochs or 0.0 for o in known.outcomes if o.run in shown]
        for text in by_heart(max(read, default=0.0), self.lab.training_tokens):
            terminal.write_line(text, yellow=True)
        if self.writer is not None:
            for text in summary(self.writer, self.outcomes):
                terminal.write_line(text)
        if self.interrupted:
            terminal.write_line(
                "interrupted: finished trials are kept, the same command goes on"
            )
        if self.lab.behind:
            terminal.write_line(
                f"{self.lab.behind}: new rows wait in runs/ and are inserted by the "
                "next command that can",
                yellow=True,
            )
        elif self.rows or shown:
            view = "leaderboard" if self.rows else "runs"
            terminal.write_line(
                f'ask the history: duckdb runs.duckdb "from {view}"; '
                "each trial is in runs/"
            )


def _failure(reason: str, log_tail: tuple[str, ...]) -> str:
    return "\n".join([escaped(reason), *(["", *log_tail] if log_tail else [])])


def _properties(verdict: Verdict, expect: Expect | None) -> list[tuple[str, object]]:
    """Return what junitxml tells of a verdict."""
    said = {
        "verdict": verdict.word,
        "delta_bpb": verdict.delta_bpb,
        "lower_bpb": verdict.lower_bpb,
        "upper_bpb": verdict.upper_bpb,
        "predicted_bpb": None if expect is None else expect.delta_bpb,
        "mutant": verdict.mutant,
    }
    return [(name, value) for name, value in said.items() if value is not None]
