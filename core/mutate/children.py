"""Start, feed and end the child processes that apply codemods."""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import attrs

from core.errors import SessionError
from core.mutate.lookup import ROOT

Answer = dict[str, Any]
Request = tuple[str, list[tuple[str, Any]]]  # a source; reference and options of each

WORKER = (sys.executable, "-P", "-m", "core.mutate.worker")
PREPARE_SECONDS = 60.0  # to import LibCST, or to parse a module; both take under one
# A codemod gets no key and no token of the session.
ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")


@attrs.define(eq=False)
class Child:
    """A worker, the jobs that it has not answered yet, and what it is at."""

    process: subprocess.Popen[bytes]
    indices: list[int]
    timeout_seconds: float
    state: str = "starting"
    deadline: float = attrs.field(factory=lambda: time.monotonic() + PREPARE_SECONDS)
    is_late: bool = False
    unread: bytes = b""

    def read(self) -> Iterator[Answer] | None:
        """Return the answers that have come, or None when no more will."""
        content = os.read(self.process.stdout.fileno(), 1 << 16)
        if not content:
            return None
        *whole, self.unread = (self.unread + content).split(b"\n")
        return map(json.loads, whole)

    def enter(self, state: str) -> None:
        """Note what the worker is at now, which sets a new deadline."""
        self.state = state
        seconds = self.timeout_seconds if state == "working" else PREPARE_SECONDS
        self.deadline = time.monotonic() + seconds

    def kill(self) -> None:
        """End the worker and all that it or a codemod started in its group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


def ask(
    requests: Mapping[int, Request],
    *,
    project: Path,
    folders: Sequence[Path],
    timeout_seconds: float,
    confined: bool,
) -> dict[int, Answer]:
    """Have worker processes answer each request.

    A worker that dies, or is late, costs the job that it was at; another worker does
    the rest.

    Returns:
        For each request ``steps``, the source after each codemod, with ``refusals`` of
        the last; or, where they are fewer than its codemods, why: ``error`` (with
        ``message`` and ``hint``), ``failed``, ``unreadable``, ``seconds``, ``died``,
        ``unparsed`` or ``unvetted``.

    Raises:
        SessionError: A worker could not be started.
    """
    # Neighbours share a source, which is then parsed once.
    order = sorted(requests, key=lambda index: (requests[index][0], index))
    share = -(-len(order) // min(os.cpu_count() or 1, len(order)))
    waiting = [order[at : at + share] for at in range(0, len(order), share)]
    answers: dict[int, Answer] = {}
    running: list[Child] = []
    with selectors.DefaultSelector() as selector, tempfile.TemporaryFile() as log:
        try:
            while waiting or running:
                while waiting:
                    indices = waiting.pop()
                    request = _request(
                        [requests[index] for index in indices],
                        project,
                        folders,
                        timeout_seconds,
                        confined,
                    )
                    process = _launch(request, project, log)
                    child = Child(process, indices, timeout_seconds)
                    running.append(child)
                    selector.register(process.stdout, selectors.EVENT_READ, child)
                for child in _ended(selector, running, answers):
                    selector.unregister(child.process.stdout)
                    running.remove(child)
                    child.kill()
                    rest = _answer_for(child, requests, answers, log)
                    if rest:
                        waiting.append(rest)
        finally:
            for child in running:
                child.kill()
    return answers


def _ended(
    selector: selectors.BaseSelector,
    running: Sequence[Child],
    answers: dict[int, Answer],
) -> list[Child]:
    """Wait for something to happen, note it, and return the children that are done."""
    first = min(child.deadline for child in running)
    ended: list[Child] = []
    heard: list[Child] = []
    for key, _ in selector.select(max(0.0, first - time.monotonic())):
        child: Child = key.data
        heard.append(child)
        content = child.read()
        if content is None:
            ended.append(child)
            continue
        for answer in content:
            if "state" in answer:
                child.enter(answer["state"])
            else:
                answers[child.indices.pop(0)] = _checked(answer)
                child.enter("between")
    for child in running:
        if child not in heard and time.monotonic() > child.deadline:
            child.is_late = True
            ended.append(child)
    return ended


def _checked(answer: Any) -> Answer:
    """Return *answer*, which a codemod may have forged, if it has the right types."""
    if set(answer) == {"died"} and isinstance(answer["died"], int):
        return answer
    if set(answer) == {"unconfined"} and isinstance(answer["unconfined"], str):
        raise SessionError(
            f"codemods cannot be confined on this machine: {answer['unconfined']}.",
            hint="run on Linux 6.2 or newer with Landlock, or allow user namespaces, on "
            "x86-64; or trust what you run: --sandbox=none.",
        )
    match answer:
        case {"steps": [*steps], "refusals": [*refusals], **others}:
            is_sound = all(map(_is_refusal, refusals))
        case {"steps": [*steps], **others}:
            is_sound = "refusals" not in others
        case _:
            steps, others, is_sound = [], {}, False
    if is_sound and all(isinstance(text, str) for text in [*steps, *others.values()]):
        return answer
    return {"steps": [], "failed": "its answer is not the worker's"}


def _is_refusal(found: Any) -> bool:
    match found:
        case {"line": int(), "symbol": str(), "reason": str()}:
            return len(found) == 3
    return False


def _answer_for(
    child: Child,
    requests: Mapping[int, Request],
    answers: dict[int, Answer],
    log: IO[bytes],
) -> list[int]:
    """Answer what an ended child was at, and return the jobs that it leaves."""
    if not child.indices:
        return []
    code = child.process.returncode
    if child.state == "starting":
        log.seek(0)
        said = log.read()[-2000:].decode(errors="replace").strip()
        raise SessionError(
            f"The process that applies codemods did not start (exit code {code}).\n{said}",
            hint="run `python -m core.mutate.worker < /dev/null` to see what it lacks.",
        )
    first, *rest = child.indices
    why = "takes too long to parse it" if child.is_late else "cannot parse it"
    if child.state == "vetting":
        answers[first] = {"unvetted": why}
        return rest
    if child.state == "parsing":
        lost = [i for i in child.indices if requests[i][0] == requests[first][0]]
        answers.update({index: {"unparsed": why} for index in lost})
        return [index for index in rest if index not in lost]
    answers[first] = {"seconds": True} if child.is_late else {"died": code}
    return rest


def _request(
    requests: Sequence[Request],
    project: Path,
    folders: Sequence[Path],
    timeout_seconds: float,
    confined: bool,
) -> bytes:
    sources = list(dict.fromkeys(source for source, _ in requests))
    return json.dumps({
        "project": str(project),
        "folders": [str(folder) for folder in folders],
        "timeout_seconds": timeout_seconds,
        "confined": confined,
        "sources": sources,
        "jobs": [[sources.index(source), calls] for source, calls in requests],
    }).encode()


def _launch(request: bytes, project: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a worker on *request*, in a process group of its own."""
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    environment |= {
        "PYTHONHASHSEED": "0",  # one source and one codemod make one mutant
        "PYTHONUTF8": "1",
    }
    if ROOT.name != "site-packages":  # a checkout, which Python does not know of
        path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(part for part in path if part)
    # A file, since a pipe is full before the worker reads it
    with tempfile.TemporaryFile() as stdin:
        stdin.write(request)
        stdin.seek(0)
        return subprocess.Popen(
            WORKER,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            cwd=project,
            start_new_session=True,
        )
