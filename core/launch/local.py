"""Run one trial on this machine: trainer, server and judge, each in its own process.

    parent ── plans, keeps the clock, ends everything
      ├─ trainer   the mutated module; sees the training rows; leaves weights
      ├─ server    the mutated module again, fresh; token ids in, logits out
      └─ judge     our code alone; validation rows, byte table, softmax

All three start together, so that nothing imports while the clock runs and the judge
can begin as soon as the weights are there.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs

from core.launch import Crash, Result, Score, Status, Trial
from core.launch.child import Child, Unkillable
from core.launch.log import tail
from core.launch.watch import Budget, Failed, Progress, Watch
from core.memory import allocate

LOG = "log.txt"
JUDGE_LOG = "judge.txt"
WEIGHTS = "weights.safetensors"
SAVE_SECONDS = 120.0
EXIT_SECONDS = 5.0  # for a trainer that has left its weights; its helpers end with it

KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


def run_trial(
    trial: Trial,
    folder: Path,
    *,
    compile_cache: Path,
    stop_fd: int,
    show: Callable[[Progress], None] = lambda progress: None,
) -> Result:
    """Run *trial* in *folder* and return how it went; no child is left when it returns.

    Args:
        trial: What to run.
        folder: The run folder, which exists and is empty of an earlier trial.
        compile_cache: Where torch.compile keeps what it compiled.
        stop_fd: Becomes readable when the session ends.
        show: Called at each step and phase.

    Raises:
        Stopped: ``stop_fd`` became readable first.
    """
    watch = Watch(profile=trial.profile, stop_fd=stop_fd, show=show)
    try:
        return _Running(trial, folder, compile_cache, watch).run()
    except BaseException:  # whatever it is, no child may outlive it
        watch.end()
        raise


@attrs.define(eq=False)
class _Running:
    """The state of one trial while it runs."""

    trial: Trial
    folder: Path
    compile_cache: Path
    watch: Watch

    def run(self) -> Result:
        """Go through the phases; every way to fail becomes a Result."""
        score = train_seconds = device_mib = None
        status, crash, message = Status.FINISHED, None, ""
        try:
            self.start()
            train_seconds, device_mib = self.train()
            self.save()
            self.serve()
            score = self.score()
            self.watch.enter("done")
        except Failed as failed:
            status, crash, message = failed.status, failed.crash, failed.message
        except (OSError, Unkillable) as error:
            status, message = Status.INFRASTRUCTURE, f"{type(error).__name__}: {error}."
        resident_mib, left_behind = None, 0
        try:
            resident_mib, left_behind = self.watch.end()
        except Unkillable as error:
            status, crash, score = Status.INFRASTRUCTURE, None, None
            message = f"{error}."
        return Result(
            status=status,
            crash=crash,
            phase=self.watch.phase,
            message=message,
            log_tail=tail(self.folder / LOG) if status is not Status.FINISHED else (),
            score=score,
            curve=tuple(self.watch.curve),
            train_seconds=train_seconds,
            phase_seconds=dict(self.watch.phase_seconds),
            peak_mib=device_mib or resident_mib,
            left_behind=left_behind,
        )

    def start(self) -> None:
        """Start the three processes and wait until each is ready."""
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
        deadline = time.monotonic() + trial.profile.startup_seconds
        for name in ("trainer", "server", "judge"):
            self.watch.await_message(name, "ready", deadline=deadline)

    def train(self) -> tuple[float, float | None]:
        """Let the trainer train for the budget.

        Returns:
            Its seconds on the clock, and the MiB of GPU memory that it says it used.
        """
        self.watch.enter("train")
        trainer = self.watch.children["trainer"]
        budget = self.watch.budget = Budget.start(self.trial.profile, trainer.pid())
        trainer.send({
            "clock": self.trial.profile.clock,
            "began": budget.began,
            "ends_at": budget.ends_at,
        })
        said = self.watch.await_message("trainer", "trained", budget=budget)
        train_seconds = budget.used()
        match said.get("peak_mib"):
            case float(mib) if self.trial.device.kind == "cuda" and math.isfinite(mib):
                return train_seconds, mib
        return train_seconds, None

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
            "CUDA_VISIBLE_DEVICES": device.id if device.kind == "cuda" else "",
        }


@contextlib.contextmanager
def _pipes(
    settings: dict[str, Any],
) -> Iterator[tuple[tuple[int, int], tuple[int, int], int]]:
    """Make what judge and server talk through; close our ends once both have theirs.

    Yields:
        The pipe of questions, the pipe of answers, and the memory that holds the ids of
        a question (uint16) and the logits of its answer (float32).
    """
    opened: list[int] = []
    try:
        opened += os.pipe()
        opened += os.pipe()
        opened.append(
            allocate(
                settings["scored_rows"],
                settings["sequence_len"],
                settings["vocab_size"],
            )
        )
        yield (opened[0], opened[1]), (opened[2], opened[3]), opened[4]
    finally:
        for fd in opened:
            os.close(fd)
