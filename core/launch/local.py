"""Run one trial on this machine: trainer, server and judge, each in its own process.

    parent ── plans, keeps the clock, ends everything
      ├─ trainer   the mutated module; sees the training rows; leaves weights
      ├─ server    the mutated module again, fresh; token ids in, logits out
      └─ judge     our code alone; validation rows, byte table, softmax

All three start together, ahead of the device where the profile allows that, so that
nothing imports while a device waits and the judge can begin as soon as the weights are
there.  Our own code touches the device only when it is the trial's; what an edited
module does when it is imported, nothing prevents yet.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import attrs

from core.device import DeviceFailed
from core.launch import Conditions, Crash, Result, Score, Status, Trial
from core.launch.child import Child, Unkillable
from core.launch.gauge import Gauge, Occupied
from core.launch.log import tail
from core.launch.watch import Budget, Failed, Progress, Watch
from core.memory import allocate

LOG = "log.txt"
JUDGE_LOG = "judge.txt"
WEIGHTS = "weights.safetensors"
SAVE_SECONDS = 30.0  # it takes seconds, and nobody else's clock runs meanwhile
EXIT_SECONDS = 5.0  # for a trainer that has left its weights; its helpers end with it

KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


@attrs.define(eq=False)
class LocalTrial:
    """A trial whose processes are up; they import, and wait for the device.

    Attributes:
        trial: What is run.
        folder: The run folder, which exists and is empty of an earlier trial.
        compile_cache: Where torch.compile keeps what it compiled.
        watch: What its processes say.
        gauge: What the GPU shows; None on a CPU.
    """

    trial: Trial
    folder: Path
    compile_cache: Path
    watch: Watch
    gauge: Gauge | None
    _spawned: float = attrs.field(factory=time.monotonic)

    @classmethod
    def start(
        cls,
        trial: Trial,
        folder: Path,
        *,
        compile_cache: Path,
        stop_fd: int,
        show: Callable[[Progress], None] = lambda progress: None,
        gauge: Gauge | None = None,
    ) -> Self:
        """Start the processes of *trial*; `run` or `abandon` ends them.

        Args:
            trial: What to run.
            folder: Its run folder.
            compile_cache: Where torch.compile keeps what it compiled.
            stop_fd: Becomes readable when the session ends.
            show: Called at each step and phase.
            gauge: Of the trial's GPU.

        Raises:
            OSError: The folder cannot be written, or no process can be started.
        """
        watch = Watch(
            profile=trial.profile,
            stop_fd=stop_fd,
            show=show,
            look=gauge.look if gauge else lambda: None,
        )
        started = cls(trial, folder, compile_cache, watch, gauge)
        try:
            started.spawn_all()
        except BaseException:  # whatever it is, no child may outlive it
            watch.end()
            raise
        return started

    def abandon(self) -> None:
        """End the processes; the trial is not wanted any more."""
        self.watch.end()

    def run(self) -> Result:
        """Take the device, go through the phases, and return how it went.

        Every way to fail becomes a Result, and no child is left when it returns.

        Raises:
            Stopped: The session ends first.
        """
        try:
            return self._run()
        except BaseException:  # whatever it is, no child may outlive it
            self.watch.end()
            raise

    def _run(self) -> Result:
        ahead_seconds = self.watch.begin() - self._spawned
        score = clock = train_seconds = said = None
        kept_mib, fault = None, ""
        status, crash, message = Status.FINISHED, None, ""
        try:
            if self.gauge is not None:
                self.gauge.begin()
            kept_mib = self.start_up()
            clock, train_seconds, said = self.train()
            self.save()
            self.serve()
            score = self.score()
            self.watch.enter("done")
        except Failed as failed:
            status, crash, message = failed.status, failed.crash, failed.message
        except (DeviceFailed, Occupied) as failed:
            status, message = Status.INFRASTRUCTURE, f"{failed}."
            fault = str(failed)
        except (OSError, Unkillable) as error:
            status, message = Status.INFRASTRUCTURE, f"{type(error).__name__}: {error}."
        resident_mib, left_behind = None, 0
        try:
            resident_mib, left_behind = self.watch.end()
        except Unkillable as error:
            status, crash, score = Status.INFRASTRUCTURE, None, None
            message = f"{error}."
        if self.gauge is not None and not fault:
            if fault := self.gauge.errors():
                status, crash, score = Status.INFRASTRUCTURE, None, None
                message = f"{fault}."
            else:
                fault = self.gauge.residue()
        return Result(
            status=status,
            crash=crash,
            phase=self.watch.phase,
            message=message,
            log_tail=() if status is Status.FINISHED else self.log_tail(status),
            score=score,
            curve=tuple(self.watch.curve),
            clock=clock,
            train_seconds=train_seconds,
            ahead_seconds=ahead_seconds,
            phase_seconds=dict(self.watch.phase_seconds),
            peak_mib=resident_mib
            if self.gauge is None
            else said and _number(said.get("peak_mib")),
            rehearsal_mib=kept_mib if self.gauge is not None else None,
            compilations=said and _count(said.get("compilations")),
            conditions=self.gauge.conditions() if self.gauge else Conditions(),
            left_behind=left_behind,
            device_fault=fault,
        )

    def log_tail(self, status: Status) -> tuple[str, ...]:
        """Return the end of the log that says most: ours, where we failed."""
        ours = tail(self.folder / JUDGE_LOG) if status is Status.INFRASTRUCTURE else ()
        return ours or tail(self.folder / LOG)

    def spawn_all(self) -> None:
        """Start the three processes."""
        trial = self.trial
        (self.folder / "train.py").write_text(trial.source)
        (self.folder / "tmp").mkdir(exist_ok=True)
        settings = {
            "seed": trial.seed,
            "device": trial.device.kind,
            "threads": trial.device.threads,
            "sequence_len": trial.sequence_len,
            "vocab_size": trial.vocab_size,
            "scored_rows": trial.profile.scored_rows,
        }
        with _pipes(settings) as (asks, answers, memory):
            self.spawn(
                "trainer",
                "core.training.entry",
                {
                    **settings,
                    "training": str(trial.training),
                    "rehearsal_steps": trial.profile.rehearsal_steps,
                    "weights": WEIGHTS,
                },
            )
            self.spawn(
                "server",
                "core.training.serve",
                {**settings, "weights": WEIGHTS},
                inherited=(asks[0], answers[1], memory),
            )
            self.spawn(
                "judge",
                "core.judge",
                {
                    **settings,
                    "validation": str(trial.validation),
                    "tokenizer": str(trial.tokenizer),
                    "scored_tokens": trial.profile.scored_tokens,
                },
                inherited=(asks[1], answers[0], memory),
            )

    def start_up(self) -> float | None:
        """Give the device to the processes and wait until each is ready.

        Returns:
            MiB of GPU memory that the rehearsal left allocated, as the trainer says.
        """
        deadline = time.monotonic() + self.trial.profile.startup_seconds
        for child in self.watch.children.values():
            child.send({})
        # The trainer's is last: it waits in its first hand-out, and the clock starts.
        for name in ("server", "judge", "trainer"):
            said = self.watch.await_message(name, "ready", deadline=deadline)
        return _number(said.get("kept_mib"))

    def train(self) -> tuple[tuple[float, float], float, dict[str, Any]]:
        """Let the trainer train for the budget.

        Returns:
            Start and end of the clock, its seconds, and what the trainer said of it.
        """
        self.watch.enter("train")
        trainer = self.watch.children["trainer"]
        began = time.monotonic()
        budget = self.watch.budget = Budget.start(self.trial.profile, trainer.pid())
        trainer.send({
            "clock": self.trial.profile.clock,
            "began": budget.began,
            "ends_at": budget.ends_at,
        })
        said = self.watch.await_message("trainer", "trained", budget=budget)
        train_seconds = budget.used()
        return (began, time.monotonic()), train_seconds, said

    def save(self) -> None:
        """Wait for the weights, and for the end of the process that made them."""
        self.watch.enter("save")
        self.watch.await_message(
            "trainer", "saved", deadline=time.monotonic() + SAVE_SECONDS
        )
        self.watch.children["trainer"].leave(EXIT_SECONDS)

    def serve(self) -> None:
        """Let the fresh server load the weights."""
        self.watch.enter("serve")
        self.watch.children["server"].send({})
        self.watch.await_message(
            "server",
            "serving",
            deadline=time.monotonic() + self.trial.profile.startup_seconds,
        )

    def score(self) -> Score:
        """Let the judge score what the server answers."""
        self.watch.enter("score")
        self.watch.children["judge"].send({})
        said = self.watch.await_message("judge", "scored")
        if not math.isfinite(said["nats"]):
            raise Failed(
                Status.CRASHED,
                f"the trained model's logits give a loss of {said['nats']} nats on "
                "validation rows.",
                Crash.NAN,
            )
        return Score(
            nats=said["nats"],
            bytes=said["bytes"],
            tokens=said["tokens"],
            val_bpb=said["nats"] / (math.log(2) * said["bytes"]),
        )

    def spawn(
        self,
        name: str,
        module: str,
        settings: dict[str, Any],
        inherited: tuple[int, ...] = (),
    ) -> None:
        """Start one of the three; it is ended with the trial."""
        self.watch.children[name] = Child.start(
            module,
            [json.dumps(settings), *map(str, inherited)],
            name=name,
            folder=self.folder,
            environment=self.environment(),
            cpus=self.trial.device.cpus,
            log=self.folder / (JUDGE_LOG if name == "judge" else LOG),
            inherited=inherited,
        )

    def environment(self) -> dict[str, str]:
        """Return what a child may see of our environment: no keys, no home."""
        device, own = self.trial.device, str(self.folder / "tmp")
        path = [str(self.trial.project), os.environ.get("PYTHONPATH", "")]
        return {
            **{k: os.environ[k] for k in KEPT_ENVIRONMENT if k in os.environ},
            "PYTHONPATH": os.pathsep.join(part for part in path if part),
            "PYTHONHASHSEED": "0",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": own,
            "TMPDIR": own,
            "XDG_CACHE_HOME": own,
            "TORCHINDUCTOR_CACHE_DIR": str(self.compile_cache / "inductor"),
            "TRITON_CACHE_DIR": str(self.compile_cache / "triton"),
            "OMP_NUM_THREADS": str(device.threads),
            "TORCHINDUCTOR_COMPILE_THREADS": str(device.threads),
            "CUDA_VISIBLE_DEVICES": device.id if device.kind == "cuda" else "",
        }


@contextlib.contextmanager
def _pipes(
    settings: dict[str, Any],
) -> Iterator[tuple[tuple[int, int], tuple[int, int], int]]:
    """Make what judge and server talk through; close our ends once both have theirs.

    Yields:
        The pipe of questions, the pipe of answers, and the memory that holds the ids of
        a question (uint16) and, on a CPU, the logits of its answer (float32).
    """
    opened: list[int] = []
    try:
        opened += os.pipe()
        opened += os.pipe()
        opened.append(
            allocate(
                settings["scored_rows"],
                settings["sequence_len"],
                settings["vocab_size"] if settings["device"] == "cpu" else 0,
            )
        )
        yield (opened[0], opened[1]), (opened[2], opened[3]), opened[4]
    finally:
        for fd in opened:
            os.close(fd)


def _number(said: Any) -> float | None:
    """Return what a child said, if it is a finite number."""
    return said if isinstance(said, float) and math.isfinite(said) else None


def _count(said: Any) -> int | None:
    """Return what a child said, if it is a count that a column holds."""
    return said if type(said) is int and 0 <= said < 2**31 else None
