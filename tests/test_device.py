"""GPUs as NVML knows them; pynvml asks, and a stand-in for the driver answers."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.device import (
    Device,
    DeviceFailed,
    Gpu,
    Process,
    Reading,
    cpu,
    gpus,
    look,
    share_cores,
    visible,
)
from tests.conftest import ROOT
from tests.nvml import LOST, FakeDriver, a_gpu

UUIDS = ("GPU-11111111-89ab", "GPU-11222222-89ab", "GPU-33333333-89ab")
CORES = frozenset(os.sched_getaffinity(0))


# --- which GPUs there are


def test_a_machine_without_a_driver_has_no_gpu(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1), init_error=9)  # NVML_ERROR_DRIVER_NOT_LOADED

    assert gpus() == ()
    assert look().failed == ()


def test_a_gpu_is_described_by_what_runs_are_compared_within(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(4))

    assert gpus() == (
        Device(
            id="GPU-44444444-89ab-cdef-0123-456789abcdef",
            kind="cuda",
            name="NVIDIA H200",
            threads=len(CORES),
            cpus=tuple(sorted(CORES)),
            driver="580.65.06",
            memory_mib=143_771.0,
            capability=(9, 0),
            minor=0,
        ),
    )
    assert gpus()[0].label == "GPU-44444444 (NVIDIA H200)"
    assert look().cuda == (13, 0)


def test_what_a_gpu_does_not_tell_is_none(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(4, total_mib=None, capability=None), cuda=12_080)

    (gpu,) = gpus()

    assert (gpu.memory_mib, gpu.capability) == (None, None)
    assert look().cuda == (12, 8)


def test_a_gpu_that_does_not_answer_is_no_device_and_is_told_of(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1), a_gpu(2, error=LOST))

    machine = look()

    assert [gpu.id[:12] for gpu in machine.gpus] == ["GPU-11111111"]
    assert list(map(str, machine.failed)) == ["GPU 1: NVML says GPU is lost"]


def test_a_driver_that_does_not_answer_is_told_of(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1), init_error=18)

    machine = look()

    assert machine.gpus == ()
    assert list(map(str, machine.failed)) == [
        "the driver: NVML says RM has detected an NVML/RM version mismatch"
    ]


def test_another_process_finds_the_same_gpus(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1), a_gpu(2))

    said = subprocess.run(
        [sys.executable, "-c", "from core.device import gpus; print(gpus())"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout

    assert said == f"{gpus()}\n"


# --- CUDA_VISIBLE_DEVICES


@pytest.mark.parametrize(
    ("setting", "seen"),
    [
        (None, (0, 1, 2)),
        ("", ()),
        ("2", (2,)),
        ("2,0", (2, 0)),
        (" 1 , 2 ", (1, 2)),
        ("0,-1,2", (0,)),
        ("-1", ()),
        ("0,3,1", (0,)),
        ("0,,1", (0,)),
        ("1,1", ()),
        ("GPU-33333333-89ab,0", (2, 0)),
        ("GPU-3", (2,)),
        ("GPU-11", ()),
        ("GPU-112", (1,)),
        ("GPU-4,0", ()),
        ("3333", ()),
        ("MIG-3333", ()),
        ("¹", ()),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(
    setting: str | None, seen: tuple[int, ...]
):
    assert visible(setting, UUIDS) == seen


def test_only_visible_gpus_are_devices_in_the_order_of_the_variable(
    fake_gpus: FakeDriver, monkeypatch: pytest.MonkeyPatch
):
    fake_gpus(a_gpu(1), a_gpu(2), a_gpu(3))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-111")

    machine = look()

    assert [gpu.id[:12] for gpu in machine.gpus] == ["GPU-33333333", "GPU-11111111"]
    assert machine.hidden == 1


def test_a_gpu_has_its_cores_whether_or_not_the_others_are_visible(
    fake_gpus: FakeDriver, monkeypatch: pytest.MonkeyPatch
):
    fake_gpus(a_gpu(1), a_gpu(2))
    _, second = gpus()

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")

    assert gpus() == (second,)


# --- cores

core_sets = st.frozensets(st.integers(0, 40), max_size=20)


@given(
    near=st.lists(core_sets, min_size=1, max_size=9),
    ours=st.frozensets(st.integers(0, 40), min_size=1),
)
def test_every_gpu_has_a_core_and_no_core_two_gpus_unless_there_are_too_few(
    near: list[frozenset[int]], ours: frozenset[int]
):
    shares = share_cores(near, ours)

    assert len(shares) == len(near)
    assert all(shares)
    assert ours.issuperset(set().union(*shares))
    if len(ours) >= len(near):
        assert sum(map(len, shares)) == len(set().union(*shares))


@given(count=st.integers(1, 9), cores=st.integers(1, 64))
def test_gpus_near_to_the_same_cores_have_as_many_each(count: int, cores: int):
    near = frozenset(range(cores))

    sizes = {len(share) for share in share_cores([near] * count, near)}

    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == max(1, -(-cores // count))


def test_each_gpu_has_cores_near_to_it():
    left, right = frozenset(range(4)), frozenset(range(4, 8))

    shares = share_cores([right, left, left, right], left | right)

    assert shares == ((4, 5), (0, 1), (2, 3), (6, 7))


def test_only_cores_that_we_have_are_given():
    near = [frozenset(range(4)), frozenset(range(4, 8))]

    assert share_cores(near, frozenset({2, 3, 4})) == ((2, 3), (4,))


@pytest.mark.parametrize(
    "near",
    [
        [frozenset({0, 1}), frozenset()],
        [frozenset({0, 1}), frozenset({1, 2})],
        [frozenset({9}), frozenset({9})],
    ],
    ids=["one unknown", "overlapping", "none of ours"],
)
def test_nearness_is_given_up_where_it_would_give_a_core_twice(
    near: list[frozenset[int]],
):
    assert share_cores(near, frozenset(range(4))) == ((0, 1), (2, 3))


def test_both_threads_of_a_core_come_to_one_gpu():
    cores = frozenset(range(8))  # 4 and 0, 5 and 1, … are threads of one core

    shares = share_cores([cores, cores], cores, place=lambda cpu: (cpu % 4, cpu))

    assert shares == ((0, 1, 4, 5), (2, 3, 6, 7))


def test_nvml_says_which_cores_are_near(fake_gpus: FakeDriver):
    first, *others = sorted(CORES)
    fake_gpus(a_gpu(1, cores=(first, 3000)), a_gpu(2, cores=(*others, 3001)))

    if not others:
        pytest.skip("this machine has one core")
    assert [gpu.cpus for gpu in gpus()] == [(first,), tuple(others)]
    assert [gpu.threads for gpu in gpus()] == [1, len(others)]


# --- asking one GPU


def test_used_memory_is_without_what_the_driver_keeps(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1, used_mib=3, reserved_mib=615))

    with Gpu(gpus()[0]) as gpu:
        assert gpu.used_mib() == 3.0


def test_each_process_is_told_of_once_with_memory_and_name(fake_gpus: FakeDriver):
    me, nobody = os.getpid(), 4_194_305  # beyond what Linux counts to
    fake_gpus(
        a_gpu(1, compute={nobody: 1024, me: 617}, graphics={me: 20, 7_000_000: None})
    )

    with Gpu(gpus()[0]) as gpu:
        mine, *others = gpu.processes()

    assert (mine.pid, mine.used_mib) == (me, 617.0)
    assert mine.name
    assert others == [
        Process(pid=nobody, used_mib=1024.0, name=""),
        Process(pid=7_000_000, used_mib=None, name=""),
    ]


def test_a_gpu_without_a_list_of_processes_has_none(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1, compute={}, graphics=None))

    with Gpu(gpus()[0]) as gpu:
        assert gpu.processes() == ()


def test_a_reading_has_units(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1, sm_mhz=1755, milliwatts=698_250, celsius=64, uncorrected=2))

    with Gpu(gpus()[0]) as gpu:
        assert gpu.reading() == Reading(
            sm_mhz=1755, power_watts=698.25, temperature_c=64
        )
        assert gpu.uncorrected_errors() == 2


def test_what_a_model_does_not_support_is_none_in_its_reading(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1, sm_mhz=None, milliwatts=None, celsius=None, uncorrected=None))

    with Gpu(gpus()[0]) as gpu:
        assert gpu.reading() == Reading(
            sm_mhz=None, power_watts=None, temperature_c=None
        )
        assert gpu.uncorrected_errors() is None


@pytest.mark.parametrize(
    "ask", [Gpu.used_mib, Gpu.processes, Gpu.reading, Gpu.uncorrected_errors]
)
def test_a_gpu_that_falls_off_the_bus_is_a_device_that_failed(
    fake_gpus: FakeDriver, ask
):
    fake_gpus(a_gpu(4))
    (device,) = gpus()

    with Gpu(device) as gpu:
        fake_gpus(a_gpu(4, error=LOST))
        with pytest.raises(DeviceFailed) as caught:
            ask(gpu)

    assert str(caught.value) == ("GPU-44444444 (NVIDIA H200): NVML says GPU is lost")


def test_a_gpu_that_is_gone_before_it_is_asked_is_a_device_that_failed(
    fake_gpus: FakeDriver,
):
    fake_gpus(a_gpu(4), a_gpu(5))
    (device, _) = gpus()
    fake_gpus(a_gpu(5))

    with pytest.raises(DeviceFailed, match=r"NVML says Not Found$"), Gpu(device):
        pass


def test_a_gpu_without_memory_of_its_own_cannot_be_asked_for_it(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1, used_mib=None))

    with Gpu(gpus()[0]) as gpu, pytest.raises(DeviceFailed, match=r"Not Supported$"):
        gpu.used_mib()


def test_two_can_ask_at_once_and_the_first_to_leave_does_not_end_it(
    fake_gpus: FakeDriver,
):
    fake_gpus(a_gpu(1))
    (device,) = gpus()

    with Gpu(device) as gpu:
        with Gpu(device) as other:
            other.used_mib()
        gpus()

        assert gpu.used_mib() == 3.0


@pytest.mark.gpu
def test_this_machines_gpu_answers_every_question():
    device = gpus()[0]

    with Gpu(device) as gpu:
        reading = gpu.reading()
        used_mib, processes = gpu.used_mib(), gpu.processes()

    assert device.capability is not None
    assert device.memory_mib is not None
    assert 0 <= used_mib < device.memory_mib
    assert all(process.pid > 0 for process in processes)
    assert reading.sm_mhz is None or reading.sm_mhz > 0
    assert reading.power_watts is None or 0 < reading.power_watts < 2000


# --- the CPU


def test_the_cpu_is_one_device_with_one_thread_whatever_else_runs():
    device = cpu()

    assert (device.id, device.kind, device.threads) == ("cpu", "cpu", 1)
    assert device.name.endswith(", 1 thread")
    assert device.cpus == ()
