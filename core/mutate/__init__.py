"""Apply codemods to a training module: source x codemods -> Mutant.

Nothing here imports LibCST or a codemod: `worker` does, in a child process that returns
text.  Digest, diff and changed symbols are found here, from that text alone.
"""

import hashlib
import json
import os
import reprlib
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import attrs

from core import errors
from core.errors import (
    CodemodRefused,
    Conflict,
    MutationError,
    NoChange,
    SourceRefused,
)
from core.mutate import compare, lookup
from core.mutate.children import Answer, ask
from core.mutate.compare import SymbolChange
from core.mutate.lookup import ROOT, find_codemod, written_for
from core.spec.vocabulary import CodemodCall

__all__ = [
    "Job",
    "Mutant",
    "Refusal",
    "SymbolChange",
    "find_codemod",
    "mutate",
    "mutate_all",
    "shown",
    "unchanged",
    "written_for",
]

TIMEOUT_SECONDS = 60.0  # of one job; LibCST needs a quarter of a second


@attrs.frozen(kw_only=True)
class Refusal:
    """Something that a training module has no business doing.

    Attributes:
        line: Of the mutated module, from 1.
        symbol: The function or class that it stands in, ``GPT.forward``; empty where
            that is none.
        reason: What it does and what is expected, to follow a colon, without a period.
    """

    line: int
    symbol: str
    reason: str


@attrs.frozen(kw_only=True)
class Mutant:
    """A training module after its codemods; the baseline is the one of no changes.

    Attributes:
        source: The whole module.
        diff: Unified, from the base; empty for the baseline.
        changes: What differs in meaning, one row a symbol.
        digest: 32 hex digits, equal for all sources that differ only in comments,
            docstrings and layout.
        refusals: What `vetting` found in it and not in its base, by line; `gates` acts
            on that.
    """

    source: str
    diff: str
    changes: tuple[SymbolChange, ...]
    digest: str
    refusals: tuple[Refusal, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain data, for ``json.dump``."""
        return attrs.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return the mutant that ``to_json`` wrote."""
        changes = tuple(SymbolChange(**change) for change in content["changes"])
        refusals = tuple(Refusal(**refusal) for refusal in content["refusals"])
        return cls(**{**content, "changes": changes, "refusals": refusals})


@attrs.frozen(kw_only=True)
class Job:
    """A module and the codemods to apply to it, in this order."""

    source: str
    codemods: tuple[CodemodCall, ...] = ()


def unchanged(source: str) -> Mutant:
    """Return the baseline: the mutant of no changes.

    Raises:
        SourceRefused: It is too large, not Python, or nested too deeply.
    """
    return Mutant(source=source, diff="", changes=(), digest=_base(source).digest)


def mutate(
    job: Job, *, project: Path, cache: Path | None = None, confined: bool = True
) -> Mutant:
    """Apply the codemods of one job; `mutate_all` is faster for several.

    Raises:
        MutationError: They cannot be applied, or change nothing.
    """
    (mutant,) = mutate_all([job], project=project, cache=cache, confined=confined)
    if isinstance(mutant, MutationError):
        raise mutant
    return mutant


def mutate_all(
    jobs: Sequence[Job],
    *,
    project: Path,
    cache: Path | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    confined: bool = True,
) -> list[Mutant | MutationError]:
    """Apply the codemods of each job, in child processes where it is not known yet.

    Args:
        jobs: What to do; jobs with one source are best given together.
        project: The folder that holds ``codemods/``, beside which the built-in ones
            are found too.  A module of the project hides a built-in one of its name.
        cache: Where mutants are kept, or None.  Errors are not kept: what they need
            is an edit, or another try.
        timeout_seconds: How long one job may take.
        confined: Codemods run in a sandbox.

    Returns:
        The mutant of each job, or why there is none, in the order of *jobs*.

    Raises:
        SessionError: No child process could be started, or confined.
    """
    project = project.resolve()
    folders = lookup.folders(project)
    toolchain = _toolchain(folders)
    bases: dict[str, compare.Module] = {}
    known: set[str] = set()
    results: dict[int, Mutant | MutationError] = {}
    pending: dict[int, Job] = {}
    for index, job in enumerate(jobs):
        kept = _kept(cache, _key(toolchain, job))
        if kept is not None:
            results[index] = kept
            continue
        try:
            if job.source not in bases:
                bases[job.source] = _base(job.source)
            for reference in {call.reference for call in job.codemods} - known:
                lookup.check(folders, reference)
                known.add(reference)
        except MutationError as error:
            results[index] = error
            continue
        if job.codemods:
            pending[index] = job
        else:
            results[index] = unchanged(job.source)
    if pending:
        answers = ask(
            {
                index: (job.source, [(c.reference, c.options) for c in job.codemods])
                for index, job in pending.items()
            },
            project=project,
            folders=folders,
            timeout_seconds=timeout_seconds,
            confined=confined,
        )
        # An edit while the children read would be kept under the digest of before.
        is_stable = _toolchain(folders) == toolchain
        for index, answer in answers.items():
            job = pending[index]
            try:
                mutant = _judged(job, bases[job.source], answer, timeout_seconds)
            except MutationError as error:
                results[index] = error
                continue
            results[index] = mutant
            if is_stable:
                _keep(cache, _key(toolchain, job), mutant)
    return [results[index] for index in range(len(jobs))]


def shown(name: str, options: Iterable[tuple[str, Any]]) -> str:
    """Return a codemod as its user wrote it, with long texts cut."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    given = ", ".join(f"{option}={short.repr(value)}" for option, value in options)
    return f"{name}({given})"


def _name(call: CodemodCall) -> str:
    return shown(call.reference.rpartition(".")[2], call.options)


def _base(source: str) -> compare.Module:
    try:
        return compare.read(source)
    except compare.Unreadable as error:
        raise SourceRefused(
            f"The training module cannot be edited: {error}",
            hint="make it a module that Python imports, of at most 256 KiB.",
        ) from error


def _judged(
    job: Job, base: compare.Module, answer: Answer, timeout_seconds: float
) -> Mutant:
    """Return the mutant that a child's *answer* makes, believing only its text.

    Raises:
        MutationError: It makes none.
    """
    if "unparsed" in answer:
        raise SourceRefused(
            f"The training module cannot be edited: LibCST {answer['unparsed']}.",
            hint="write it in plainer syntax: Python itself can read it.",
        )
    if "unvetted" in answer:
        raise _unreadable(job.codemods[-1], f"LibCST {answer['unvetted']}.")
    written = answer.get("steps", [])[: len(job.codemods)]
    steps = [job.source, *written]
    mutant = base
    for call, source in zip(job.codemods, written, strict=False):
        before = mutant
        try:
            mutant = compare.read(source)
        except compare.Unreadable as error:
            raise _unreadable(call, str(error)) from error
        if mutant.digest == before.digest:
            raise NoChange(
                f"{_name(call)} leaves a module that means the same as before.",
                hint="change what the module computes, not only its comments or layout.",
            )
    if len(written) < len(job.codemods):
        raise _failure(job, len(written), answer, timeout_seconds)
    if "refusals" not in answer:
        raise _unreadable(job.codemods[-1], "it was not vetted.")
    conflict = compare.overwritten(steps)
    if conflict is not None:
        earlier, later = (job.codemods[step] for step in conflict)
        raise Conflict(
            f"{_name(later)} rewrites lines that {_name(earlier)} wrote.",
            hint="take one of them out, or write one codemod that does both.",
        )
    if mutant.digest == base.digest:
        raise NoChange(
            f"{' and '.join(map(_name, job.codemods))} leave a module that means the "
            "same as the base.",
            hint="take out what undoes the change.",
        )
    return Mutant(
        source=steps[-1],
        diff=compare.diff(job.source, steps[-1]),
        changes=compare.changes(base, mutant),
        digest=mutant.digest,
        refusals=tuple(Refusal(**refusal) for refusal in answer["refusals"]),
    )


def _unreadable(call: CodemodCall, reason: str) -> CodemodRefused:
    return CodemodRefused(
        f"{_name(call)} leaves a module that cannot be read: {reason}",
        hint=f"correct what {_path(call)} builds.",
    )


def _failure(
    job: Job, step: int, answer: Answer, timeout_seconds: float
) -> MutationError:
    """Return the error that a codemod raised, or died of."""
    call = job.codemods[step]
    if "unreadable" in answer:
        return _unreadable(call, answer["unreadable"])
    if "failed" in answer:
        advice = answer.get("advice")
        return CodemodRefused(
            f"{_name(call)} failed: {answer['failed']}.",
            hint=f"correct {_path(call)}{f': {advice}' if advice else '.'}",
        )
    if "error" in answer:
        kind = getattr(errors, answer["error"], None)
        if not (isinstance(kind, type) and issubclass(kind, MutationError)):
            kind = CodemodRefused
        return kind(answer.get("message", ""), hint=answer.get("hint", ""))
    if not {"seconds", "died"} & set(answer):
        return CodemodRefused(
            f"{_name(call)} left no source.", hint=f"correct {_path(call)}."
        )
    # A process that is gone cannot say which of its codemods it was at.
    names = " and ".join(map(_name, job.codemods))
    if "seconds" in answer:
        return CodemodRefused(
            f"{names} took longer than {timeout_seconds:g} s.",
            hint=f"look for a loop without an end in {_path(call)}.",
        )
    code = answer["died"]
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return CodemodRefused(
        f"The process of {names} ended by {how}.",
        hint=f"correct {_path(call)}: deep nesting, for one, crashes LibCST's parser.",
    )


def _path(call: CodemodCall) -> str:
    module = call.reference.rpartition(".")[0]
    return f"codemods/{module.replace('.', '/')}.py"


# What is kept


def _toolchain(folders: Iterable[Path]) -> str:
    """Return a digest of all that decides what a codemod does to a source."""
    digest = hashlib.sha256(f"{_libcst_version()} {sys.version_info[:2]}".encode())
    for folder in [*folders, ROOT / "core" / "mutate"]:
        for path in sorted(_files_below(folder)):
            content = Path(path).read_bytes()
            name = os.path.relpath(path, folder)
            digest.update(f"\0{folder.name}/{name}\0{len(content)}\0".encode())
            digest.update(content)
    for name in ("errors.py", "syntax.py"):
        digest.update((ROOT / "core" / name).read_bytes())
    return digest.hexdigest()


def _files_below(folder: Path) -> Iterator[str]:
    for parent, children, names in os.walk(folder):
        children[:] = [child for child in children if child != "__pycache__"]
        yield from (os.path.join(parent, name) for name in names)


@cache
def _libcst_version() -> str:
    return version("libcst")


def _key(toolchain: str, job: Job) -> str:
    calls = [[call.reference, call.options] for call in job.codemods]
    content = json.dumps([toolchain, job.source, calls])
    return hashlib.sha256(content.encode()).hexdigest()


def _kept(cache: Path | None, key: str) -> Mutant | None:
    if cache is None:
        return None
    try:
        content = (cache / key[:2] / f"{key}.json").read_text(encoding="utf-8")
        return Mutant.from_json(json.loads(content))
    except (OSError, ValueError, KeyError, TypeError):  # missing, or torn by a crash
        return None


def _keep(cache: Path | None, key: str, mutant: Mutant) -> None:
    if cache is None:
        return
    path = cache / key[:2] / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, delete=False
    ) as file:
        json.dump(mutant.to_json(), file)
    os.replace(file.name, path)
