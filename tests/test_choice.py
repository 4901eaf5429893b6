"""Which profile and devices a session has, and the whole text of each refusal."""

from pathlib import Path

import attrs
import psutil
import pytest

from core.device import cpu
from core.errors import SessionError
from core.plugin.choice import choose
from core.plugin.lock import locked
from core.profile import CPU, GPU, TorchBuild
from tests.conftest import ROOT
from tests.nvml import LOST, FakeDriver, a_gpu

CUDA = TorchBuild(version="2.13.0", cuda="13.0")
WITHOUT_CUDA = TorchBuild(version="2.13.0+cpu", cuda=None)
STRANGER = 4_194_305  # a pid beyond what Linux counts to

SPEC = """
from core.spec import Experiment, codemod

softcap = Experiment(
    hypothesis="A tighter cap calibrates.",
    change="Lower the cap of the logits.",
    codemod=codemod("constants.ScaleConstant", name="SOFTCAP", factor=0.8),
)
"""


def chosen(requested: str | None = None, **options: object) -> tuple[list[str], str]:
    """Return the first digits of the GPUs that were chosen, and why."""
    options = {"build": CUDA, **options}
    profile, devices, reason = choose(requested, **options)  # type: ignore[arg-type]
    assert profile is GPU
    return [device.id[4] for device in devices], reason


def refusal(requested: str | None = None, **options: object) -> str:
    with pytest.raises(SessionError) as caught:
        choose(requested, **{"build": CUDA, **options})  # type: ignore[arg-type]
    return str(caught.value)


# --- the profile


def test_without_a_gpu_the_laptop_profile_is_chosen_and_says_why(fake_gpus: FakeDriver):
    fake_gpus()

    assert choose(None, build=CUDA) == (CPU, (cpu(),), "no CUDA GPU seen")


def test_where_a_gpu_is_seen_the_gpu_profile_is_chosen(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1))

    assert chosen() == (["1"], "1 CUDA GPU")


def test_the_laptop_profile_can_be_asked_for_where_there_are_gpus(
    fake_gpus: FakeDriver,
):
    fake_gpus(a_gpu(1, error=LOST))

    assert choose("cpu", build=CUDA) == (CPU, (cpu(),), "--profile cpu")


def test_a_torch_without_cuda_leaves_the_laptop_profile(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1))

    assert choose(None, build=WITHOUT_CUDA) == (
        CPU,
        (cpu(),),
        "torch 2.13.0+cpu is built without CUDA",
    )


def test_gpus_that_are_hidden_are_not_used(
    fake_gpus: FakeDriver, monkeypatch: pytest.MonkeyPatch
):
    fake_gpus(a_gpu(1), a_gpu(2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")

    _, devices, reason = choose(None, build=CUDA)

    assert devices == (cpu(),)
    assert reason == "CUDA_VISIBLE_DEVICES=-1 hides 2 CUDA GPUs"


def test_the_gpu_profile_without_a_gpu_is_refused(fake_gpus: FakeDriver):
    fake_gpus()

    assert refusal("gpu") == (
        "--profile gpu needs a CUDA GPU: no CUDA GPU seen.\n\n"
        "hint: run on a machine with one, or use --profile cpu."
    )


def test_the_gpu_profile_without_the_bindings_of_cuda_is_refused(
    fake_gpus: FakeDriver,
):
    fake_gpus(a_gpu(1))

    assert refusal("gpu", build=attrs.evolve(CUDA, has_bindings=False)) == (
        "--profile gpu needs a CUDA GPU: the package cuda-bindings is not installed.\n\n"
        "hint: install the one of torch's CUDA: cuda-bindings==13.*, or use --profile "
        "cpu."
    )


def test_a_slice_of_a_gpu_is_refused(
    fake_gpus: FakeDriver, monkeypatch: pytest.MonkeyPatch
):
    fake_gpus(a_gpu(1))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-5a1b")

    assert refusal("gpu") == (
        "--profile gpu needs a CUDA GPU: CUDA_VISIBLE_DEVICES=MIG-5a1b is a slice of "
        "one, whose neighbours would show in its numbers.\n\n"
        "hint: name a whole GPU, or use --profile cpu."
    )


def test_the_gpu_profile_with_a_torch_without_cuda_is_refused(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1))

    assert refusal("gpu", build=WITHOUT_CUDA) == (
        "--profile gpu needs a CUDA GPU: torch 2.13.0+cpu is built without CUDA.\n\n"
        "hint: install a torch that is built for it, or use --profile cpu."
    )


def test_the_gpu_profile_with_all_gpus_hidden_is_refused(
    fake_gpus: FakeDriver, monkeypatch: pytest.MonkeyPatch
):
    fake_gpus(a_gpu(1))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    assert refusal("gpu") == (
        "--profile gpu needs a CUDA GPU: CUDA_VISIBLE_DEVICES= hides 1 CUDA GPU.\n\n"
        "hint: name one in it, or use --profile cpu."
    )


# --- how many


@pytest.mark.parametrize("count", [0, -1])
@pytest.mark.parametrize("profile", ["gpu", "cpu", None])
def test_no_gpus_are_not_a_number_of_gpus(
    fake_gpus: FakeDriver, profile: str | None, count: int
):
    fake_gpus(a_gpu(1))

    assert refusal(profile, count=count) == (
        f"--gpus {count}: expected at least 1.\n\n"
        "hint: give the number of GPUs to use, as --gpus 2, or leave it out."
    )


def test_more_gpus_than_there_are_are_refused(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1), a_gpu(2), a_gpu(3), a_gpu(4))

    assert refusal(count=9) == (
        "--gpus 9: found 4 CUDA GPUs.\n\n"
        "hint: use --gpus 4, or leave it out to use all."
    )


def test_more_gpus_than_are_left_are_refused_with_what_was_left_out(
    fake_gpus: FakeDriver,
):
    fake_gpus(a_gpu(1), a_gpu(2, name="NVIDIA A10"), a_gpu(3, error=LOST))

    assert refusal(count=2) == (
        "--gpus 2: found 1 CUDA GPU (left out: 1 of another model; GPU 2: NVML says "
        "GPU is lost).\n\n"
        "hint: use --gpus 1, or leave it out to use all."
    )


def test_fewer_gpus_than_there_are_can_be_used(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1), a_gpu(2), a_gpu(3))

    assert chosen(count=2) == (["1", "2"], "2 of 3 CUDA GPUs")


def test_a_number_of_gpus_is_refused_on_a_cpu_that_was_asked_for(
    fake_gpus: FakeDriver,
):
    fake_gpus(a_gpu(1), a_gpu(2))

    assert refusal("cpu", count=2) == (
        "--gpus 2 speaks of GPUs, and the profile is cpu (--profile cpu).\n\n"
        "hint: leave --gpus 2 out, or run where the gpu profile can."
    )


def test_a_number_of_gpus_is_refused_where_there_is_none(fake_gpus: FakeDriver):
    fake_gpus()

    assert refusal(count=2) == (
        "--gpus 2 speaks of GPUs, and the profile is cpu (no CUDA GPU seen).\n\n"
        "hint: leave --gpus 2 out, or run where the gpu profile can."
    )


def test_sharing_a_gpu_is_refused_on_a_cpu(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1))

    assert refusal(shared=True, build=WITHOUT_CUDA) == (
        "--shared-gpu speaks of GPUs, and the profile is cpu (torch 2.13.0+cpu is "
        "built without CUDA).\n\n"
        "hint: leave --shared-gpu out, or run where the gpu profile can."
    )


# --- which


def test_gpus_of_other_models_are_left_out_and_the_reason_says_so(
    fake_gpus: FakeDriver,
):
    fake_gpus(a_gpu(1), a_gpu(2, name="NVIDIA A10"), a_gpu(3))

    assert chosen() == (["1", "3"], "2 CUDA GPUs (left out: 1 of another model)")


def test_the_first_visible_gpu_says_of_which_model(
    fake_gpus: FakeDriver, monkeypatch: pytest.MonkeyPatch
):
    fake_gpus(a_gpu(1, name="NVIDIA A10"), a_gpu(2), a_gpu(3))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")

    assert chosen() == (["2"], "1 CUDA GPU (left out: 1 of another model)")


def test_a_gpu_that_does_not_answer_is_left_out_and_the_reason_says_so(
    fake_gpus: FakeDriver,
):
    fake_gpus(a_gpu(1, error=LOST), a_gpu(2), a_gpu(3, used_mib=None))

    assert chosen() == (
        ["2"],
        "1 CUDA GPU (left out: GPU 0: NVML says GPU is lost; GPU-33333333 (NVIDIA "
        "H200): NVML says Not Supported)",
    )


def test_a_session_without_a_gpu_that_answers_is_refused(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1, error=LOST), a_gpu(2, error=16))

    assert refusal() == (
        "No GPU answers: GPU 0: NVML says GPU is lost; GPU 1: NVML says GPU requires "
        "restart.\n\n"
        "hint: look at the machine with nvidia-smi, or use --profile cpu."
    )


# --- what it can


@pytest.mark.parametrize(("cuda", "runs"), [(12_080, "12.8"), (11_040, "11.4")])
def test_a_driver_that_is_too_old_for_torch_is_refused(
    fake_gpus: FakeDriver, cuda: int, runs: str
):
    fake_gpus(a_gpu(1), driver="570.86.10", cuda=cuda)

    assert refusal() == (
        f"The driver 570.86.10 runs CUDA {runs} at most, and torch 2.13.0 is built for "
        "CUDA 13.0.\n\n"
        "hint: update the driver to one for CUDA 13, install a torch that is built for "
        f"CUDA {runs[:2]}, or use --profile cpu."
    )


@pytest.mark.parametrize(
    ("driver", "build"),
    [(13_000, "13.2"), (13_020, "13.0"), (13_000, "12.6"), (12_020, "12.8")],
)
def test_a_driver_of_the_builds_major_version_or_newer_will_do(
    fake_gpus: FakeDriver, driver: int, build: str
):
    fake_gpus(a_gpu(1), cuda=driver)

    assert chosen(build=TorchBuild(version="2.13.0", cuda=build))[0] == ["1"]


def test_a_gpu_without_bfloat16_is_refused_for_the_shipped_module(
    fake_gpus: FakeDriver,
):
    fake_gpus(a_gpu(1, name="Tesla V100-SXM2-32GB", capability="7.0"))

    assert refusal() == (
        "GPU-11111111 (Tesla V100-SXM2-32GB) has compute capability 7.0, and the "
        "training module's bfloat16 needs 8.0.\n\n"
        "hint: use a newer GPU, name a training module of your own that does without "
        "(tool.deltaspec.module in pyproject.toml), or use --profile cpu."
    )
    assert chosen(shipped=False)[0] == ["1"]


def test_a_gpu_with_too_little_memory_is_refused_for_the_shipped_module(
    fake_gpus: FakeDriver,
):
    fake_gpus(a_gpu(1, name="NVIDIA L40S", total_mib=46_068, capability="8.9"))

    assert refusal() == (
        f"GPU-11111111 (NVIDIA L40S) has 46,068 MiB, and a trial takes "
        f"{GPU.memory_mib:,.0f} MiB.\n\n"
        "hint: use a GPU with more memory, name a training module of your own with a "
        "smaller MICRO_BATCH_ROWS (tool.deltaspec.module in pyproject.toml), or use "
        "--profile cpu."
    )
    assert chosen(shipped=False)[0] == ["1"]


# --- who else uses it


def test_a_gpu_that_another_process_uses_is_refused(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1, compute={STRANGER: 1024}))

    assert refusal() == (
        f"GPU-11111111 (NVIDIA H200) is used by process {STRANGER} (1,024 MiB): a "
        "trial's time would not be its own.\n\n"
        "hint: wait until that has ended, or use --shared-gpu, which the runs then "
        "record."
    )


def test_the_process_is_named_where_it_can_be_seen(fake_gpus: FakeDriver):
    me = psutil.Process()
    fake_gpus(a_gpu(1, compute={me.pid: 2048, STRANGER: None}))

    assert refusal().startswith(
        f"GPU-11111111 (NVIDIA H200) is used by process {me.pid} ({me.name()}, "
        f"2,048 MiB) and process {STRANGER}: a trial's"
    )


def test_with_free_gpus_beside_it_the_hint_says_how_to_use_those(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1), a_gpu(2, graphics={STRANGER: 90}), a_gpu(3))

    assert refusal() == (
        f"GPU-22222222 (NVIDIA H200) is used by process {STRANGER} (90 MiB): a trial's "
        "time would not be its own.\n\n"
        "hint: wait until that has ended, use --gpus 2 for what is free, name other "
        "GPUs in CUDA_VISIBLE_DEVICES, or use --shared-gpu, which the runs then record."
    )


def test_memory_that_no_listed_process_has_is_anothers_too(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1, used_mib=513), a_gpu(2, used_mib=512))

    assert refusal().startswith(
        "GPU-11111111 (NVIDIA H200) is used by something that the driver does not list "
        "(513 MiB): a trial's time would not be its own.\n"
    )
    assert chosen(count=1) == (["2"], "1 of 2 CUDA GPUs")


def test_free_gpus_are_preferred(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1, compute={STRANGER: 9}), a_gpu(2), a_gpu(3))

    assert chosen(count=1) == (["2"], "1 of 3 CUDA GPUs")
    assert chosen(count=2) == (["2", "3"], "2 of 3 CUDA GPUs")
    assert refusal(count=3).startswith(
        f"GPU-11111111 (NVIDIA H200) is used by process {STRANGER} (9 MiB): "
    )


def test_a_gpu_can_be_shared(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1, compute={STRANGER: 9}), a_gpu(2))

    assert chosen(shared=True) == (["1", "2"], "2 CUDA GPUs")
    assert chosen(shared=True, count=1) == (["2"], "1 of 2 CUDA GPUs")


def test_a_shared_gpu_with_too_little_room_is_refused(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1, used_mib=100_000, compute={STRANGER: 99_000}))

    assert refusal(shared=True) == (
        "GPU-11111111 (NVIDIA H200) has 43,771 MiB left beside process "
        f"{STRANGER} (99,000 MiB), and a trial takes {GPU.memory_mib:,.0f} MiB.\n\n"
        "hint: wait until that has ended, or name another GPU in CUDA_VISIBLE_DEVICES."
    )
    assert chosen(shared=True, shipped=False)[0] == ["1"]


def test_a_gpu_of_another_session_is_not_shared(fake_gpus: FakeDriver, tmp_path: Path):
    fake_gpus(a_gpu(8), a_gpu(9))
    _, (first, _), _ = choose(None, build=CUDA)

    with locked(tmp_path, [first]):
        assert chosen(count=1) == (["9"], "1 of 2 CUDA GPUs")
        assert refusal(shared=True) == (
            "GPU-88888888 (NVIDIA H200) is used by another session: a trial's time "
            "would not be its own.\n\n"
            "hint: wait until that has ended, use --gpus 1 for what is free, or name "
            "other GPUs in CUDA_VISIBLE_DEVICES."
        )
    assert chosen() == (["8", "9"], "2 CUDA GPUs")


def test_a_dry_run_does_not_mind_who_uses_the_gpus(fake_gpus: FakeDriver):
    fake_gpus(a_gpu(1, compute={STRANGER: 1024}))

    assert chosen(dry=True) == (["1"], "1 CUDA GPU")


# --- from outside


@pytest.fixture
def cuda_torch(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> pytest.Pytester:
    """Return a project with a spec, where torch says that it is built for CUDA 13.0.

    No refusal starts a trial, so that only its version is ever read.
    """
    site = project.mkdir("site")
    (site / "torch").mkdir()
    (site / "torch" / "__init__.py").write_text("")
    (site / "torch" / "version.py").write_text("cuda: str | None = '13.0'\n")
    (site / "cuda" / "bindings").mkdir(parents=True)
    (site / "cuda" / "bindings" / "__init__.py").write_text("")
    (site / "torch-2.13.0.dist-info").mkdir()
    (site / "torch-2.13.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{site}:{ROOT}")
    (project.path / "specs" / "logits.py").write_text(SPEC)
    return project


def said(project: pytest.Pytester, *options: str) -> str:
    """Return the refusal of a session, which leaves nothing behind."""
    result = project.runpytest_subprocess("specs", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert not (project.path / "runs").exists()
    return "\n".join(result.errlines).strip()


def test_a_session_without_a_gpu_is_refused_before_anything_runs(
    cuda_torch: pytest.Pytester, fake_gpus: FakeDriver
):
    fake_gpus()

    assert said(cuda_torch, "--profile", "gpu") == (
        "ERROR: --profile gpu needs a CUDA GPU: no CUDA GPU seen.\n\n"
        "hint: run on a machine with one, or use --profile cpu."
    )


def test_a_session_with_more_gpus_than_there_are_is_refused(
    cuda_torch: pytest.Pytester, fake_gpus: FakeDriver
):
    fake_gpus(a_gpu(1), a_gpu(2), a_gpu(3), a_gpu(4))

    assert said(cuda_torch, "--gpus", "9") == (
        "ERROR: --gpus 9: found 4 CUDA GPUs.\n\n"
        "hint: use --gpus 4, or leave it out to use all."
    )


def test_a_session_under_too_old_a_driver_is_refused(
    cuda_torch: pytest.Pytester, fake_gpus: FakeDriver
):
    fake_gpus(a_gpu(1), driver="570.86.10", cuda=12_080)

    assert said(cuda_torch).startswith(
        "ERROR: The driver 570.86.10 runs CUDA 12.8 at most, and torch 2.13.0 is built "
        "for CUDA 13.0.\n"
    )


@pytest.mark.slow
def test_a_session_on_a_gpu_in_use_is_refused_and_its_dry_run_is_not(
    cuda_torch: pytest.Pytester, fake_gpus: FakeDriver
):
    fake_gpus(a_gpu(1, compute={STRANGER: 1024}))

    refused = said(cuda_torch)
    dry = cuda_torch.runpytest_subprocess("specs", "--collect-only")

    assert refused.startswith(
        f"ERROR: GPU-11111111 (NVIDIA H200) is used by process {STRANGER} (1,024 MiB): "
    )
    assert dry.ret == 0


def test_the_base_alone_needs_two_seeds_for_each_gpu(
    cuda_torch: pytest.Pytester, fake_gpus: FakeDriver
):
    fake_gpus(a_gpu(1), a_gpu(2))

    assert said(cuda_torch, "--base-seeds", "3") == (
        "ERROR: --base-seeds 3 on 2 GPUs: expected 4 to 64, since the spread is that of "
        "two or more seeds on one device.\n\n"
        "hint: give more seeds, as --base-seeds 8, or fewer GPUs: --gpus 1."
    )


def test_a_module_of_ones_own_is_not_held_to_the_shipped_ones_needs(
    cuda_torch: pytest.Pytester, fake_gpus: FakeDriver
):
    fake_gpus(a_gpu(1, total_mib=24_564))
    small = said(cuda_torch)
    own = (ROOT / "core" / "training" / "train.py").read_text()
    (cuda_torch.path / "mine.py").write_text(own)
    (cuda_torch.path / "pyproject.toml").write_text(
        '[tool.deltaspec]\nmodule = "mine.py"\n'
    )

    dry = cuda_torch.runpytest_subprocess("specs", "--collect-only")

    assert small.startswith("ERROR: GPU-11111111 (NVIDIA H200) has 24,564 MiB, and a ")
    assert dry.ret == 0
