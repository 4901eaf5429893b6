"""Sessions that wait for their turn, beside callers that cannot wait so long.

runs/.queue/<job>/   job.json      what to run
                     started.json  since when it runs
                     stop          it is to end
                     output.txt    what pytest prints
                     result.json   the session's document: docs/json.md
                     ended.json    how it ended

One runner a project runs one job after another.  Whether it is there, and whether there
is work for it, is asked and changed under one lock, so that no job comes between a
runner's last look and its end.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import attrs
import filelock
import pytest

from core.errors import SessionError
from core.launch.log import tail
from core.plugin.lock import project_lock
from core.report.outcome import RUN, encoded
from core.session import command, exit_code, read_document, started

POLL_SECONDS = 0.1
WAITS = "another session uses the project: this one waits until that has ended\n"


@attrs.frozen(kw_only=True)
class Job:
    """One session of the queue.

    Attributes:
        name: A number, in the order of the queue.
        folder: Of its files.
        specs: Spec files, folders or pytest ids.
        options: pytest's.
        cwd: The folder that they are relative to.
        state: ``waiting``, ``running``, ``done``, or ``stopped``: interrupted on demand.
        exit_code: pytest's; None before the end.
        queued_at: UTC, as ISO 8601 has it, as are the others.
        started_at: None before it runs.
        ended_at: None before the end.
    """

    name: str
    folder: Path
    specs: tuple[str, ...]
    options: tuple[str, ...]
    cwd: Path
    state: str
    exit_code: int | None
    queued_at: str
    started_at: str | None
    ended_at: str | None

    @classmethod
    def read(cls, folder: Path, *, is_served: bool) -> Self:
        """Return the job whose files are in *folder*."""
        job = json.loads((folder / "job.json").read_text())
        end = _read(folder / "ended.json")
        # If nobody runs it, it was cut short and will start anew.
        start = _read(folder / "started.json") if end or is_served else {}
        return cls(
            name=folder.name,
            folder=folder,
            specs=tuple(job["specs"]),
            options=tuple(job["options"]),
            cwd=Path(job["cwd"]),
            state=end.get("state") or ("running" if start else "waiting"),
            exit_code=end.get("exit_code"),
            queued_at=job["queued_at"],
            started_at=start.get("started_at"),
            ended_at=end.get("ended_at"),
        )

    @property
    def is_unfinished(self) -> bool:
        """Whether it has yet to end."""
        return self.ended_at is None

    @property
    def is_to_stop(self) -> bool:
        """Whether somebody wants its end."""
        return (self.folder / "stop").exists()

    @property
    def output(self) -> Path:
        """What pytest prints."""
        return self.folder / "output.txt"

    @property
    def progress(self) -> str:
        """The last line that pytest has printed."""
        return (tail(self.output) or ("",))[-1]

    @property
    def result(self) -> dict[str, Any] | None:
        """The document of the session; None before the end, and if it never began."""
        return _read(self.folder / "result.json") or None


@attrs.frozen
class Queue:
    """The jobs of a project.

    Attributes:
        project: The folder of ``specs/``.
    """

    project: Path
    _mutex: filelock.FileLock = attrs.field(init=False)
    _runner: filelock.FileLock = attrs.field(init=False)  # held as long as one runs

    @_mutex.default
    def _make_mutex(self) -> filelock.FileLock:
        return filelock.FileLock(self.folder / ".mutex")

    @_runner.default
    def _make_runner(self) -> filelock.FileLock:
        return filelock.FileLock(self.folder / ".runner")

    @property
    def folder(self) -> Path:
        """Made for the first job."""
        return self.project / "runs" / ".queue"

    @property
    def log(self) -> Path:
        """What a runner prints, which is nothing unless it fails."""
        return self.folder / "runner.txt"

    def jobs(self, names: Sequence[str] | None = None) -> list[Job]:
        """Return jobs in their order: those named, or all that there ever were."""
        if not self.folder.is_dir():
            return []
        with self._mutex:
            is_served = self._is_served()
            return [
                Job.read(folder, is_served=is_served)
                for folder in self._folders()
                if names is None or folder.name in names
            ]

    def put(self, specs: Sequence[str], options: Sequence[str], cwd: Path) -> Job:
        """Add a job, and see to it that somebody runs it.

        Args:
            specs: Spec files, folders or pytest ids.
            options: pytest's.
            cwd: The folder that they are relative to.

        Raises:
            SessionError: ``runs/`` cannot be written.
        """
        content = {"specs": [*specs], "options": [*options], "cwd": str(cwd)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._mutex:
                last = max((int(f.name) for f in self._folders()), default=0)
                unnamed = self.folder / ".new"
                if unnamed.exists():  # left by somebody who was killed just here
                    shutil.rmtree(unnamed)
                unnamed.mkdir()
                _write(unnamed / "job.json", {**content, "queued_at": _now()})
                folder = unnamed.rename(self.folder / str(last + 1))
                _sync(self.folder)
                self.serve_beside()
                return Job.read(folder, is_served=self._is_served())
        except OSError as error:
            raise SessionError(
                f"{self.folder} cannot be written: {error.strerror}.",
                hint="make it a folder that you can write to: each job is kept there.",
            ) from error

    def serve_beside(
        self, earlier: "subprocess.Popen[bytes] | None" = None
    ) -> "subprocess.Popen[bytes] | None":
        """Start a runner if there is work and none; return the last that we started.

        Args:
            earlier: What this returned before.

        Raises:
            SessionError: That one has failed.
        """
        with self._mutex:
            if self._is_served() or not self._unfinished():
                return earlier
            code = None if earlier is None else earlier.poll()
            if earlier is not None and code is None:  # about to take its lock
                return earlier
            if code is not None and code > 0:
                raise SessionError(
                    f"the runner of the queue ended with exit code {code}.",
                    hint=f"read the end of {self.log}; the jobs are kept.",
                )
            with open(self.log, "ab") as log:
                return subprocess.Popen(
                    [sys.executable, "-m", "core.queue", str(self.project)],
                    cwd=self.project,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # or it would end with the caller's shell
                )

    def wait(self, names: Sequence[str], seconds: float | None) -> list[Job]:
        """Wait until jobs have ended, or the time is over; return them as they are then.

        Args:
            names: Which.
            seconds: For how long; None for as long as it takes.

        Raises:
            SessionError: Nobody can run them.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        runner = None
        while True:
            jobs = self.jobs(names)
            if not any(job.is_unfinished for job in jobs):
                return jobs
            runner = self.serve_beside(runner)
            if deadline is not None and time.monotonic() >= deadline:
                return jobs
            time.sleep(POLL_SECONDS)

    def stop(self) -> list[Job]:
        """End all jobs that have not ended; return them once they have."""
        names = [job.name for job in self.jobs() if job.is_unfinished]
        if not names:
            return []
        for name in names:
            (self.folder / name / "stop").touch()
        while True:
            with self._mutex:
                left = [job for job in self._unfinished() if job.name in names]
                if left and not self._is_served():
                    for job in left:
                        _end(job.folder, pytest.ExitCode.INTERRUPTED, "stopped")
                    left = []
                if not left:
                    return self.jobs(names)
            time.sleep(POLL_SECONDS)

    def serve(self) -> None:
        """Run one job after another until there is none, unless somebody else does."""
        with self._mutex:
            if self._is_served():
                return
            self._runner.acquire()
        try:
            while True:
                with self._mutex:
                    job = next(iter(self._unfinished()), None)
                    if job is None:
                        self._runner.release()
                        return
                self._run(job)
        finally:
            self._runner.release()

    def _run(self, job: Job) -> None:
        """Run a job to its end, from its start if a runner was killed in its midst."""
        # A session of a runner that was killed may still be about to write its own.
        path = job.folder / f"left-{os.getpid()}.json"
        code = int(pytest.ExitCode.INTERRUPTED)
        state = "stopped"
        while self._awaits_project(job):
            _write(job.folder / "started.json", {"started_at": _now()})
            code, state = self._session(job, path)
            # Somebody was faster by a moment; else it is pytest's last word.
            refused = code == pytest.ExitCode.USAGE_ERROR
            if not refused or state == "stopped" or not self._is_used():
                result = read_document(path, command=RUN, exit_code=code)
                _write(job.folder / "result.json", result)
                break
        for left in job.folder.glob("left-*.json"):
            left.unlink()
        _end(job.folder, code, state)

    def _session(self, job: Job, path: Path) -> tuple[int, str]:
        """Run pytest, interrupted if that is wanted; return its exit code and a state."""
        is_stopped = False
        with open(job.output, "wb") as output:
            try:
                child = started(
                    command(job.specs, job.options, is_dry=False, document=path),
                    cwd=job.cwd,
                    output=output,
                )
            except OSError as error:
                output.write(f"{job.cwd}: {error.strerror}\n".encode())
                return int(pytest.ExitCode.USAGE_ERROR), "done"
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(POLL_SECONDS)
                    break
                if job.is_to_stop and not is_stopped:
                    child.send_signal(signal.SIGINT)
                    is_stopped = True
        code = exit_code(child)
        was_interrupted = is_stopped and code == pytest.ExitCode.INTERRUPTED
        return code, "stopped" if was_interrupted else "done"

    def _awaits_project(self, job: Job) -> bool:
        """Wait until no session uses the project; return False if *job* is to stop."""
        is_said = False
        while self._is_used() and not job.is_to_stop:
            if not is_said:
                job.output.write_text(WAITS)
                (job.folder / "started.json").unlink(missing_ok=True)
                is_said = True
            time.sleep(POLL_SECONDS)
        return not job.is_to_stop

    def _is_used(self) -> bool:
        return _is_held(project_lock(self.project))

    def _is_served(self) -> bool:
        """Return whether there is a runner; under the mutex alone."""
        return self._runner.is_locked or _is_held(
            filelock.FileLock(self._runner.lock_file)
        )

    def _unfinished(self) -> list[Job]:
        return [
            Job.read(folder, is_served=False)
            for folder in self._folders()
            if not (folder / "ended.json").exists()
        ]

    def _folders(self) -> list[Path]:
        named = (f for f in self.folder.iterdir() if f.name.isdecimal())
        return sorted(named, key=lambda folder: int(folder.name))


def latest(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs since the queue was last empty; the last one at least."""
    chosen: list[Job] = []
    for job in reversed(jobs):
        if chosen and job.ended_at is not None and job.ended_at <= chosen[0].queued_at:
            break
        chosen.insert(0, job)
    return chosen


def _end(folder: Path, code: int, state: str) -> None:
    content = {"exit_code": int(code), "state": state, "ended_at": _now()}
    _write(folder / "ended.json", content)


def _is_held(lock: filelock.BaseFileLock) -> bool:
    """Return whether some process has *lock*."""
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return True
    lock.release()
    return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _read(path: Path) -> dict[str, Any]:
    """Return what a file holds; nothing where there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write a file, whole or not at all."""
    unnamed = path.with_name(f".{path.name}")
    with open(unnamed, "w", encoding="utf-8") as file:
        file.write(encoded(content) + "\n")
        file.flush()
        os.fsync(file.fileno())
    unnamed.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


if __name__ == "__main__":
    Queue(Path(sys.argv[1])).serve()
