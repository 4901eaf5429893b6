"""What is seen of a GPU around a trial; a stand-in for the driver says what to see."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import psutil
import pytest

from core.device import DeviceFailed, cpu, gpus
from core.launch import Conditions, Result, Status
from core.launch import gauge as gauge_module
from core.launch.compile_cache import CompileCache
from core.launch.gauge import Gauge, Occupied
from core.launch.local import LocalTrial
from core.launch.watch import Progress
from core.process.child import Zygote
from tests.nvml import LOST, FakeDriver, a_gpu
from tests.test_launch import QUICK, data, module, nothing_is_left, trial_of

__all__ = ["data"]  # a fixture

LABEL = "GPU-44444444 (NVIDIA H200)"
NOBODY = 4_194_305  # a pid beyond what Linux counts to

# A process that is nobody's child, as those of other users are.
ORPHAN = """
import subprocess
sleeps = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
print(sleeps.pid)
"""


@pytest.fixture
def stranger() -> Iterator[int]:
    """Return the pid of a process that is not below us."""
    pid = int(subprocess.check_output([sys.executable, "-c", ORPHAN]))
    while psutil.Process(pid).name() != "sleep":  # it has yet to become that
        pass
    yield pid
    os.kill(pid, signal.SIGKILL)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test wait for the driver, and every look look."""
    monkeypatch.setattr(gauge_module, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(gauge_module, "LOOK_SECONDS", 0.0)


Opener = Callable[..., Gauge]


@pytest.fixture
def opened(fake_gpus: FakeDriver) -> Iterator[Opener]:
    """Return what opens the gauge of a GPU, as it is before a session."""
    with contextlib.ExitStack() as stack:

        def opened(*, shared: bool = False, **said: object) -> Gauge:
            fake_gpus(a_gpu(4, **said))
            return stack.enter_context(Gauge.on(gpus()[0], shared=shared))

        yield opened


def test_what_was_seen_is_told_as_means_and_the_largest_temperature(
    opened: Opener, fake_gpus: FakeDriver
):
    gauge = opened()

    gauge.begin()
    for mhz, milliwatts, celsius in [(1980, 700_000, 60), (1755, 650_000, 71)]:
        fake_gpus(a_gpu(4, sm_mhz=mhz, milliwatts=milliwatts, celsius=celsius))
        gauge.look()

    assert gauge.conditions() == Conditions(
        driver="580.65.06",
        sm_mhz=1867.5,
        power_watts=675.0,
        temperature_c=71,
        foreign_mib=0.0,
    )


def test_each_trial_is_told_of_alone(
    opened: Opener, fake_gpus: FakeDriver, stranger: int
):
    gauge = opened(shared=True)
    gauge.begin()
    fake_gpus(a_gpu(4, celsius=90, uncorrected=1, compute={stranger: 100}))
    gauge.look()
    fake_gpus(a_gpu(4, celsius=40, uncorrected=1))

    gauge.begin()
    gauge.look()

    assert gauge.conditions().temperature_c == 40
    assert gauge.conditions().foreign_mib == 0.0
    assert gauge.errors() == ""


def test_what_a_gpu_does_not_tell_is_not_told(opened: Opener):
    said = dict.fromkeys(("sm_mhz", "milliwatts", "celsius", "uncorrected", "compute"))
    gauge = opened(**said)

    gauge.begin()
    gauge.look()

    assert gauge.conditions() == Conditions(driver="580.65.06", foreign_mib=0.0)
    assert gauge.errors() == ""


def test_a_look_is_not_repeated_at_once(
    opened: Opener, fake_gpus: FakeDriver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gauge_module, "LOOK_SECONDS", 600.0)
    gauge = opened(celsius=30)
    gauge.begin()
    gauge.look()

    fake_gpus(a_gpu(4, celsius=80))
    gauge.look()

    assert gauge.conditions().temperature_c == 30


# --- other processes


def test_a_process_that_comes_onto_the_gpu_is_named(
    opened: Opener, fake_gpus: FakeDriver, stranger: int
):
    gauge = opened()
    gauge.begin()
    gauge.look()
    fake_gpus(a_gpu(4, compute={stranger: 1536}))

    with pytest.raises(Occupied) as caught:
        gauge.look()

    assert str(caught.value) == (
        f"process {stranger} (sleep, 1,536 MiB) came onto {LABEL} while the trial trained"
    )


def test_each_process_is_named_with_its_own_memory_where_that_is_known(
    opened: Opener, fake_gpus: FakeDriver, stranger: int
):
    gauge = opened(compute={stranger: 100}, graphics={1: None})
    first = psutil.Process(1).name()

    with pytest.raises(Occupied) as caught:
        gauge.look()

    assert str(caught.value) == (
        f"process 1 ({first}) and process {stranger} (sleep, 100 MiB) came onto {LABEL} "
        "while the trial trained"
    )


def test_our_own_processes_are_no_strangers_nor_are_those_that_nobody_sees(
    opened: Opener, fake_gpus: FakeDriver
):
    gauge = opened()
    with subprocess.Popen(["sleep", "600"]) as below_us:
        ours = {os.getpid(): 10, below_us.pid: 20, NOBODY: 30}
        fake_gpus(a_gpu(4, compute=ours))

        gauge.look()
        below_us.kill()

    assert gauge.conditions().foreign_mib == 0.0


def test_on_a_shared_gpu_the_most_memory_that_others_had_is_recorded(
    opened: Opener, fake_gpus: FakeDriver, stranger: int
):
    gauge = opened(shared=True)
    gauge.begin()
    for mib in (100, 300, 200):
        fake_gpus(a_gpu(4, used_mib=mib, compute={stranger: mib, os.getpid(): 5}))
        gauge.look()

    assert gauge.conditions().foreign_mib == 300.0
    assert gauge.residue() == ""  # whose memory it is, nobody can tell


# --- a GPU that is not sound


def test_memory_that_does_not_come_back_is_told_of(
    opened: Opener, fake_gpus: FakeDriver
):
    gauge = opened(used_mib=3)
    gauge.begin()
    fake_gpus(a_gpu(4, used_mib=2048))

    assert gauge.residue() == (
        f"{LABEL} has 2,048 MiB in use after a trial, and had 3 MiB before"
    )


def test_what_the_driver_keeps_is_no_residue(opened: Opener, fake_gpus: FakeDriver):
    gauge = opened(used_mib=3)
    fake_gpus(a_gpu(4, used_mib=3 + int(gauge_module.SLACK_MIB)))

    assert gauge.residue() == ""


def test_the_driver_has_time_to_give_memory_back(
    opened: Opener, fake_gpus: FakeDriver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gauge_module, "SETTLE_SECONDS", 60.0)
    gauge = opened(used_mib=3)
    fake_gpus(a_gpu(4, used_mib=2048))
    monkeypatch.setattr(
        gauge_module.time, "sleep", lambda seconds: fake_gpus(a_gpu(4, used_mib=3))
    )

    assert gauge.residue() == ""


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (2, 2, ""),
        (0, 1, f"{LABEL} had 1 uncorrectable memory error during the trial"),
        (2, 5, f"{LABEL} had 3 uncorrectable memory errors during the trial"),
    ],
)
def test_memory_errors_that_come_during_a_trial_are_told_of(
    opened: Opener, fake_gpus: FakeDriver, before: int, after: int, said: str
):
    gauge = opened(uncorrected=before)
    gauge.begin()

    fake_gpus(a_gpu(4, uncorrected=after))

    assert gauge.errors() == said


def test_a_gpu_that_falls_off_the_bus_is_told_of_whoever_asks(
    opened: Opener, fake_gpus: FakeDriver
):
    lost = f"{LABEL}: NVML says GPU is lost"
    gauge = opened()
    gauge.begin()
    fake_gpus(a_gpu(4, error=LOST))

    for ask in (gauge.begin, gauge.look):
        with pytest.raises(DeviceFailed) as caught:
            ask()
        assert str(caught.value) == lost
    assert gauge.errors() == gauge.residue() == lost


# --- a real trial, on the CPU, whose gauge is that of a GPU

LONG = attrs.evolve(QUICK, budget_seconds=60.0)


@pytest.fixture
def run(data, zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return what runs a trial in which *then* happens after the first step."""
    monkeypatch.setattr(gauge_module, "LOOK_SECONDS", 0.05)

    def run(gauge: Gauge, then: Callable[[], None], profile=QUICK) -> Result:
        never, keep = os.pipe()
        left = [then]

        def show(progress: Progress) -> None:
            if progress.loss_nats is not None and left:
                left.pop()()

        result = LocalTrial.start(
            trial_of(module(), profile, data, cpu()),
            tmp_path,
            zygote=zygote,
            compile_cache=CompileCache(tmp_path / "compile"),
            stop_fd=never,
            show=show,
            gauge=gauge,
        ).run()
        os.close(never)
        os.close(keep)
        return result

    return run


@pytest.mark.slow
def test_a_number_is_kept_although_its_trial_left_memory_behind(
    run, opened: Opener, fake_gpus: FakeDriver
):
    gauge = opened(used_mib=3)

    result = run(gauge, lambda: fake_gpus(a_gpu(4, used_mib=2048, celsius=66)))

    assert result.status is Status.FINISHED, (result.message, result.log_tail)
    assert result.score is not None
    assert result.device_fault == (
        f"{LABEL} has 2,048 MiB in use after a trial, and had 3 MiB before"
    )
    assert result.conditions.temperature_c == 66


def test_a_gpu_that_is_lost_in_the_middle_is_nobodys_crash_and_is_not_used_again(
    run, opened: Opener, fake_gpus: FakeDriver
):
    result = run(opened(), lambda: fake_gpus(a_gpu(4, error=LOST)), LONG)

    assert (result.status, result.crash) == (Status.INFRASTRUCTURE, None)
    assert result.phase == "train"
    assert result.score is None
    assert result.device_fault == "GPU-44444444 (NVIDIA H200): NVML says GPU is lost"
    assert result.message == "GPU-44444444 (NVIDIA H200): NVML says GPU is lost."
    assert nothing_is_left()


@pytest.mark.slow
def test_a_number_from_a_gpu_with_memory_errors_is_none(
    run, opened: Opener, fake_gpus: FakeDriver
):
    result = run(opened(), lambda: fake_gpus(a_gpu(4, uncorrected=2)))

    assert (result.status, result.crash) == (Status.INFRASTRUCTURE, None)
    assert result.score is None
    assert result.message == (
        f"{LABEL} had 2 uncorrectable memory errors during the trial."
    )
    assert result.device_fault + "." == result.message


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_a_stranger_ends_a_trial_or_is_recorded_with_it(
    run, opened: Opener, fake_gpus: FakeDriver, stranger: int, shared: bool
):
    gauge = opened(shared=shared)

    result = run(gauge, lambda: fake_gpus(a_gpu(4, compute={stranger: 1024})))

    if shared:
        assert result.status is Status.FINISHED, (result.message, result.log_tail)
        assert result.conditions.foreign_mib == 1024.0
        assert result.device_fault == ""
    else:
        assert (result.status, result.score) == (Status.INFRASTRUCTURE, None)
        assert result.message == (
            f"process {stranger} (sleep, 1,024 MiB) came onto {LABEL} while the trial "
            "trained."
        )
        assert result.device_fault + "." == result.message
    assert nothing_is_left()
