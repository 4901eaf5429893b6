"""Trials in real child processes, ended in every way that a trial can end."""

import json
import math
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import numpy as np
import psutil
import pytest
import safetensors.numpy

from core.channel import encode
from core.device import Device, cpu, gpus
from core.launch import Crash, Result, Status, Trial
from core.launch.compile_cache import CompileCache
from core.launch.gauge import SLACK_MIB, Gauge
from core.launch.local import LOG, MODULE, WEIGHTS, LocalTrial
from core.launch.watch import SERVERS, Progress, Stopped, Watch
from core.process.child import Zygote
from core.profile import CPU, GPU, Profile
from core.sandbox import landlock_abi, level
from core.scratch import remove
from core.training.data import Prepared, open_rows, open_source, prepare
from core.training.tokenizer import Tokenizer
from tests.conftest import ROOT
from tests.inside import Inside
from tests.test_process import sleep

VOCAB_SIZE, SEQUENCE_LEN = 300, 16

# A bigram model: a trial in miniature; STEP is where a test makes it misbehave.
SOURCE = """
import os, sys, time
import torch
import torch.nn.functional as F
from torch import nn


class Bigram(nn.Module):
    def __init__(self, generator):
        super().__init__()
        self.table = nn.Parameter(torch.randn(300, 300, generator=generator))

    def forward(self, tokens):
        return ANSWER


def train(run):
    model = Bigram(run.generator("table")).to(run.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    for step, rows in enumerate(run.batches(8)):
        is_real = type(run).__name__ == "Training"
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        if is_real and step == 1:
            STEP
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss)
    return model
"""


def module(step: str = "pass", answer: str = "self.table[tokens]") -> str:
    indented = textwrap.indent(textwrap.dedent(step).strip(), " " * 12).strip()
    return SOURCE.replace("STEP", indented).replace("ANSWER", answer)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(200):
        words = " ".join(f"word{number * k % 97}" for k in range(60))
        (folder / f"{number}.txt").write_text(f"Text {number}. {words}\n")
    return prepare(
        open_source(folder),
        vocab_size=VOCAB_SIZE,
        sequence_len=SEQUENCE_LEN,
        cache=tmp_path_factory.mktemp("data"),
    )


QUICK = attrs.evolve(CPU, budget_seconds=0.3, grace_seconds=0.5)

Runner = Callable[..., Result]


@pytest.fixture
def run(data: Prepared, tmp_path: Path, zygote: Zygote) -> Runner:
    """Return a function that runs a training module and says how it went."""

    def run(
        source: str,
        profile: Profile = QUICK,
        show: Callable[[Progress], None] = lambda progress: None,
        stop_fd: int | None = None,
        device: Device | None = None,
        gauge: Gauge | None = None,
        is_confined: bool = True,
    ) -> Result:
        never, _keep = os.pipe()
        folder = tmp_path / "run"
        folder.mkdir()
        trial = trial_of(source, profile, data, device or cpu())
        result = LocalTrial.start(
            attrs.evolve(trial, is_confined=is_confined),
            folder,
            zygote=zygote,
            compile_cache=CompileCache(tmp_path / "compile"),
            stop_fd=never if stop_fd is None else stop_fd,
            show=show,
            gauge=gauge,
        ).run()
        os.close(never)
        os.close(_keep)
        return result

    return run


def trial_of(source: str, profile: Profile, data: Prepared, device: Device) -> Trial:
    return Trial(
        run_id="test",
        source=source,
        seed=0,
        profile=profile,
        device=device,
        training=data.training,
        validation=data.validation,
        tokenizer=data.tokenizer,
        sequence_len=SEQUENCE_LEN,
        vocab_size=VOCAB_SIZE,
        project=ROOT,
    )


def of_trials(above: int | None = None) -> list[psutil.Process]:
    """Return the processes of trials below the process *above*, or below this one.

    They are all that a zygote has forked, and what these have started.
    """
    found: list[psutil.Process] = []
    for child in psutil.Process(above).children():
        if "core.process.zygote" in command_of(child):
            found += child.children(recursive=True)
    return found


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def named(name: str, above: int | None = None) -> list[psutil.Process]:
    """Return the processes of trials that are called *name*."""
    return [process for process in of_trials(above) if name_of(process) == name]


def name_of(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def nothing_is_left() -> bool:
    # A warden reports and then ends: it may be in the middle of that.
    _, alive = psutil.wait_procs(of_trials(), timeout=1)
    return not alive


def weights_of(folder: Path) -> Path:
    """Return the weights that the servers of a trial loaded."""
    return (folder / MODULE).with_name(WEIGHTS)


def by_hand(data: Prepared, weights: Path) -> tuple[float, int, int]:
    """Return nats, bytes and tokens of the validation rows, by NumPy in float64."""
    table = safetensors.numpy.load_file(weights)["table"].astype(np.float64)
    log_p = table - np.log(np.exp(table).sum(1, keepdims=True))
    rows = np.array(open_rows(data.validation, SEQUENCE_LEN), dtype=np.int64)
    bytes_of = Tokenizer.load(data.tokenizer).token_bytes()
    before, after = rows[:, :-1].ravel(), rows[:, 1:].ravel()
    counted = bytes_of[after] > 0
    nats = -log_p[before, after][counted].sum()
    return nats, bytes_of[after].sum(), counted.sum()


def test_the_judge_computes_from_logits_what_the_weights_give_by_hand(
    run: Runner, data: Prepared, tmp_path: Path
):
    result = run(module())

    assert result.status is Status.FINISHED, result.message
    assert result.score is not None
    nats, counted_bytes, tokens = by_hand(data, weights_of(tmp_path / "run"))
    assert result.score.tokens == tokens
    assert result.score.bytes == counted_bytes
    assert result.score.nats == pytest.approx(nats, rel=1e-5)
    assert result.score.val_bpb == pytest.approx(
        nats / (math.log(2) * counted_bytes), rel=1e-5
    )
    assert [step.step for step in result.curve] == [*range(1, len(result.curve) + 1)]
    assert result.curve[-1].tokens == len(result.curve) * 8 * SEQUENCE_LEN
    assert result.train_seconds is not None
    assert result.train_seconds >= QUICK.budget_seconds
    assert nothing_is_left()


def test_a_loss_that_is_not_a_number_is_a_nan_crash(run: Runner):
    result = run(module("loss = loss * float('nan')"))
    assert (result.status, result.crash) == (Status.CRASHED, Crash.NAN)
    assert result.phase == "train"
    assert result.score is None
    assert "the training loss is nan after" in result.message


def test_an_exception_is_reported_with_the_escaped_end_of_the_log(run: Runner):
    result = run(
        module(r"""
        print("\x1b[2J wiped \u202e txet")
        raise ValueError("no such \x07 layer")
        """)
    )

    assert (result.status, result.crash) == (Status.CRASHED, Crash.EXCEPTION)
    assert result.message == r"ValueError: no such \x07 layer"
    assert r"\x1b[2J wiped \u202e txet" in result.log_tail
    assert result.log_tail[-1] == r"ValueError: no such \x07 layer"


@pytest.mark.slow
def test_a_step_without_end_is_a_hang_with_a_traceback_of_every_thread(run: Runner):
    impatient = attrs.evolve(QUICK, budget_seconds=60.0, hang_seconds=1.0)

    result = run(module("time.sleep(600)"), impatient)

    assert (result.status, result.crash) == (Status.CRASHED, Crash.HANG)
    assert "the trainer gave no sign of life for 1." in result.message
    assert any("train.py" in line for line in result.log_tail)
    assert nothing_is_left()


@pytest.mark.slow
def test_a_server_that_falls_silent_is_named(run: Runner):
    sleeps = "time.sleep(600) if os.getcwd().endswith('server2')"
    source = module(answer=f"{sleeps} else self.table[tokens]")

    result = run(source, attrs.evolve(QUICK, hang_seconds=1.0))

    assert (result.status, result.crash) == (Status.CRASHED, Crash.HANG)
    assert "the server 2 gave no sign of life for 1." in result.message
    assert "(phase score, step" in result.message


@pytest.mark.slow
def test_a_trainer_whose_cpu_clock_hardly_runs_overruns_by_the_wall(run: Runner):
    sleeps = module("time.sleep(0.5)").replace("is_real and step == 1", "is_real")

    result = run(sleeps, attrs.evolve(QUICK, hang_seconds=1.0))

    assert (result.status, result.crash) == (Status.CRASHED, Crash.OVERRAN)
    assert re.fullmatch(
        r"training was still under way after [45] s, 0\.\d s before the end of its "
        r"budget of 0\.3 s of CPU time \(step \d\)\.",
        result.message,
    )


@pytest.mark.slow
def test_a_trainer_that_does_not_ask_any_more_overruns(run: Runner):
    goes_on = "while True: loss = loss + model(rows).sum()"

    result = run(module(goes_on))

    assert (result.status, result.crash) == (Status.CRASHED, Crash.OVERRAN)
    assert re.fullmatch(
        r"training was still under way 0\.[5-9] s after its budget of 0\.3 s \(step 0\)\.",
        result.message,
    )
    assert result.score is None
    assert nothing_is_left()


@pytest.mark.slow
def test_asking_for_more_memory_than_there_is_is_an_oom_crash(run: Runner):
    result = run(module("torch.empty(1 << 50)"))

    assert (result.status, result.crash) == (Status.CRASHED, Crash.OOM)


@pytest.mark.slow
def test_leaving_with_status_zero_and_no_result_is_not_a_success(run: Runner):
    result = run(module("os._exit(0)"))

    assert (result.status, result.crash) == (Status.CRASHED, Crash.EXCEPTION)
    assert result.message == (
        "the trainer ended with status 0 in phase train, without a result."
    )


@pytest.mark.slow
def test_a_batch_that_is_not_followed_by_a_loss_is_refused(run: Runner):
    result = run(module("continue"))

    assert (result.status, result.crash) == (Status.CRASHED, Crash.EXCEPTION)
    assert re.fullmatch(
        r"RuntimeError: train\(run\) took \d+ batches and logged \d+ losses: "
        r"run\.log\(loss\) belongs after each batch of run\.batches\(rows\)",
        result.message,
    )


@pytest.mark.slow
def test_a_module_may_change_its_batch_size_and_goes_on_in_its_rows(
    run: Runner, tmp_path: Path
):
    source = (
        module("pass")
        .replace(
            "enumerate(run.batches(8))",
            "enumerate(itertools.chain(itertools.islice(run.batches(8), 2), run.batches(4)))",
        )
        .replace("import os, sys, time", "import itertools, os, sys, time")
    )

    result = run(source)

    assert result.status is Status.FINISHED, (result.message, result.log_tail)
    tokens = [step.tokens // SEQUENCE_LEN for step in result.curve[:4]]
    assert tokens == [8, 16, 20, 24]


@pytest.mark.slow
def test_logits_of_another_shape_are_the_candidates_own_failure(run: Runner):
    result = run(module(answer="self.table[tokens][..., : 300 - (not self.training)]"))

    assert (result.status, result.crash) == (Status.CRASHED, Crash.EXCEPTION)
    assert result.phase == "score"
    assert "to logits of shape (64, 16, 299): expected (64, 16, 300)" in result.message


@pytest.mark.slow
def test_logits_that_are_not_finite_have_no_val_bpb(run: Runner):
    nan_in_evaluation = "self.table[tokens] / (1.0 if self.training else 0.0) * 0.0"

    result = run(module(answer=nan_in_evaluation))

    assert (result.status, result.crash) == (Status.CRASHED, Crash.NAN)
    assert result.score is None


@pytest.mark.slow
def test_a_model_whose_weights_do_not_fit_its_architecture_is_refused(run: Runner):
    result = run(module("model.extra = nn.Parameter(torch.zeros(3))"))

    assert (result.status, result.crash) == (Status.CRASHED, Crash.EXCEPTION)
    assert result.phase == "serve"
    assert "extra" in "\n".join(result.log_tail)


FINGERPRINT = """
import hashlib
bits = b"".join(w.detach().cpu().numpy().tobytes() for w in model.parameters())
drawn = torch.rand(3, device=run.device).cpu().numpy().tobytes() + rows.cpu().numpy().tobytes()
print("weights", hashlib.sha256(bits).hexdigest(), "drawn", hashlib.sha256(drawn).hexdigest())
"""


def started_from(run: Runner, folder: Path, steps: int, **named) -> str:
    """Return what a trial finds at its first hand-out, after a rehearsal of *steps*."""
    source = module(FINGERPRINT).replace("step == 1", "step == 0")
    # An edit that draws in every way there is, before and after the model is built.
    source = source.replace(
        "    optimizer =",
        "    import random, numpy; random.random(); numpy.random.rand()\n"
        "    torch.rand(7, device=run.device)\n    optimizer =",
    )
    profile = attrs.evolve(named.pop("profile", QUICK), rehearsal_steps=steps)
    result = run(source, profile, **named)
    assert result.status is Status.FINISHED, (result.message, result.log_tail)
    lines = (folder / "run" / LOG).read_text().splitlines()
    (folder / "run").rename(folder / f"after-{steps}")
    return next(line for line in lines if line.startswith("weights"))


def test_training_starts_as_if_there_had_been_no_rehearsal(run: Runner, tmp_path: Path):
    after_none = started_from(run, tmp_path, 0)

    after_three = started_from(run, tmp_path, 3)

    assert after_three == after_none


def test_the_clock_starts_at_the_first_hand_out_and_not_before(run: Runner):
    building = """
    until = time.process_time() + 1.0
    while time.process_time() < until:
        pass
    """
    slow_to_build = textwrap.indent(textwrap.dedent(building), "    ")

    result = run(
        module().replace("    optimizer =", f"{slow_to_build}\n    optimizer =")
    )

    # On the clock, it would have left nothing of the budget to train in.
    assert result.status is Status.FINISHED, (result.message, result.log_tail)
    assert result.curve


COMPILED = """
twice = torch.compile(lambda x: 2 * x, backend="eager", dynamic=False)
twice(torch.ones(3 if step < 2 else 4))
"""


def test_what_is_compiled_while_the_clock_runs_is_counted_and_nothing_else(run: Runner):
    source = module(COMPILED).replace("is_real and step == 1", "True")

    result = run(source, attrs.evolve(QUICK, rehearsal_steps=2))

    # The rehearsal has seen the shape of the first two steps, and not that of others.
    assert result.status is Status.FINISHED, (result.message, result.log_tail)
    assert result.compilations == 1


@pytest.mark.slow
def test_a_trial_starts_while_the_one_before_it_trains(
    data: Prepared, tmp_path: Path, zygote: Zygote
):
    stop, _keep = os.pipe()

    def start(name: str) -> LocalTrial:
        (tmp_path / name).mkdir()
        return LocalTrial.start(
            trial_of(module(), QUICK, data, cpu()),
            tmp_path / name,
            zygote=zygote,
            compile_cache=CompileCache(tmp_path / "compile"),
            stop_fd=stop,
        )

    first, second = start("first"), start("second")
    results = first.run(), second.run()

    assert [result.status for result in results] == [Status.FINISHED] * 2
    assert results[0].clock is not None
    assert results[1].clock is not None
    assert results[1].clock[0] > results[0].clock[1]
    assert results[1].ahead_seconds > results[0].ahead_seconds
    assert nothing_is_left()


def test_a_trial_that_is_not_wanted_any_more_leaves_nothing(
    data: Prepared, tmp_path: Path, zygote: Zygote
):
    stop, _keep = os.pipe()
    cache = CompileCache(tmp_path / "compile")
    trial = trial_of(module(), QUICK, data, cpu())
    (tmp_path / "run").mkdir()

    started = LocalTrial.start(
        trial, tmp_path / "run", zygote=zygote, compile_cache=cache, stop_fd=stop
    )
    pids = {name: child.pid() for name, child in started.watch.children.items()}
    running = [pid for pid in pids.values() if psutil.pid_exists(pid)]
    started.abandon()

    assert list(pids) == ["trainer", "server 1", "server 2", "judge"]
    assert len(running) == 4
    assert not any(map(psutil.pid_exists, pids.values()))
    assert nothing_is_left()


@pytest.mark.slow
def test_a_trial_is_bound_to_the_cores_of_its_device(run: Runner, tmp_path: Path):
    cores = sorted(os.sched_getaffinity(0))[:1]
    device = attrs.evolve(cpu(), cpus=tuple(cores))

    result = run(module("print('cores', os.sched_getaffinity(0))"), device=device)

    assert result.status is Status.FINISHED, (result.message, result.log_tail)
    assert f"cores {set(cores)}" in (tmp_path / "run" / LOG).read_text()


BROKEN = "raise RuntimeError('CUDA error: uncorrectable ECC error encountered')"


def test_what_the_machine_did_before_the_clock_is_not_the_candidates_crash(run: Runner):
    result = run(module(BROKEN).replace("is_real and step", "not is_real and step"))

    assert (result.status, result.crash) == (Status.INFRASTRUCTURE, None)


def test_once_the_clock_runs_what_a_trainer_says_of_the_machine_is_not_believed(
    run: Runner,
):
    result = run(module(BROKEN))

    assert (result.status, result.crash) == (Status.CRASHED, Crash.EXCEPTION)
    assert "uncorrectable ECC error" in result.message


# Who looks for them finds the descriptors that we talk through.
SAY = """
for fd in os.listdir("/proc/self/fd"):
    try:
        if os.readlink("/proc/self/fd/" + fd).startswith("pipe:"):
            os.write(int(fd), {line!r})
    except OSError:
        pass
"""


def saying(message: dict) -> str:
    """Return a module whose trainer sends *message* when it has trained a step."""
    return module(SAY.format(line=encode(message)))


@pytest.mark.parametrize(
    ("said", "when", "message"),
    [
        (
            {"event": "step", "loss_nats": 0.1},
            "rehearsal",
            "the trainer said 'step' in phase start.",
        ),
        (
            {"event": "step", "loss_nats": "low"},
            "training",
            "the trainer sent {'event': 'step', 'loss_nats': 'low'}.",
        ),
        (
            {"event": "ask", "rows": True},
            "training",
            "the trainer sent {'event': 'ask', 'rows': True}.",
        ),
        (
            {"event": "scored", "nats": 1.0, "bytes": 1, "tokens": 1},
            "training",
            "the trainer said 'scored' in phase train.",
        ),
        (
            {"event": "confined", "level": "landlock 99", "tried": 99},
            "training",
            "the trainer said 'confined' in phase train.",
        ),
        (
            {"event": "unconfined", "message": "try again"},
            "training",
            "the trainer said 'unconfined' in phase train.",
        ),
    ],
    ids=lambda value: value["event"] if isinstance(value, dict) else "",
)
def test_what_a_trainer_has_not_to_say_is_its_own_crash(
    run: Runner, said: dict, when: str, message: str
):
    source = saying(said)
    if when == "rehearsal":
        source = source.replace("is_real and step == 1", "not is_real and step == 1")

    result = run(source)

    assert (result.status, result.crash) == (Status.CRASHED, Crash.EXCEPTION)
    assert result.message == message
    assert result.curve == () or when == "training"


def test_a_trainer_that_somebody_kills_is_nobodys_crash(run: Runner):
    def kill(progress: Progress) -> None:
        if progress.phase == "train" and progress.loss_nats is None:
            (trainer,) = named("trainer")
            trainer.kill()

    result = run(module(), attrs.evolve(QUICK, budget_seconds=60.0), kill)

    assert result.status is Status.KILLED
    assert result.crash is None
    assert result.message == "the trainer was killed (SIGKILL) in phase train."


def test_a_daemon_that_a_trial_detached_is_gone_afterwards(run: Runner, tmp_path: Path):
    result = run(
        module("""
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                open("daemon.pid", "w").write(str(os.getpid()))
                time.sleep(600)
            os._exit(0)
        """)
    )

    daemon = int((tmp_path / "run" / "trainer" / "daemon.pid").read_text())
    assert result.status is Status.FINISHED, (result.message, result.log_tail)
    assert result.left_behind == 1
    assert not psutil.pid_exists(daemon)


@pytest.mark.slow
def test_a_trial_that_starts_processes_without_end_is_ended_with_all_of_them(
    run: Runner,
):
    bomb = """
    torch.set_num_threads(1)
    while os.fork() or True:
        time.sleep(0.001)
    """

    result = run(module(bomb), attrs.evolve(QUICK, budget_seconds=60.0))

    assert (result.status, result.crash) == (Status.CRASHED, Crash.EXCEPTION)
    assert re.fullmatch(
        r"the trial runs [\d,]+ processes: at most 512\.", result.message
    ), result.message
    assert named("trainer") == []


def test_the_end_of_the_session_ends_a_trial_at_once(run: Runner):
    stop_fd, write_fd = os.pipe()

    def stop(progress: Progress) -> None:
        if progress.loss_nats is not None:
            os.write(write_fd, b"x")

    with pytest.raises(Stopped):
        run(module(), attrs.evolve(QUICK, budget_seconds=60.0), stop, stop_fd)

    assert nothing_is_left()
    os.close(stop_fd)
    os.close(write_fd)


SESSION = """
import os, sys, json
from pathlib import Path
import attrs
from core.launch.compile_cache import CompileCache
from core.launch.local import MAINS, LocalTrial
from core.launch import Trial
from core.process.child import Zygote
from core.device import cpu
from core.profile import CPU
settings = json.loads(sys.argv[1])
profile = attrs.evolve(CPU, budget_seconds=600.0)
trial = Trial(run_id="x", seed=0, profile=profile, device=cpu(), project=Path(settings["project"]),
    source=settings["source"], training=Path(settings["training"]), validation=Path(settings["validation"]),
    tokenizer=Path(settings["tokenizer"]), sequence_len=16, vocab_size=300)
def show(progress):
    if progress.loss_nats is not None:
        print("training", flush=True)
folder = Path(settings["folder"]); folder.mkdir()
zygote = Zygote(Path(settings["project"]), tuple(MAINS.values()))
cache = CompileCache(folder / "compile")
LocalTrial.start(trial, folder, zygote=zygote, compile_cache=cache, stop_fd=os.pipe()[0], show=show).run()
"""


@pytest.mark.slow
def test_sigkill_to_the_session_leaves_no_process_behind(
    data: Prepared, tmp_path: Path
):
    daemon = """
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
    """
    settings = {
        "project": str(ROOT),
        "source": module(daemon),
        "training": str(data.training),
        "validation": str(data.validation),
        "tokenizer": str(data.tokenizer),
        "folder": str(tmp_path / "run"),
    }
    session = subprocess.Popen(
        [sys.executable, "-c", SESSION, json.dumps(settings)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    assert session.stdout is not None
    for _ in range(5):  # steps: the daemon of the second is there
        session.stdout.readline()
    children = psutil.Process(session.pid).children(recursive=True)

    session.send_signal(signal.SIGKILL)
    session.wait()
    session.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=30)

    # The zygote, four wardens, four children, one daemon.
    assert len(children) >= 10
    assert alive == []


def test_the_processes_of_a_trial_end_side_by_side(zygote: Zygote, tmp_path: Path):
    inside = Inside(zygote, tmp_path)
    children = {name: inside.start(None, sleep) for name in ("first", "second")}
    watch = Watch(profile=CPU, stop_fd=-1, folders=[], show=lambda progress: None)
    watch.children.update(children)
    # The first cannot be ended before the second one has been.
    warden = psutil.Process(psutil.Process(children["first"].pid()).ppid())
    second = os.pidfd_open(children["second"].pid())
    warden.suspend()

    def go_on() -> None:
        select.select([second], [], [])
        warden.resume()

    waiting = threading.Thread(target=go_on)
    waiting.start()

    watch.end()

    waiting.join()
    os.close(second)
    assert [child.closed for child in children.values()] == [True, True]


@pytest.mark.slow
def test_the_judge_keeps_to_its_own_log(run: Runner, tmp_path: Path):
    result = run(module("print('from the trainer')"))

    assert result.status is Status.FINISHED, result.message
    assert "from the trainer" in (tmp_path / "run" / LOG).read_text()
    assert (tmp_path / "run" / "judge.txt").read_text() == ""


# --- what a trainer must not do


def test_a_model_that_was_trained_before_its_clock_started_is_refused(run: Runner):
    result = run(module().replace("run.log(loss)", "run.log(loss / 100)"))

    assert (result.status, result.crash) == (Status.INVALID, None)
    assert re.fullmatch(
        r"the first step's loss is 0\.0\d nats, and a model that has seen nothing starts "
        r"near ln V = 5\.70: it was trained before its clock started\.",
        result.message,
    )
    assert result.score is None


def test_a_loss_that_no_batch_was_handed_out_for_is_refused(run: Runner):
    result = run(module("run.log(loss); run.log(loss)"))

    assert (result.status, result.crash) == (Status.CRASHED, Crash.EXCEPTION)
    assert result.message == "the trainer logged 3 losses for 2 batches."


SHRINK = """
for fd in os.listdir("/proc/self/fd"):
    try:
        if os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:"):
            os.ftruncate(int(fd), 0)
    except PermissionError:
        print("it keeps its size")
    except FileNotFoundError:
        pass  # it listed the others
"""


def test_memory_that_is_shared_cannot_be_taken_from_under_who_writes_into_it(
    run: Runner, tmp_path: Path
):
    result = run(module(SHRINK))

    assert result.status is Status.FINISHED, (result.message, result.log_tail)
    assert "it keeps its size" in (tmp_path / "run" / LOG).read_text()


def test_a_trainer_that_asks_and_does_not_read_stops_nobody(run: Runner):
    asks = 10_000 * encode({"event": "ask", "rows": 8})  # their answers fill a pipe

    result = run(module(SAY.format(line=asks) + "time.sleep(600)"))

    assert (result.status, result.crash) == (Status.CRASHED, Crash.EXCEPTION)
    assert result.message == "the trainer does not read what it is told."


def test_what_a_trainer_says_of_its_failure_is_cut(run: Runner):
    said = {"event": "failed", "crash": "exception", "message": "x" * 100_000}

    result = run(saying(said))

    assert (result.status, result.crash) == (Status.CRASHED, Crash.EXCEPTION)
    assert result.message == "x" * 500


HELPED = """
if os.fork() == 0:
    if DETACHED and os.fork():
        os._exit(0)
    while time.process_time() < 2.0:
        pass
    os._exit(0)
os.wait()
time.sleep(3.0 if DETACHED else 0.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("detached", [False, True])
def test_processes_that_compute_for_a_trainer_do_not_escape_its_clock(
    run: Runner, detached: bool
):
    result = run(module(HELPED.replace("DETACHED", str(detached))))

    assert (result.status, result.crash) == (Status.INVALID, None)
    assert re.fullmatch(
        r"processes that the trainer started used [12]\.\d s of CPU time beside its "
        r"clock: at most 0\.5\.",
        result.message,
    )
    assert result.score is None


COMPUTES_ON = """
    def state_dict(self, *arguments, **options):
        def compute():
            while True:
                pass

        threading.Thread(target=compute, daemon=True).start()
        time.sleep(600)

    def forward("""


@pytest.mark.slow
def test_a_thread_that_computes_on_while_the_weights_are_awaited_overruns(run: Runner):
    source = module().replace("import os,", "import threading, os,")

    result = run(source.replace("\n    def forward(", COMPUTES_ON))

    assert (result.status, result.crash) == (Status.CRASHED, Crash.OVERRAN)
    assert result.phase == "save"
    assert re.fullmatch(
        r"there were no weights 1\.\d s after its budget of 0\.3 s \(step \d+\)\.",
        result.message,
    )
    assert result.score is None


WRITE = """
os.makedirs(os.environ["FOLDER"], exist_ok=True)
for number in range(5):
    with open(os.path.join(os.environ["FOLDER"], f"{number}.bin"), "wb") as file:
        file.truncate(20 << 20)
"""


@pytest.mark.parametrize("folder", ["TMPDIR", "TORCHINDUCTOR_CACHE_DIR"])
def test_a_trial_that_fills_the_disk_with_many_files_is_ended(run: Runner, folder: str):
    little = attrs.evolve(QUICK, budget_seconds=60.0, file_mib=64.0)

    result = run(module(WRITE.replace("FOLDER", folder)), little)

    assert (result.status, result.crash) == (Status.CRASHED, Crash.EXCEPTION)
    assert result.message == "the trial wrote 100 MiB to its folders: at most 64."


NEST = """
for _ in range(LEVELS):
    os.mkdir("d")
    os.chdir("d")
for name in "ab":
    open(name, "wb").truncate(10 << 20)
"""


@pytest.fixture
def removed(tmp_path: Path) -> Iterator[Path]:
    """Return the run folder, which pytest's own way of removing does not get through."""
    yield tmp_path / "run"
    remove(tmp_path / "run")


def test_a_trial_that_nests_its_folders_is_looked_at_and_removed(
    run: Runner, removed: Path
):
    little = attrs.evolve(QUICK, budget_seconds=60.0, file_mib=16.0)

    result = run(module(NEST.replace("LEVELS", "1500")), little)
    remove(removed)

    assert (result.status, result.crash) == (Status.CRASHED, Crash.EXCEPTION)
    assert result.message == "the trial wrote 20 MiB to its folders: at most 16."
    assert not removed.exists()


def test_a_trial_that_hides_files_deeper_than_a_path_is_long_is_ended(
    run: Runner, removed: Path
):
    long = attrs.evolve(QUICK, budget_seconds=60.0)

    result = run(module(NEST.replace("LEVELS", "3000")), long)

    assert (result.status, result.crash) == (Status.CRASHED, Crash.EXCEPTION)
    assert result.message == "the trial nests its folders deeper than a path is long."


# --- what it leaves in the place of its weights

LEAVE = """
import pathlib, safetensors.torch
saves = safetensors.torch.save_model
def save_model(model, path):
    path = pathlib.Path(path)
    DEED
safetensors.torch.save_model = save_model
"""


def leaving(deed: str) -> str:
    """Return a module whose trainer leaves something else, or in another way."""
    return module(LEAVE.replace("DEED", deed))


@pytest.mark.parametrize(
    ("deed", "found"),
    [
        ("path.mkdir()", "drwxr-xr-x, 2 links"),
        ("saves(model, 'kept'); os.link('kept', path)", "-rw-------, 2 links"),
        ("path.symlink_to('/etc/hostname')", "lrwxrwxrwx, 1 links"),
        ("os.mkfifo(path)", "prw-r--r--, 1 links"),
    ],
    ids=["folder", "hard link", "symbolic link", "pipe"],
)
def test_what_is_no_plain_file_of_its_own_is_not_taken_for_weights(
    run: Runner, deed: str, found: str
):
    # The sandbox would not let it make a symbolic link or a pipe.
    result = run(leaving(deed), is_confined=False)

    assert (result.status, result.crash) == (Status.INVALID, None)
    assert result.message == (
        f"the trainer left something else in the place of its weights: {found}."
    )
    assert result.score is None


def test_a_trainer_that_leaves_no_weights_has_crashed(run: Runner):
    result = run(leaving("pass"))

    assert (result.status, result.crash) == (Status.CRASHED, Crash.EXCEPTION)
    assert result.message == ("the trainer left no weights: No such file or directory.")


RUNS_CODE = """
class Code:
    def __reduce__(self):
        return print, ("it was run",)
torch.save({"table": Code()}, path)
"""


def test_a_pickle_in_the_place_of_weights_is_not_run(run: Runner, tmp_path: Path):
    result = run(leaving(textwrap.indent(RUNS_CODE, "    ").strip()))

    assert (result.status, result.crash) == (Status.CRASHED, Crash.EXCEPTION)
    assert result.phase == "serve"
    assert result.message.startswith("SafetensorError: ")
    assert "it was run" not in (tmp_path / "run" / LOG).read_text()


NOT_A_NUMBER = (
    "with torch.no_grad(): model.table[7, 7] = float('nan')\n    saves(model, path)"
)


def test_a_weight_that_is_not_finite_is_refused(run: Runner):
    result = run(leaving(NOT_A_NUMBER))

    assert (result.status, result.crash) == (Status.CRASHED, Crash.EXCEPTION)
    assert result.message == "NonFiniteWeights: the weight table is not finite"


# It says that it has saved, and writes into the same file afterwards.
GOES_ON = f"""
safetensors.torch.save_model(model, "weights.safetensors")
held = open("weights.safetensors", "r+b")
{{say}}
time.sleep(0.5)
held.seek(-4 * {VOCAB_SIZE * VOCAB_SIZE}, os.SEEK_END)
held.write(bytes(4 * {VOCAB_SIZE * VOCAB_SIZE}))
held.close()
os._exit(0)
"""


def test_what_a_trainer_writes_after_it_said_that_it_had_saved_is_not_scored(
    run: Runner, tmp_path: Path
):
    trained = {"event": "trained", "peak_mib": None, "compilations": 0}
    line = encode(trained) + encode({"event": "saved"})
    source = module(GOES_ON.format(say=SAY.format(line=line)))

    result = run(source.replace("import os,", "import safetensors.torch, os,"))

    assert result.status is Status.FINISHED, (result.message, result.log_tail)
    left = safetensors.numpy.load_file(tmp_path / "run" / "trainer" / WEIGHTS)
    scored = safetensors.numpy.load_file(weights_of(tmp_path / "run"))
    assert not left["table"].any()
    assert scored["table"].all()


# --- the sandbox, the audit


def test_the_run_says_how_its_processes_were_confined(run: Runner):
    result = run(module())

    assert result.status is Status.FINISHED, (result.message, result.log_tail)
    assert result.sandbox == level(landlock_abi())


def test_a_trial_without_a_sandbox_cannot_pass_for_a_failure_of_the_machine(
    run: Runner,
):
    said = {"event": "unconfined", "message": "try again"}

    result = run(saying(said), is_confined=False)

    assert (result.status, result.crash) == (Status.CRASHED, Crash.EXCEPTION)
    assert result.message == "the trainer said 'unconfined' in phase train."


def test_a_trial_without_a_sandbox_says_so(run: Runner):
    result = run(
        module(
            "open('/dev/shm/deltaspec-test', 'w'); os.remove('/dev/shm/deltaspec-test')"
        ),
        is_confined=False,
    )

    assert result.status is Status.FINISHED, (result.message, result.log_tail)
    assert result.sandbox == "none"


def test_a_trainer_that_does_not_say_how_it_is_confined_is_refused(
    data: Prepared, tmp_path: Path, zygote: Zygote, monkeypatch: pytest.MonkeyPatch
):
    stop, _keep = os.pipe()
    (tmp_path / "run").mkdir()
    # Its processes are told nothing of a sandbox, and we expect one.
    trial = attrs.evolve(trial_of(module(), QUICK, data, cpu()), is_confined=False)
    started = LocalTrial.start(
        trial,
        tmp_path / "run",
        zygote=zygote,
        compile_cache=CompileCache(tmp_path / "compile"),
        stop_fd=stop,
    )
    for name in ("trainer", *SERVERS):
        started.watch.children[name].is_confined = True

    result = started.run()

    assert (result.status, result.crash) == (Status.CRASHED, Crash.EXCEPTION)
    assert re.fullmatch(
        r"the (trainer|server [12]) said 'ready' in phase start\.", result.message
    )


AHEAD = "self.table[torch.roll(tokens, -1, 1)]"
COMPANY = "self.table[tokens] + self.table[tokens].mean(0, keepdim=True)"


@pytest.mark.parametrize(
    ("answer", "breach"),
    [
        (
            AHEAD,
            r"with the tokens? (at position \d+|from position \d+ on) replaced, position "
            r"\d+ answers [\d.]+ nats worse; so do \d+ of \d+ probes just before their "
            r"alteration, and \d+ of \d+ elsewhere: the model looks ahead\.",
        ),
        (
            COMPANY,
            r"\d+% of the positions far from any alteration answer otherwise beside other "
            r"rows, by up to [\d.]+ nats: a row's answer depends on its company, on its "
            r"future, or on what was asked before\.",
        ),
    ],
    ids=["looks ahead", "looks at other rows"],
)
def test_a_model_that_sees_what_it_must_not_has_no_val_bpb(
    run: Runner, answer: str, breach: str
):
    result = run(module(answer=answer))

    assert (result.status, result.crash, result.phase) == (
        Status.INVALID,
        None,
        "score",
    )
    assert re.fullmatch(breach, result.message)
    assert result.score is None
    assert result.audit is not None
    assert result.audit.breach == result.message
    assert result.audit.worst_nats > 0.1


def test_the_audit_of_an_honest_model_is_part_of_the_result(run: Runner):
    result = run(module())

    assert result.audit is not None
    assert result.audit.breach == ""
    assert result.audit.worst_nats <= 1e-4  # of float32
    assert result.audit.probes >= 25
    assert result.audit.positions >= 100


@pytest.fixture
def gauge() -> Iterator[Gauge]:
    """Return the gauge of the first GPU."""
    with Gauge.on(gpus()[0], shared=False) as opened:
        yield opened


ON_GPU = attrs.evolve(QUICK, clock="wall", load_seconds=GPU.load_seconds)


@pytest.mark.gpu
def test_a_gpu_trial_is_scored_as_its_weights_are_by_hand_and_leaves_no_memory(
    run: Runner, data: Prepared, tmp_path: Path, gauge: Gauge
):
    result = run(module(), ON_GPU, device=gauge.device, gauge=gauge)

    assert result.status is Status.FINISHED, (result.message, result.log_tail)
    assert result.score is not None
    nats, counted_bytes, tokens = by_hand(data, weights_of(tmp_path / "run"))
    assert result.score.tokens == tokens
    assert result.score.bytes == counted_bytes
    # Both are float32 sums; a GPU adds in another order.
    assert result.score.nats == pytest.approx(nats, rel=1e-5)
    assert result.peak_mib is not None
    assert result.peak_mib < 1024  # of the GPU; the process itself resides in more
    assert result.rehearsal_mib is not None
    assert result.rehearsal_mib < 128  # cuBLAS keeps 64 MiB to work in
    assert result.conditions.driver
    assert result.conditions.power_watts
    assert result.device_fault == ""
    assert gauge.gpu.used_mib() <= gauge.mark_mib + SLACK_MIB
    assert nothing_is_left()


@pytest.mark.gpu
def test_cpu_and_cuda_judges_agree_on_the_same_logits():
    code = """
import torch
from core.judge import losses
torch.manual_seed(0)
logits = 15 * torch.tanh(torch.randn(4, 2048, 8192))
targets = torch.randint(8192, (4, 2048))
here = losses(logits, targets).double().sum()
there = losses(logits.cuda(), targets.cuda()).double().sum().cpu()
assert abs(here / there - 1) < 1e-6, (here, there)
"""

    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.gpu
def test_training_on_a_gpu_starts_as_if_there_had_been_no_rehearsal(
    run: Runner, tmp_path: Path, gauge: Gauge
):
    on_gpu = {"profile": ON_GPU, "device": gauge.device, "gauge": gauge}

    after_none = started_from(run, tmp_path, 0, **on_gpu)
    after_three = started_from(run, tmp_path, 3, **on_gpu)

    assert after_three == after_none


@pytest.mark.gpu
def test_the_training_module_compiles_all_in_its_rehearsal(run: Runner, gauge: Gauge):
    sizes = {
        "DEPTH": 4,
        "ASPECT_RATIO": 32,
        "HEAD_DIM": 64,
        "VOCAB_SIZE": VOCAB_SIZE,
        "SEQUENCE_LEN": SEQUENCE_LEN,
        "TOTAL_BATCH_TOKENS": 64 * SEQUENCE_LEN,
        "MICRO_BATCH_ROWS": 32,
    }
    source = (ROOT / "core" / "training" / "train.py").read_text()
    for name, value in sizes.items():
        source, found = re.subn(rf"(?m)^{name} = .*", f"{name} = {value}", source)
        assert found == 1
    profile = attrs.evolve(ON_GPU, budget_seconds=2.0, rehearsal_steps=6)

    result = run(
        source,
        attrs.evolve(profile, startup_seconds=300.0),
        device=gauge.device,
        gauge=gauge,
    )

    assert result.status is Status.FINISHED, (result.message, result.log_tail)
    assert len(result.curve) > 6
    assert result.compilations == 0
    assert result.rehearsal_mib is not None
    assert result.rehearsal_mib < 128  # cuBLAS keeps 64 MiB to work in


@pytest.mark.gpu
def test_a_gpu_that_is_asked_for_too_much_memory_is_an_oom_crash(
    run: Runner, gauge: Gauge
):
    source = module("torch.empty(1 << 45, device=run.device)")

    result = run(source, ON_GPU, device=gauge.device, gauge=gauge)

    assert (result.status, result.crash) == (Status.CRASHED, Crash.OOM)
    assert re.fullmatch(
        r"OutOfMemoryError: 131072\.00 GiB was asked for, and [\d.]+ of [\d.]+ GiB were "
        "free",
        result.message,
    )


@pytest.mark.gpu
def test_a_batch_that_does_not_fit_is_told_which_would(run: Runner, gauge: Gauge):
    source = module().replace("run.batches(8)", "run.batches(256)")
    source = source.replace(
        "        loss =",
        "        held = torch.empty(MICRO_BATCH_ROWS << 30, dtype=torch.uint8, "
        "device=run.device)\n        loss =",
    )
    constants = f"TOTAL_BATCH_TOKENS = {256 * SEQUENCE_LEN}\nMICRO_BATCH_ROWS = 256\n"

    result = run(constants + source, ON_GPU, device=gauge.device, gauge=gauge)

    assert (result.status, result.crash) == (Status.CRASHED, Crash.OOM)
    assert re.fullmatch(
        r"OutOfMemory: 256\.00 GiB was asked for, and [\d.]+ of [\d.]+ GiB were free, in "
        r"rehearsal; MICRO_BATCH_ROWS=256 needs about 256\.\d GiB, "
        r"MICRO_BATCH_ROWS=(64|128) would fit "
        r"\(by what micro-batches of 16 and 32 took\)",
        result.message,
    )


FOREIGN = """
import sys, torch
held = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print("there", flush=True)
open(sys.argv[1]).read()
"""
# Its parent ends at once, so that it is nobody's child.
ORPHAN = """
import subprocess, sys
command = [sys.executable, "-c", *sys.argv[1:]]
orphan = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
assert orphan.stdout.readline() == b"there\\n"
print(orphan.pid)
"""


@pytest.mark.gpu
@pytest.mark.parametrize("shared", [False, True])
def test_a_process_of_somebody_else_is_refused_or_recorded(
    run: Runner, tmp_path: Path, shared: bool
):
    until, pids = tmp_path / "until", []
    os.mkfifo(until)

    def arrive(progress: Progress) -> None:
        if progress.loss_nats is not None and not pids:
            command = [sys.executable, "-c", ORPHAN, FOREIGN, str(until)]
            pids.append(int(subprocess.check_output(command)))

    with Gauge.on(gpus()[0], shared=shared) as gauge:
        result = run(
            module(),
            attrs.evolve(ON_GPU, budget_seconds=30.0),
            arrive,
            device=gauge.device,
            gauge=gauge,
        )
    ended = os.pidfd_open(pids[0])
    until.write_text("")  # it has read until here
    select.select([ended], [], [])

    if shared:
        assert result.status is Status.FINISHED, (result.message, result.log_tail)
        assert result.device_fault == ""
        assert result.conditions.foreign_mib is not None
        assert result.conditions.foreign_mib > 1024
    else:
        assert result.status is Status.INFRASTRUCTURE
        assert result.score is None
        assert f"process {pids[0]} (python" in result.device_fault
        assert (
            f"came onto {gauge.device.label} while the trial trained" in result.message
        )
