"""Run one trial on this machine, each part of it in its own process.

    parent ── plans, keeps the clock, hands out batches, ends everything
      ├─ trainer   the mutated module; gets training rows while the clock runs
      ├─ servers   the mutated module again, fresh, twice; token ids in, logits out
      └─ judge     our code alone; validation rows, byte table, softmax, probes

All start together, ahead of the device where the profile allows that.  What was edited
runs in a sandbox, and not before the device is the trial's.

    run folder
      module/    train.py and, once they are there, the weights: to be read
      trainer/   the trainer's own; the same for each server
"""

import contextlib
import math
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import attrs
import psutil

from core.device import DeviceFailed
from core.launch import Audit, Conditions, Crash, Result, Score, Status, Trial
from core.launch import compile_cache as compile_caches
from core.launch.compile_cache import CompileCache
from core.launch.gauge import Gauge, Occupied
from core.launch.handout import HandOut
from core.launch.log import tail
from core.launch.watch import GRACE_SHARE, SERVERS, Budget, Failed, Progress, Watch
from core.memory import allocate, hand_out_bytes, question_bytes
from core.process.child import Child, Unkillable, Zygote, python_environment
from core.sandbox import Policy

LOG = "log.txt"
JUDGE_LOG = "judge.txt"
MODULE = "module/train.py"
WEIGHTS = "weights.safetensors"
COPIED_AT_ONCE = 2**24  # bytes
EXIT_SECONDS = 5.0  # for a trainer that has left its weights; its helpers end with it
# What the zygote imports; each has a function main.
MAINS = {
    "trainer": "core.training.entry",
    "server": "core.training.serve",
    "judge": "core.judge",
}


@attrs.define(eq=False)
class LocalTrial:
    """A trial whose processes are up; they wait for the device.

    Attributes:
        trial: What is run.
        folder: The run folder, which exists and is empty of an earlier trial.
        zygote: Forks the processes.
        compile_cache: What torch.compile has kept of the base on this device.
        watch: What the processes say.
        gauge: What the GPU shows; None on a CPU.
    """

    trial: Trial
    folder: Path
    zygote: Zygote
    compile_cache: CompileCache
    watch: Watch
    gauge: Gauge | None
    _spawned: float = attrs.field(factory=time.monotonic)
    _helped_seconds: float = 0.0  # of processes that it started before its clock

    @classmethod
    def start(
        cls,
        trial: Trial,
        folder: Path,
        *,
        zygote: Zygote,
        compile_cache: CompileCache,
        stop_fd: int,
        show: Callable[[Progress], None] = lambda progress: None,
        gauge: Gauge | None = None,
    ) -> Self:
        """Start the processes of *trial*; `run` or `abandon` ends them.

        Args:
            trial: What to run.
            folder: Its run folder.
            zygote: To fork them from.
            compile_cache: What torch.compile has kept of the base.
            stop_fd: Becomes readable when the session ends.
            show: Called at each step and phase.
            gauge: Of the trial's GPU.

        Raises:
            OSError: The folder cannot be written, or no process can be started.
        """
        watch = Watch(
            profile=trial.profile,
            stop_fd=stop_fd,
            folders=[folder],
            show=show,
            look=gauge.look if gauge else lambda: None,
        )
        started = cls(trial, folder, zygote, compile_cache, watch, gauge)
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
        score = audit = clock = train_seconds = said = overtime_seconds = None
        kept_mib, fault = None, ""
        status, crash, message = Status.FINISHED, None, ""
        try:
            if self.gauge is not None:
                self.gauge.begin()
            kept_mib = self.start_up()
            clock, train_seconds, said = self.train()
            overtime_seconds = self.save()
            self.serve()
            score, audit = self.score()
            if audit.breach:
                raise Failed(Status.INVALID, audit.breach)
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
        if status is not Status.FINISHED:
            score = None
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
            audit=audit,
            sandbox=self.watch.confined.get("trainer", "none"),
            curve=tuple(self.watch.curve),
            clock=clock,
            train_seconds=train_seconds,
            overtime_seconds=overtime_seconds,
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
        """Start the processes."""
        trial, profile = self.trial, self.trial.profile
        module = self.folder / MODULE
        module.parent.mkdir()
        module.write_text(trial.source)
        weights = module.with_name(WEIGHTS)
        settings = {
            "seed": trial.seed,
            "device": trial.device.kind,
            "threads": trial.device.threads,
            "sequence_len": trial.sequence_len,
            "vocab_size": trial.vocab_size,
            "scored_rows": profile.scored_rows,
            "module": str(module),
        }
        of_judge: list[int] = []
        with contextlib.ExitStack() as opened:
            memory = allocate(hand_out_bytes(trial.sequence_len))
            opened.callback(os.close, memory)
            self.watch.hand_out = HandOut.open(
                trial.training,
                trial.sequence_len,
                trial.vocab_size,
                seed=trial.seed,
                fd=memory,
            )
            self.spawn(
                "trainer",
                "trainer",
                {
                    **settings,
                    "rehearsal_steps": profile.rehearsal_steps,
                    "weights": str(self.folder / "trainer" / WEIGHTS),
                },
                (memory,),
            )
            for name in SERVERS:
                to_server, to_judge = opened.enter_context(_between(settings))
                self.spawn(
                    name, "server", {**settings, "weights": str(weights)}, to_server
                )
                of_judge += to_judge
            self.spawn(
                "judge",
                "judge",
                {
                    **settings,
                    "validation": str(trial.validation),
                    "tokenizer": str(trial.tokenizer),
                    "scored_tokens": profile.scored_tokens,
                },
                of_judge,
            )

    def start_up(self) -> float | None:
        """Give the device to the processes and wait until each is ready.

        Returns:
            MiB of GPU memory that the rehearsal left allocated, as the trainer says.
        """
        deadline = time.monotonic() + self.trial.profile.startup_seconds
        # First the trainer, which has most to do.
        for name, child in self.watch.children.items():
            if name != "judge":
                self.compile_cache.fill(own_name(name))
            child.send({})
        # The trainer's is last: it waits in its first hand-out, and the clock starts.
        for name in (*SERVERS, "judge", "trainer"):
            said = self.watch.await_message(name, "ready", deadline=deadline)
        return _number(said.get("kept_mib"))

    def train(self) -> tuple[tuple[float, float], float, dict[str, Any]]:
        """Let the trainer train for the budget.

        Returns:
            Start and end of the clock, its seconds, and what the trainer said of it.
        """
        self.watch.enter("train")
        profile, trainer = self.trial.profile, self.watch.children["trainer"]
        began = time.monotonic()
        budget = self.watch.budget = Budget.start(
            profile, trainer.pid(), profile.budget_seconds
        )
        with contextlib.suppress(psutil.NoSuchProcess):  # whoever waits for it says so
            self._helped_seconds = _helper_seconds(trainer.pid())
        trainer.send({})
        said = self.watch.await_message("trainer", "trained", budget=budget)
        train_seconds = budget.used()
        return (began, time.monotonic()), train_seconds, said

    def save(self) -> float:
        """Wait for the weights, and for the end of the process that made them.

        Returns:
            Seconds from the end of the budget until they were there, on its clock.
        """
        self.watch.enter("save")
        profile, budget = self.trial.profile, self.watch.budget
        assert budget is not None
        self.watch.await_message(
            "trainer",
            "saved",
            deadline=time.monotonic() + profile.startup_seconds,
            budget=budget,
            grace_seconds=self.watch.grace() + profile.save_seconds,
        )
        overtime_seconds = budget.overrun()
        self.take_weights()
        trainer = self.watch.children["trainer"]
        trainer.send({})
        ended = trainer.leave(EXIT_SECONDS)
        if profile.clock == "cpu":
            self.check_helpers(ended.helper_seconds - self._helped_seconds)
        return overtime_seconds

    def check_helpers(self, seconds: float) -> None:
        """Refuse what other processes computed for the trainer while its clock ran.

        Its clock counts its own CPU time alone.

        Raises:
            Failed: That was more than the trainer needs.
        """
        profile = self.trial.profile
        most = profile.save_seconds + GRACE_SHARE * profile.budget_seconds
        if seconds > most:
            raise Failed(
                Status.INVALID,
                f"processes that the trainer started used {seconds:.1f} s of CPU time "
                f"beside its clock: at most {most:.1f}.",
            )

    def take_weights(self) -> None:
        """Copy the weights for the servers, and nothing else that the trainer left.

        At once: what it goes on to write into them, nobody's clock has measured.

        Raises:
            Failed: There is no such file, or it is none that we may open.
        """
        left = self.folder / "trainer" / WEIGHTS
        try:
            found = os.lstat(left)
        except OSError as error:
            raise Failed(
                Status.CRASHED,
                f"the trainer left no weights: {error.strerror}.",
                Crash.EXCEPTION,
            ) from error
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise Failed(
                Status.INVALID,
                "the trainer left something else in the place of its weights: "
                f"{stat.filemode(found.st_mode)}, {found.st_nlink} links.",
            )
        taken = (self.folder / MODULE).with_name(WEIGHTS)
        fd = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as reading, taken.open("wb") as writing:
            shutil.copyfileobj(reading, writing, COPIED_AT_ONCE)

    def serve(self) -> None:
        """Let the fresh servers load the weights.

        In a time that leaves none to train on what was carried along with them.
        """
        self.watch.enter("serve")
        profile = self.trial.profile
        deadline = time.monotonic() + profile.startup_seconds
        for name in SERVERS:
            server, seconds = self.watch.children[name], profile.load_seconds
            self.watch.serving[name] = Budget.start(profile, server.pid(), seconds)
            server.send({})
        for name, budget in self.watch.serving.items():
            self.watch.await_message(
                name, "serving", deadline=deadline, budget=budget, grace_seconds=0.0
            )
            if budget.overrun() > 0:  # it said so while we waited for the other
                raise self.watch.overran(name, budget)

    def score(self) -> tuple[Score, Audit]:
        """Let the judge score and audit what the servers answer."""
        self.watch.enter("score")
        if self.watch.curve:
            # As fast as it was trained: a token takes three times as long there.
            tokens = self.trial.profile.scored_rows * self.trial.sequence_len
            last = self.watch.curve[-1]
            self.watch.answer_seconds = tokens * last.seconds / last.tokens
        self.watch.children["judge"].send({})
        said = self.watch.await_message("judge", "scored")
        if not math.isfinite(said["nats"]):
            raise Failed(
                Status.CRASHED,
                f"the trained model's logits give a loss of {said['nats']} nats on "
                "validation rows.",
                Crash.NAN,
            )
        score = Score(
            nats=said["nats"],
            bytes=said["bytes"],
            tokens=said["tokens"],
            val_bpb=said["nats"] / (math.log(2) * said["bytes"]),
        )
        return score, Audit(**said["audit"])

    def spawn(
        self, name: str, role: str, settings: dict[str, Any], inherited: Sequence[int]
    ) -> None:
        """Start one of the processes; it is ended with the trial."""
        device, own = self.trial.device, self.folder / own_name(name)
        own.mkdir()
        is_ours = role == "judge"
        compiled = own if is_ours else self.compile_cache.own(own.name)
        if not is_ours:
            self.watch.folders.append(compiled)
        environment = {
            **python_environment(self.trial.project),
            **{"HOME": str(own), "TMPDIR": str(own), "XDG_CACHE_HOME": str(own)},
            **compile_caches.environment(compiled),
            # The trainer has most to compile, and the servers have time.
            "TORCHINDUCTOR_COMPILE_THREADS": str(
                device.threads if role == "trainer" else min(4, device.threads)
            ),
            "CUDA_VISIBLE_DEVICES": device.id if device.kind == "cuda" else "",
        }
        self.watch.children[name] = Child.start(
            f"{MAINS[role]}:main",
            settings,
            zygote=self.zygote,
            name=name,
            folder=own,
            environment=environment,
            cpus=device.cpus,
            policy=None
            if is_ours or not self.trial.is_confined
            else self.policy(own, compiled),
            log=self.folder / (JUDGE_LOG if is_ours else LOG),
            inherited=inherited,
        )

    def policy(self, *own: Path) -> Policy:
        """Return what a process that runs edited code may reach."""
        device, profile = self.trial.device, self.trial.profile
        return Policy(
            read=(str(self.folder / "module"),),
            write=tuple(map(str, own)),
            lists=(str(self.trial.project),),
            gpus=(device.minor,) if device.minor is not None else (),
            secret=str(self.trial.validation),
            file_mib=profile.file_mib,
            host_mib=profile.host_mib,
        )


def own_name(name: str) -> str:
    """Return what the own folder of a process is called."""
    return name.replace(" ", "")


@contextlib.contextmanager
def _between(settings: dict[str, Any]) -> Iterator[tuple[list[int], list[int]]]:
    """Make what judge and server talk through; close our ends once both have theirs.

    Yields:
        What the server gets, and what the judge gets: its end of the pipe of questions,
        its end of the pipe of answers, and the memory that holds the ids of a question
        (uint16) and, on a CPU, the logits of its answer (float32).
    """
    opened: list[int] = []
    try:
        opened += os.pipe()
        opened += os.pipe()
        size = question_bytes(
            settings["scored_rows"],
            settings["sequence_len"],
            settings["vocab_size"] if settings["device"] == "cpu" else 0,
        )
        opened.append(allocate(size))
        asked, asks, answered, answers, memory = opened
        yield [asked, answers, memory], [asks, answered, memory]
    finally:
        for fd in opened:
            os.close(fd)


def _helper_seconds(pid: int) -> float:
    """Return the CPU time of all that the process *pid* has started, running or not.

    Raises:
        psutil.NoSuchProcess: One has ended meanwhile.
    """
    process = psutil.Process(pid)
    ended = process.cpu_times()
    running = [below.cpu_times() for below in process.children(recursive=True)]
    return sum(
        (sum(times[:4]) for times in running),
        ended.children_user + ended.children_system,
    )


def _number(said: Any) -> float | None:
    """Return what a child said, if it is a finite number."""
    return said if isinstance(said, float) and math.isfinite(said) else None


def _count(said: Any) -> int | None:
    """Return what a child said, if it is a count that a column holds."""
    return said if type(said) is int and 0 <= said < 2**31 else None
