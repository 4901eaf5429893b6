"""The few functions that call the stages in their order."""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from core.context import JUDGE_FILES, Context, current_context, files_digest
from core.device import Device
from core.errors import SessionError, StoreError
from core.evidence import Known, Outcome, Verdict, claim_under
from core.gates import Work, configuration
from core.launch import Audit, Result, Status, Step, Trial
from core.launch.compile_cache import CompileCache
from core.launch.gauge import Gauge
from core.launch.local import LocalTrial
from core.launch.watch import Progress
from core.mutate import Mutant
from core.noise import believed
from core.plan import Need
from core.process.child import Zygote
from core.profile import Profile
from core.store.connection import Held, opened
from core.store.history import History, read_history
from core.store.ingestion import ingest
from core.store.journal import Journal, new_id
from core.training.data import DATA_FOLDER, Prepared, open_rows, open_source, prepare

DATABASE = "runs.duckdb"
PATIENCE_SECONDS = (
    3.0  # for somebody who has runs.duckdb open, at the ends of a session
)


@attrs.frozen(kw_only=True)
class Unkept:
    """A trial that has ended and is not in the journal yet.

    Attributes:
        run: Its name.
        row: Its row of ``runs``.
        work: What was tested; None for a run of the base.
        curve: Its steps.
    """

    run: str
    row: dict[str, Any]
    work: Work | None
    curve: Sequence[Step]


@attrs.define
class Lab:
    """All that the trials of one session share.

    Attributes:
        project: The folder of ``specs/``, ``runs/`` and ``runs.duckdb``.
        library: The folder that ``core`` is imported from.
        cache: The user's cache.
        profile: Budget, sizes and limits.
        base: The base module, sizes included.
        data: The prepared corpus.
        context: What this session's runs may be compared with.
        known: Trials of this context.
        verdicts: Earlier decisions in this context.
        zygote: Forks the processes of trials.
        gauges: What each GPU shows, by its id.
        behind: Why ``runs.duckdb`` lacks rows that the journal has; empty if it does not.
    """

    project: Path
    library: Path
    cache: Path
    profile: Profile
    base: Mutant
    data: Prepared
    context: Context
    known: Known
    verdicts: list[Verdict]
    zygote: Zygote
    gauges: dict[str, Gauge] = attrs.field(factory=dict)
    behind: str = ""
    _clock_ended: dict[str, float] = attrs.field(factory=dict)

    @property
    def journal(self) -> Journal:
        """The run folders."""
        return Journal(self.project / "runs")

    @property
    def training_tokens(self) -> int:
        """Tokens of the training rows."""
        return self.data.counts["training"]["rows"] * self.data.sequence_len

    def compile_cache(self, device: Device) -> CompileCache:
        """Return what torch.compile has kept of the base on a device."""
        context = self.context
        parts = (context.base, context.numerics, context.torch, sys.version, device.id)
        name = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
        return CompileCache(self.cache / "compile" / name)

    def insert(self, patience_seconds: float = 0.0) -> None:
        """Bring ``runs.duckdb`` up to date; what cannot be inserted waits in the journal.

        A night does not end because of a file that can be made anew.
        """
        try:
            with opened(self.project / DATABASE, patience_seconds) as db:
                ingest(db, self.journal)
            self.behind = ""
        except Held as held:
            self.behind = f"{DATABASE} is open in {held.holder}"
        except StoreError as error:
            self.behind = error.message

    def start(
        self,
        need: Need,
        work: Work | None,
        device: Device,
        stop_fd: int,
        show: Callable[[Progress], None],
    ) -> LocalTrial:
        """Start the processes of a trial, which wait for the device.

        Args:
            need: Which mutant with which seed.
            work: What is tested; None for a run of the base.
            device: Where to run.
            stop_fd: Becomes readable when the session ends.
            show: Called as the trial goes on.

        Raises:
            OSError: The run folder cannot be made.
        """
        run = new_id()
        trial = Trial(
            run_id=run,
            source=(self.base if work is None else work.mutant).source,
            seed=need.seed,
            profile=self.profile,
            device=device,
            training=self.data.training,
            validation=self.data.validation,
            tokenizer=self.data.tokenizer,
            sequence_len=self.data.sequence_len,
            vocab_size=self.data.vocab_size,
            project=self.library,
            is_confined=self.context.confined,
        )
        folder = self.journal.begin(run)
        try:
            return LocalTrial.start(
                trial,
                folder,
                zygote=self.zygote,
                compile_cache=self.compile_cache(device),
                stop_fd=stop_fd,
                show=show,
                gauge=self.gauges.get(device.id),
            )
        except BaseException:  # half a trial is no trial
            self.journal.discard(run)
            raise

    def run(self, started: LocalTrial) -> tuple[Result, datetime]:
        """Run a trial that was started; return how it went, and since when it ran.

        Its folder is left for `keep`, or discarded if the session stops.
        """
        began = datetime.now(UTC)
        try:
            return started.run(), began
        except BaseException:  # the session stops: half a trial is no trial
            self.journal.discard(started.trial.run_id)
            raise

    def abandon(self, started: LocalTrial) -> None:
        """End a trial that was started and is not wanted any more."""
        try:
            started.abandon()
        finally:
            self.journal.discard(started.trial.run_id)

    def take_in(
        self,
        run: str,
        need: Need,
        work: Work | None,
        device: Device,
        result: Result,
        started: datetime,
    ) -> Unkept:
        """Take a trial into account that has ended; return what `keep` has to keep.

        That can wait until the device has its next trial.
        """
        wall_seconds = (datetime.now(UTC) - started).total_seconds()
        score, audit = result.score, result.audit
        source = (self.base if work is None else work.mutant).source
        compiled = self.compile_cache(device)
        if work is None and result.status is Status.FINISHED:
            compiled.adopt()
        compiled.clear()
        claim = (
            None if work is None else claim_under(work.case.expect, self.profile).text
        )
        row = {
            "run": run,
            "context": self.context.digest,
            "mutant": need.mutant,
            "experiment": None if work is None else work.experiment,
            "claim": claim,
            "seed": need.seed,
            "status": str(result.status),
            "crash": None if result.crash is None else str(result.crash),
            "phase": result.phase,
            "message": result.message,
            "log_tail": list(result.log_tail),
            "val_bpb": None if score is None else score.val_bpb,
            "val_nats": None if score is None else score.nats,
            "val_bytes": None if score is None else score.bytes,
            "val_tokens": None if score is None else score.tokens,
            "train_seconds": result.train_seconds,
            "overtime_seconds": result.overtime_seconds,
            "median_step_seconds": result.step_seconds(0.5),
            "p99_step_seconds": result.step_seconds(0.99),
            "train_tokens": result.curve[-1].tokens if result.curve else None,
            "epochs": result.curve[-1].tokens / self.training_tokens
            if result.curve
            else None,
            "steps": len(result.curve),
            **{
                f"{phase}_seconds": result.phase_seconds.get(phase)
                for phase in ("start", "save", "serve", "score")
            },
            "wall_seconds": wall_seconds,
            "ahead_seconds": result.ahead_seconds,
            "gap_seconds": self._gap_seconds(device, result),
            "compilations": result.compilations,
            "sandbox": result.sandbox,
            "source_sha256": hashlib.sha256(source.encode()).hexdigest(),
            "judge": files_digest(JUDGE_FILES),
            **{
                f"audit_{field.name}": None
                if audit is None
                else getattr(audit, field.name)
                for field in attrs.fields(Audit)
                if field.name != "breach"  # it is the run's message
            },
            "peak_mib": result.peak_mib,
            "rehearsal_mib": result.rehearsal_mib,
            "left_behind": result.left_behind,
            "device": device.id,
            "device_fault": result.device_fault or None,
            **attrs.asdict(result.conditions),
            "started_at": started.replace(tzinfo=None).isoformat(),
        }
        outcome = Outcome(
            run=run,
            mutant=need.mutant,
            seed=need.seed,
            status=row["status"],
            crash=row["crash"],
            message=result.message,
            log_tail=result.log_tail,
            val_bpb=row["val_bpb"],
            wall_seconds=wall_seconds,
            epochs=row["epochs"],
            claim=claim,
            device=device.id,
            started_at=started.replace(tzinfo=None),
        )
        self.known.add(outcome)
        return Unkept(run=run, row=row, work=work, curve=result.curve)

    def keep(self, unkept: Unkept) -> None:
        """Journal a trial that was taken in, and insert it.

        Raises:
            OSError: It cannot be written.
        """
        record = {**self._described(unkept.work), "run": unkept.row}
        curve = [attrs.asdict(step) for step in unkept.curve]
        self.journal.keep_run(unkept.run, record, curve)
        self.insert()

    def _gap_seconds(self, device: Device, result: Result) -> float | None:
        """Return how long the device's clock stood still before this trial's began."""
        ended = self._clock_ended.pop(device.id, None)
        if result.clock is None:
            return None
        began, self._clock_ended[device.id] = result.clock
        return None if ended is None else began - ended

    def record_verdict(self, verdict: Verdict, work: Work) -> None:
        """Journal a decision and insert it."""
        name = new_id()
        row = {
            "verdict": name,
            "experiment": work.experiment,
            "context": self.context.digest,
            **attrs.asdict(verdict),
            "runs": list(verdict.runs),
            "decided_at": datetime.now(UTC).replace(tzinfo=None).isoformat(),
        }
        record = {**self._described(work), "verdict": row}
        self.journal.keep_note("verdict", name, record)
        self.verdicts.append(verdict)
        self.insert()

    def _described(self, work: Work | None) -> dict[str, Any]:
        """Return the rows that say what a trial or a verdict is about."""
        mutant = self.base if work is None else work.mutant
        resolved = configuration(mutant.source) if work is None else work.configuration
        return {
            "context": {"context": self.context.digest, **attrs.asdict(self.context)},
            "experiment": None if work is None else _experiment_row(work),
            "mutant": {
                "mutant": mutant.digest,
                "base": self.base.digest,
                "codemods": []
                if work is None
                else [str(call) for call in work.case.codemods],
                "configuration": json.dumps(resolved, sort_keys=True),
                "diff": "" if work is None else mutant.diff,
                "source": mutant.source,
            },
            "changes": []
            if work is None
            else [
                {
                    "mutant": mutant.digest,
                    "symbol": change.symbol,
                    "kind": change.kind,
                    "edit": change.edit,
                    "old_source": change.old,
                    "new_source": change.new,
                }
                for change in mutant.changes
            ],
        }


def _experiment_row(work: Work) -> dict[str, Any]:
    case, expect = work.case, work.case.expect
    return {
        "experiment": work.experiment,
        "id": case.id,
        "file": case.file,
        "name": case.name,
        "swept": json.dumps(dict(case.values)),
        "hypothesis": case.hypothesis,
        "change": case.change,
        "tags": list(case.tags),
        "delta_bpb": None if expect is None else float(expect.delta_bpb),
        "sd_bpb": None if expect is None else expect.sd,
        "within_bpb": None if expect is None else expect.within,
        "on_profile": None if expect is None else expect.on,
        "mutant": work.mutant.digest,
    }


def open_lab(
    *,
    project: Path,
    library: Path,
    cache: Path,
    profile: Profile,
    devices: Sequence[Device],
    base: Mutant,
    corpus: str | None,
    zygote: Zygote,
    shared: bool,
    confined: bool,
    progress: Callable[[str, float], None],
) -> Lab:
    """Prepare the data, look up the history, and return what trials share.

    Args:
        project: The folder of ``specs/`` and ``runs/``.
        library: The folder that ``core`` is imported from.
        cache: The user's cache.
        profile: With what the session overrides.
        devices: Of one model.
        base: The base module, sizes included.
        corpus: What ``--data`` takes; None if none was named.
        zygote: Forks the processes of trials.
        shared: Other processes are allowed on the GPUs.
        confined: What runs edited code is in a sandbox.
        progress: Called with what is being prepared and how much of it is done.

    Raises:
        DataError: The corpus cannot be used.
        SessionError: No corpus was named and the profile has none, or it is too small.
    """
    named = corpus or profile.corpus
    if named is None:
        raise SessionError(
            f"the profile {profile.name} has no corpus of its own.",
            hint="name climbmix, or a folder of parquet or text files, as --data DIR.",
        )
    sizes = configuration(base.source)
    data = prepare(
        open_source(named),
        vocab_size=sizes["VOCAB_SIZE"],
        sequence_len=sizes["SEQUENCE_LEN"],
        cache=cache / DATA_FOLDER,
        progress=progress,
    )
    _check_size(data, profile)
    context = current_context(
        profile,
        devices[0],
        data=data.fingerprint,
        base=base.digest,
        shared=shared,
        confined=confined,
    )
    lab = Lab(
        project=project,
        library=library,
        cache=cache,
        profile=profile,
        base=base,
        data=data,
        context=context,
        known=Known(base=base.digest, prior=believed(context).noise),
        verdicts=[],
        zygote=zygote,
    )
    history = _history(lab)
    lab.known.outcomes.extend(history.outcomes)
    lab.verdicts.extend(history.verdicts)
    return lab


def _check_size(data: Prepared, profile: Profile) -> None:
    """Refuse a corpus that one evaluation would be too noisy on."""
    tokens = len(open_rows(data.validation, data.sequence_len)) * data.sequence_len
    if tokens < profile.least_scored_tokens:
        raise SessionError(
            f"the corpus has {tokens:,} validation tokens, and an evaluation under the "
            f"profile {profile.name} takes at least {profile.least_scored_tokens:,}.",
            hint="name a larger corpus, or more of its files: --data PATH.",
        )


def _history(lab: Lab) -> History:
    """Read what is known, from the file, or from the journal while the file is held."""
    try:
        with opened(lab.project / DATABASE, PATIENCE_SECONDS) as db:
            ingest(db, lab.journal)
            return read_history(db, lab.context.digest)
    except Held as held:
        lab.behind = f"{DATABASE} is open in {held.holder}"
    with opened(None, 0.0) as db:
        ingest(db, lab.journal)
        return read_history(db, lab.context.digest)
