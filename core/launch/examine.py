"""Examine mutants before any trial: tiny, on CPU cores, each in a confined child.

What is found costs seconds here and a trial later.  The child is edited code's own
process, so what it says of itself is no proof that it is honest; a breach that it admits
is one.
"""

import contextlib
import hashlib
import json
import os
import selectors
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from core.channel import BadLine
from core.launch.log import escaped, tail
from core.process.child import Child, Zygote, python_environment, signal_name
from core.sandbox import Policy

MAIN = "core.training.gate.child"
SECONDS = 3.0  # of trying examples; then no more are begun
DEADLINE_SECONDS = 60.0  # for all of it, on a machine that is busy elsewhere
HOST_MIB = 4_096.0
FILE_MIB = 64.0
SEED = 0


@attrs.frozen(kw_only=True)
class Examined:
    """What an examination found.

    Attributes:
        breach: What is wrong with the mutant; empty if nothing was found.
        note: What was not tried, for the reader of a header; empty if all was.
    """

    breach: str = ""
    note: str = ""


@attrs.frozen(kw_only=True)
class Subject:
    """A module to examine, in sizes for a CPU."""

    source: str
    sequence_len: int
    vocab_size: int


@attrs.define(eq=False)
class _Running:
    """A child that examines, and what it is at."""

    subject: Subject
    child: Child
    folder: Path
    log: Path
    confined: bool = False
    check: str = "start"
    is_finding: bool = True
    deadline: float = attrs.field(factory=lambda: time.monotonic() + DEADLINE_SECONDS)


class NotExamined(RuntimeError):
    """An examination could not be made."""


def examine_all(
    subjects: Mapping[str, Subject],
    *,
    zygote: Zygote,
    library: Path,
    cache: Path,
    files: str,
    is_confined: bool,
    done: Callable[[int, int], None] = lambda count, total: None,
) -> dict[str, Examined]:
    """Return what is found in each of *subjects*, by their names.

    Args:
        subjects: Modules by name; equal ones are examined once.
        zygote: To fork the children from; it has imported `MAIN`.
        library: Where ``core`` is imported from.
        cache: Where findings are kept.
        files: Digest of the files that decide what is found.
        is_confined: The children are in a sandbox.
        done: Told how many are done.

    Raises:
        NotExamined: A child is not confined.
        OSError: There is no zygote.
    """
    found: dict[Subject, Examined] = {}
    waiting = []
    for subject in dict.fromkeys(subjects.values()):
        kept = _kept(cache, _key(files, subject))
        if kept is None:
            waiting.append(subject)
        else:
            found[subject] = kept
    total, running = len(waiting), []
    if total:
        done(0, total)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="deltaspec-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) < cores:
                    number = total - len(waiting)
                    own = Path(folder, str(number))
                    running.append(
                        _start(waiting.pop(0), own, zygote, library, is_confined)
                    )
                ended = _next(running)
                for one, examined in ended or _late(running):
                    running.remove(one)
                    one.child.end()
                    found[one.subject] = examined
                    if ended and one.is_finding:  # else it says as much of the machine
                        _keep(cache, _key(files, one.subject), examined)
                    done(total - len(waiting) - len(running), total)
        finally:
            for one in running:
                one.child.end()
    return {name: found[subject] for name, subject in subjects.items()}


def _start(
    subject: Subject, own: Path, zygote: Zygote, library: Path, is_confined: bool
) -> _Running:
    module = own / "module" / "train.py"
    module.parent.mkdir(parents=True)
    module.write_text(subject.source)
    scratch = own / "own"
    scratch.mkdir()
    log = own / "log.txt"
    policy = Policy(
        read=(str(module.parent),),
        write=(str(scratch),),
        lists=(str(library),),
        file_mib=FILE_MIB,
        host_mib=HOST_MIB,
    )
    child = Child.start(
        f"{MAIN}:main",
        {
            "module": str(module),
            "seed": SEED,
            "sequence_len": subject.sequence_len,
            "vocab_size": subject.vocab_size,
            "seconds": SECONDS,
        },
        zygote=zygote,
        name="gates",
        folder=scratch,
        environment={
            **python_environment(library),
            **{name: str(scratch) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")},
            "CUDA_VISIBLE_DEVICES": "",
        },
        log=log,
        policy=policy if is_confined else None,
    )
    return _Running(subject, child, own, log, confined=not is_confined)


def _next(running: list[_Running]) -> list[tuple[_Running, Examined]]:
    """Wait for a child to say something; return the ones that are done."""
    until = min(one.deadline for one in running)
    with selectors.DefaultSelector() as selector:
        for one in running:
            selector.register(one.child.events.fd, selectors.EVENT_READ, one)
        ready = selector.select(max(0.0, until - time.monotonic()))
    heard = [(key.data, _heard(key.data)) for key, _ in ready]
    return [(one, examined) for one, examined in heard if examined is not None]


def _late(running: list[_Running]) -> list[tuple[_Running, Examined]]:
    """Return the children that have had their time."""
    now = time.monotonic()
    text = f"the examination did not end in {DEADLINE_SECONDS:g} s."
    return [
        (one, Examined(breach=f"{one.check}: {text}"))
        for one in running
        if now >= one.deadline
    ]


def _heard(one: _Running) -> Examined | None:
    """Take in what a child says; return its end."""
    try:
        messages = one.child.events.available()
    except BadLine as bad:
        return Examined(breach=f"{one.check}: the module wrote {escaped(str(bad))}.")
    for message in messages:
        match message:
            case {"event": "unconfined", "message": str(text)} if not one.confined:
                raise NotExamined(f"not confined: {escaped(text)}")
            case {"event": "confined"} if not one.confined:
                one.confined = True
            case {"event": "began", "check": str(check)} if one.confined:
                one.check = escaped(check[:40])
            case {"event": "failed", "message": str(text)} if one.confined:
                return Examined(breach=f"{one.check}: {escaped(text)}.")
            case {"event": "examined", "breach": {"message": str(text)}}:
                return Examined(breach=escaped(text))
            case {"event": "examined", "breach": None, **rest} if one.confined:
                return Examined(note=_note(rest))
            case _:
                return Examined(
                    breach=f"{one.check}: the module said {escaped(str(message)[:80])}."
                )
    if not one.child.events.ended:
        return None
    code = one.child.exit().returncode
    one.is_finding = code not in (None, -signal.SIGKILL)
    how = "with its warden" if code is None else f"with status {code}"
    if code is not None and code < 0:
        how = f"by {signal_name(-code)}"
    last = tail(one.log)[-1:]
    return Examined(
        breach=f"{one.check}: the process ended {how}{': ' + last[0] if last else ''}."
    )


def _note(rest: Mapping[str, Any]) -> str:
    if rest.get("without_random"):
        return "only with initial and trained values: random ones are not finite"
    return ""


# What is kept


def _key(files: str, subject: Subject) -> str:
    content = json.dumps([files, SECONDS, SEED, attrs.astuple(subject)])
    return hashlib.sha256(content.encode()).hexdigest()


def _kept(cache: Path, key: str) -> Examined | None:
    with contextlib.suppress(OSError, ValueError, TypeError):  # missing, or torn
        content = json.loads((cache / key[:2] / f"{key}.json").read_text())
        return Examined(**content)
    return None


def _keep(cache: Path, key: str, examined: Examined) -> None:
    path = cache / key[:2] / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    unnamed = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    unnamed.write_text(json.dumps(attrs.asdict(examined)))
    unnamed.replace(path)
