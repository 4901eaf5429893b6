"""A codemod applied, examined, applied again: failures with line and reason."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import attrs

from core.agent.candidate import Candidate, Failure, candidate, needless
from core.errors import ConfigurationError, DeltaspecError, GateRefused
from core.gates import Work, configuration, passed
from core.launch.examine import Examined
from core.mutate import Job, Mutant, mutate_all
from core.mutate.compare import read
from core.spec import Case, CodemodCall

MAX_DIFF_CHARACTERS = 24_000  # of one that a reader can still check


@attrs.frozen(kw_only=True)
class Ground:
    """What codemods are tried on.

    Attributes:
        project: The folder of ``specs/`` and ``codemods/``.
        module: Source of the training module.
        bases: The module in the sizes of each profile, by its name; the first is the
            profile of the session.
        confined: Codemods and gates run in a sandbox.
        cache: Where mutants are kept: an attempt that is resumed tries them again.
        examine: Finds what the gates do in modules that train, by digest; it looks for
            their codemods in the folder that it is given.
    """

    project: Path
    module: str
    bases: Mapping[str, Mutant]
    confined: bool
    cache: Path
    examine: Callable[[Sequence[Work], Path], Mapping[str, Examined]]


@attrs.frozen(kw_only=True)
class Tried:
    """What a dry run of a codemod showed.

    Attributes:
        source: The file, as it was given.
        failures: Why it is not accepted; empty if nothing is wrong.
        diffs: What it does to the module, by swept values.
        notes: What its author should know.
    """

    source: str
    failures: tuple[Failure, ...] = ()
    diffs: Mapping[str, str] = attrs.field(factory=dict)
    notes: tuple[str, ...] = ()


def dry_run(source: str, cases: Sequence[Case], ground: Ground) -> Tried:
    """Return what a codemod does, in all cases of its experiment.

    Args:
        source: The file, as a model wrote it.
        cases: Of one experiment: one, or those of its sweep.
        ground: What it is tried on.

    Raises:
        SessionError: No child process could be started, or confined.
    """
    name = cases[0].name
    written = candidate(source, name)
    if isinstance(written, Failure):
        return Tried(source=source, failures=(written,))
    with tempfile.TemporaryDirectory(prefix="deltaspec-") as folder:
        project = Path(folder)
        reference = _placed(project, written, cases[0], ground)
        tried = _Trial(
            project=project,
            reference=reference,
            written=written,
            cases=cases,
            ground=ground,
        )
        return tried.run()


def place(case: Case) -> PurePosixPath:
    """Return where the codemod of an experiment stands, below the project."""
    spec = PurePosixPath(*PurePosixPath(case.file).with_suffix("").parts[1:])
    return PurePosixPath("codemods", spec, f"{case.name}.py")


def _placed(project: Path, written: Candidate, case: Case, ground: Ground) -> str:
    """Write a codemod where nobody else looks; return its reference."""
    theirs = ground.project / "codemods"
    if theirs.is_dir():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(theirs, project / "codemods", ignore=ignored)
    path = project / place(case)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(written.source, encoding="utf-8")
    module = ".".join(place(case).with_suffix("").parts[1:])
    return f"{module}.{written.name}"


@attrs.define(kw_only=True)
class _Trial:
    """One dry run, whose checks follow each other from the cheapest on."""

    project: Path
    reference: str
    written: Candidate
    cases: Sequence[Case]
    ground: Ground
    failures: list[Failure] = attrs.field(factory=list)
    notes: list[str] = attrs.field(factory=list)
    works: list[Work] = attrs.field(factory=list)
    diffs: dict[str, str] = attrs.field(factory=dict)

    def run(self) -> Tried:
        for check in (self._apply, self._read_diffs, self._examples, self._gates):
            check()
            if self.failures:
                break
        return Tried(
            source=self.written.source,
            failures=tuple(self.failures),
            diffs=dict(self.diffs),
            notes=tuple(self.notes),
        )

    def _mutants(self, jobs: Sequence[Job]) -> list[Mutant | DeltaspecError]:
        return list(
            mutate_all(
                jobs,
                project=self.project,
                cache=self.ground.cache,
                confined=self.ground.confined,
            )
        )

    def _call(self, case: Case) -> CodemodCall:
        return CodemodCall(reference=self.reference, options=case.values)

    def _apply(self) -> None:
        """Apply it once, and once more, in every case and under every profile."""
        pairs = [
            (profile, base, case)
            for profile, base in self.ground.bases.items()
            for case in self.cases
        ]
        once = self._mutants([
            Job(source=base.source, codemods=(self._call(case),))
            for _, base, case in pairs
        ])
        own = next(iter(self.ground.bases))
        for (profile, base, case), mutant in zip(pairs, once, strict=True):
            shown = _shown(case, profile)
            if isinstance(mutant, DeltaspecError):
                self._fail("apply", mutant, shown)
                continue
            try:
                tested = attrs.evolve(case, codemods=(self._call(case),))
                work = passed(tested, mutant, configuration(base.source))
            except GateRefused:
                self.failures += [
                    Failure(
                        stage="gates",
                        reason=f"{refusal.symbol or 'the module'}: {refusal.reason}.",
                        hint="a training module computes with torch on what run hands "
                        "it, and does nothing else.",
                        line=refusal.line,
                        of="module",
                        case=shown,
                    )
                    for refusal in mutant.refusals
                ]
                continue
            except ConfigurationError as error:
                self._fail("gates", error, shown)
                continue
            self.diffs.setdefault(_shown(case), mutant.diff)
            if profile == own:
                self.works.append(work)
        if not self.failures:
            self._apply_twice(self.ground.bases[own])

    def _apply_twice(self, base: Mutant) -> None:
        """A codemod that has been applied finds nothing more to do."""
        call = self._call(self.cases[0])
        (twice,) = self._mutants([Job(source=base.source, codemods=(call, call))])
        if isinstance(twice, Mutant):
            self.failures.append(
                Failure(
                    stage="twice",
                    reason="applied a second time it changes the module once more.",
                    hint="match the site as it is before the change, so that nothing "
                    "is found behind it.",
                )
            )

    def _read_diffs(self) -> None:
        """Refuse what a diff need not hold."""
        base = next(iter(self.ground.bases.values()))
        for work in self.works:
            source = work.mutant.source
            if len(work.mutant.diff) > MAX_DIFF_CHARACTERS:
                self.failures.append(
                    Failure(
                        stage="diff",
                        reason=f"the diff has {len(work.mutant.diff):,} characters: at "
                        f"most {MAX_DIFF_CHARACTERS:,} were expected.",
                        hint="change what the spec asks for, and nothing else.",
                        case=_shown(work.case),
                    )
                )
                continue
            symbols = {change.symbol for change in work.mutant.changes}
            lines = needless(base.source, read(source), source, symbols)
            if lines:
                self.failures.append(
                    Failure(
                        stage="diff",
                        reason="lines change that mean the same as before, outside of "
                        f"what is changed: {', '.join(map(str, lines))}.",
                        hint="leave comments, layout and names there as they are.",
                        line=lines[0],
                        of="module",
                        case=_shown(work.case),
                    )
                )

    def _examples(self) -> None:
        """Let EXAMPLES hold."""
        jobs = [
            Job(
                source=example.before,
                codemods=(
                    CodemodCall(
                        reference=self.reference, options=tuple(example.options.items())
                    ),
                ),
            )
            for example in self.written.examples
        ]
        for number, (example, mutant) in enumerate(
            zip(self.written.examples, self._mutants(jobs), strict=True), 1
        ):
            if isinstance(mutant, DeltaspecError):
                self._fail("examples", mutant, f"example {number}")
            elif mutant.source != example.after:
                self.failures.append(
                    Failure(
                        stage="examples",
                        reason=f"it leaves\n{mutant.source}\nand EXAMPLES say\n"
                        f"{example.after}",
                        hint="correct the codemod or the example: they must be equal.",
                        case=f"example {number}",
                    )
                )

    def _gates(self) -> None:
        """Let the gates examine the modules, small and on CPU cores."""
        found = self.ground.examine(self.works, self.project)
        for work in self.works:
            examined = found[work.mutant.digest]
            if examined.breach:
                self.failures.append(
                    Failure(
                        stage="gates",
                        reason=examined.breach,
                        hint="keep the rules of the metric; what the spec asks for may "
                        "not be possible within them: then say so.",
                        case=_shown(work.case),
                    )
                )
            elif examined.note:
                self.notes.append(f"it was {examined.note}")

    def _fail(self, stage: str, error: DeltaspecError, case: str) -> None:
        self.failures.append(
            Failure(stage=stage, reason=error.message, hint=error.hint, case=case)
        )


def _shown(case: Case, profile: str = "") -> str:
    """Return which case this is."""
    values = ", ".join(f"{axis}={value!r}" for axis, value in case.values)
    return " on ".join(part for part in (values, profile) if part)
