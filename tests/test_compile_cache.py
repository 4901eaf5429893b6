"""What torch.compile keeps: from the base alone, and a copy for each trial."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from core.device import Gpu, gpus
from core.launch import Status
from core.launch.compile_cache import CompileCache, environment
from core.launch.gauge import SLACK_MIB
from core.launch.local import LOG
from core.process.child import Zygote
from core.sandbox import Policy
from core.scratch import remove
from tests import test_launch
from tests.conftest import ROOT
from tests.inside import Inside, Said
from tests.test_launch import Runner, module

data, run = test_launch.data, test_launch.run  # fixtures


@pytest.fixture
def cache(tmp_path: Path) -> CompileCache:
    return CompileCache(tmp_path / "cache")


def put(
    cache: CompileCache, process: str, text: str, name: str = "ab/kernel.py"
) -> Path:
    path = cache.own(process) / "inductor" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_a_run_of_the_base_compiled_is_copied_to_the_next_trial(
    cache: CompileCache,
):
    kernel = put(cache, "trainer", "of the base")

    cache.adopt()
    cache.clear()
    gone = not kernel.exists()
    cache.fill("trainer")

    assert gone
    assert kernel.read_text() == "of the base"


def test_what_an_edited_trial_writes_reaches_nobody_else(cache: CompileCache):
    kernel = put(cache, "trainer", "of the base")
    cache.adopt()
    cache.fill("trainer")

    kernel.write_text("poison")
    put(cache, "trainer", "poison", "cd/another.py")
    cache.adopt()  # even where it is taken for a run of the base
    cache.fill("trainer")

    assert kernel.read_text() == "of the base"
    assert not (cache.own("trainer") / "inductor" / "cd").exists()


def test_each_process_gets_its_own_and_not_that_of_another(cache: CompileCache):
    put(cache, "trainer", "of the trainer")
    served = put(cache, "server1", "of the server")
    cache.adopt()

    cache.fill("server1")

    assert served.read_text() == "of the server"
    assert not list(cache.own("trainer").rglob("*.py"))  # it has its own turn


def test_links_are_not_followed(cache: CompileCache, tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("sealed")
    put(cache, "trainer", "of the base")
    (cache.own("trainer") / "inductor" / "link.py").symlink_to(secret)

    cache.adopt()
    cache.fill("trainer")

    assert not (cache.own("trainer") / "inductor" / "link.py").exists()


@pytest.mark.parametrize("made", ["pipe", "link to a folder", "nothing"])
def test_what_is_no_plain_file_is_not_kept(
    cache: CompileCache, tmp_path: Path, made: str
):
    own = cache.own("trainer")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("sealed")
    if made == "pipe":
        os.mkfifo(own / "pipe")
    elif made == "link to a folder":
        (own / "folder").symlink_to(tmp_path / "elsewhere")

    cache.adopt()
    kept = (cache.folder / "kept").exists()
    cache.fill("trainer")

    assert not kept
    assert list(own.iterdir()) == []
    assert (tmp_path / "elsewhere" / "secret").read_text() == "sealed"


def test_what_a_killed_session_had_begun_to_keep_is_not_kept(cache: CompileCache):
    torn = cache.folder / "making" / "trainer" / "inductor" / "ab" / "kernel.py"
    torn.parent.mkdir(parents=True)
    torn.write_text("of th")

    cache.fill("trainer")
    before = list(cache.own("trainer").iterdir())
    put(cache, "trainer", "of the base", "cd/another.py")
    cache.adopt()
    cache.fill("trainer")

    assert before == []
    kept = [path.name for path in cache.own("trainer").rglob("*.py")]
    assert kept == ["another.py"]


def test_nothing_is_left_of_what_a_trial_before_compiled(cache: CompileCache):
    put(cache, "trainer", "of an edit")

    cache.fill("trainer")

    assert list(cache.own("trainer").iterdir()) == []


def test_folders_of_processes_stay_the_same_folders(cache: CompileCache):
    own = cache.own("trainer")
    put(cache, "trainer", "something")
    before = own.stat().st_ino

    cache.clear()

    assert own.stat().st_ino == before
    assert list(own.iterdir()) == []


def test_folders_nested_by_the_thousand_are_removed(tmp_path: Path):
    deep = tmp_path / "deep"
    deep.mkdir()
    at = os.open(deep, 0)
    for _ in range(3_000):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", 0, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)

    remove(deep)

    assert not deep.exists()


# A trial whose loss is compiled, which says how much of that it found.
COMPILES = """
from torch._dynamo.utils import counters
found = counters["inductor"]
print("compiled:", found["fxgraph_cache_hit"], "found,", found["fxgraph_cache_miss"], "missed")
"""


def compiling(factor: int) -> str:
    """Return a module that compiles two graphs, of which *factor* changes one."""
    source = module(COMPILES).replace(
        "F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())",
        "loss_of(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())"
        " + 0.0 * added(torch.ones(8)).sum()",
    )
    source = source.replace(
        "    optimizer =",
        # Each process would first compile headers of its own.
        "    torch._inductor.config.cpp_cache_precompile_headers = False\n"
        "    loss_of = torch.compile(F.cross_entropy, dynamic=False)\n"
        f"    added = torch.compile(lambda x: {factor} * x.sin())\n"
        "    optimizer =",
    )
    return source.replace("is_real and step == 1", "is_real and step == 0")


@pytest.mark.slow
def test_torch_compile_works_inside_and_finds_what_the_base_has_compiled(
    run: Runner, tmp_path: Path
):
    cache, told = CompileCache(tmp_path / "compile"), []

    def trial(factor: int, *, is_base: bool) -> None:
        result = run(compiling(factor))
        assert result.status is Status.FINISHED, (result.message, result.log_tail)
        assert result.sandbox.startswith("landlock")
        assert result.left_behind == 0  # compile workers have gone by themselves
        said = re.findall(r"compiled: (\d+) found, (\d+) missed", log_of(tmp_path))
        told.append(tuple(map(int, said[0])))
        remove(tmp_path / "run")
        if is_base:
            cache.adopt()
        cache.clear()

    trial(2, is_base=True)
    trial(3, is_base=False)  # compiles one graph anew

    graphs = sum(told[0])
    assert told == [(0, graphs), (graphs - 1, 1)]


def compile_and_leave() -> None:
    """Start compile workers as a trainer does, and leave as it does."""
    from torch._inductor import config
    from torch._inductor.async_compile import AsyncCompile

    config.compile_threads = 2
    AsyncCompile.process_pool().submit(abs, -1).result()
    assert psutil.Process().children(recursive=True)
    from core.training.entry import leave

    leave()


def test_what_the_compiler_can_do_ahead_it_can_do_in_the_sandbox_without_a_gpu(
    zygote: Zygote, tmp_path: Path
):
    inside = Inside(zygote, tmp_path)
    policy = Policy(
        read=(str(ROOT / "tests"),), write=(str(inside.own()),), lists=(str(ROOT),)
    )

    assert inside(policy, prepared) == Said(returned=True)


def prepared() -> bool:
    """Return whether torch.compile is there once the compiler is prepared."""
    from core.training.compiler import COMPILER, prepare_compiler

    prepare_compiler()
    return COMPILER in sys.modules


@pytest.mark.gpu
def test_who_prepares_the_compiler_takes_nothing_of_the_gpu(
    zygote: Zygote, tmp_path: Path
):
    said = Inside(zygote, tmp_path)(None, taken_mib)

    assert said.raised is None, said.text
    assert said.returned < SLACK_MIB


def taken_mib() -> float:
    """Return by how much more is in use on the GPU once the compiler is prepared."""
    from core.training.compiler import prepare_compiler

    with Gpu(gpus()[0]) as gpu:
        before = gpu.used_mib()
        prepare_compiler()
        return gpu.used_mib() - before


# How many kernels Triton has compiled for a step through the MLP.
COUNTS = """
import torch, triton
from core.training.compiler import configure_compiler, prepare_compiler
from core.training.kernels import squared_relu_mlp

configure_compiler()
prepare_compiler()
missed = []

def hear(*, src, cache_hit, **others):
    if not cache_hit:
        missed.append(src.name)

triton.knobs.compilation.listener = hear
x, up, down = (
    torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    for shape in ((512, 256), (1024, 256), (256, 1024))
)
torch.compile(squared_relu_mlp, dynamic=False)(x, up, down).sum().backward()
torch.cuda.synchronize()
print("compiled", len(missed))
"""


@pytest.mark.gpu
def test_triton_finds_what_another_process_has_compiled(tmp_path: Path):
    def compiled() -> int:
        """Return how many kernels a fresh process compiles."""
        environ = {**os.environ, "PYTHONPATH": str(ROOT), **environment(tmp_path)}
        ran = subprocess.run(
            [sys.executable, "-c", COUNTS],
            env=environ,
            capture_output=True,
            text=True,
            check=True,
        )
        return int(re.findall(r"compiled (\d+)", ran.stdout)[0])

    assert compiled() > 0
    assert compiled() == 0


@pytest.mark.slow
def test_compile_workers_end_with_the_trainer_that_leaves(
    zygote: Zygote, tmp_path: Path
):
    inside = Inside(zygote, tmp_path)

    child = inside.start(None, compile_and_leave)
    ended = child.leave(60.0)

    log = (tmp_path / "own0.log").read_text()
    assert (ended.returncode, ended.left_behind) == (0, 0), log


def log_of(tmp_path: Path) -> str:
    return (tmp_path / "run" / LOG).read_text()
