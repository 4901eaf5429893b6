"""Each cheat goes red in the layers that its header names, and no honest mutant does."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from core.launch import Status
from core.launch.compile_cache import CompileCache
from core.launch.watch import Progress
from core.process.child import Zygote
from tests.conftest import ROOT
from tests.corpus import HARMLESS, Cheat, Honest, base, load_cheats, load_honest
from tests.layers import MODULES, Bench, Tried


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Zygote(ROOT, MODULES) as zygote:
        yield Bench.open(tmp_path_factory.mktemp("layers"), zygote)


def wanted(request: pytest.FixtureRequest, parameter: str) -> list:
    """Return what this session's tests are about, so that it is tried at once."""
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    values = [call.params.get(parameter) for call in calls if call is not None]
    return list({value.name: value for value in values if value is not None}.values())


@pytest.fixture(scope="session")
def caught(bench: Bench, request: pytest.FixtureRequest) -> dict[str, dict[str, str]]:
    return bench.caught(wanted(request, "suspect"))


@pytest.mark.slow
@pytest.mark.parametrize("suspect", load_cheats(), ids=lambda one: one.name)
def test_a_cheat_is_caught_by_the_layers_of_its_header(
    suspect: Cheat, caught: Mapping[str, Mapping[str, str]]
):
    found = caught[suspect.name]

    # A number that is no better may be added to what layers say, and need not be.
    named = [n for n in found if n != HARMLESS or n in suspect.caught_by]
    assert named == list(suspect.caught_by), found
    assert {
        name: found[name]
        for name in named
        if not any(piece in found[name] for piece in suspect.said_by(name))
    } == {}


# --- honest mutants


@pytest.fixture(scope="session")
def sources(bench: Bench, request: pytest.FixtureRequest) -> dict[str, str]:
    return {one.name: bench.merged(one.source) for one in wanted(request, "honest")}


@pytest.fixture(scope="session")
def gates(bench: Bench, sources: Mapping[str, str]) -> dict[str, str]:
    return bench.gates(sources)


@pytest.fixture(scope="session")
def tried(bench: Bench, sources: Mapping[str, str]) -> dict[str, Tried]:
    return bench.trials(sources)


@pytest.mark.slow
@pytest.mark.parametrize("honest", load_honest(), ids=lambda one: one.name)
def test_no_layer_says_anything_of_an_honest_mutant(
    honest: Honest,
    bench: Bench,
    sources: Mapping[str, str],
    gates: Mapping[str, str],
    tried: Mapping[str, Tried],
):
    result = tried[honest.name].result

    assert not bench.static(sources[honest.name])
    assert not gates[honest.name]
    assert result.status is Status.FINISHED, (result.message, result.log_tail)
    assert result.audit is not None
    assert not result.audit.breach


# --- what no edit of the module does


@pytest.mark.slow
def test_a_judge_that_is_killed_says_nothing_about_the_candidate(bench: Bench):
    def kill(progress: Progress) -> None:
        if progress.phase == "score":
            (judge,) = of_trial("judge")
            judge.kill()

    result = bench.trial("killed judge", base(), show=kill).result

    assert (result.status, result.crash) == (Status.KILLED, None)
    assert result.message == "the judge was killed (SIGKILL) in phase score."
    assert result.score is None


def of_trial(name: str) -> list[psutil.Process]:
    """Return the processes below this one that are called *name*."""
    below = psutil.Process().children(recursive=True)
    return [process for process in below if process.name() == name]


POISON = '''"""Write into each cache of the compiler."""

import os
from pathlib import Path

from torch import nn

from core.training.train import train as base_train


def train(run) -> nn.Module:
    for name in ("TORCHINDUCTOR", "TRITON"):
        folder = Path(os.environ[f"{name}_CACHE_DIR"])
        folder.mkdir(exist_ok=True)
        for path in [*folder.glob("*.py"), folder / "new.py"]:
            path.write_text("raise SystemExit")
            print("poisoned", path.name)
    return base_train(run)
'''


@pytest.mark.slow
def test_what_a_trial_writes_into_its_caches_no_other_trial_gets(bench: Bench):
    cache = CompileCache(bench.folder / "compile" / "poison")
    compiled = cache.own("trainer") / "inductor" / "kernel.py"
    compiled.parent.mkdir()
    compiled.write_text("honest = True")
    cache.adopt()  # as after a finished run of the base

    tried = bench.trial("poison", bench.merged(POISON))

    assert tried.result.status is Status.FINISHED, tried.printed
    assert {"poisoned kernel.py", "poisoned new.py"} <= set(tried.printed.splitlines())
    assert compiled.read_text() == "raise SystemExit"
    assert contents(cache.folder / "kept") == {"kernel.py": "honest = True"}
    for process in ("trainer", "server1", "server2"):  # as before the next trial
        cache.fill(process)
    assert contents(cache.folder / "own") == {"kernel.py": "honest = True"}


def contents(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.rglob("*") if p.is_file()}


SPEC = """
from core.spec import Experiment, codemod

ran = __import__("os").system("touch {target}")
softcap = Experiment(
    hypothesis="A tighter cap calibrates.",
    change="Lower the cap of the logits.",
    codemod=codemod("constants.ScaleConstant", name="SOFTCAP", factor=0.8),
)
"""


def test_a_spec_that_would_run_code_is_refused_and_runs_none(
    project: pytest.Pytester,
):
    target = project.path / "touched"
    (project.path / "specs" / "x.py").write_text(SPEC.format(target=target))

    result = project.runpytest_subprocess("specs", "--collect-only")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert (
        "specs/x.py:4: __import__('os').system cannot be called here; known: "
        "Experiment, codemod."
    ) in result.outlines
    assert not target.exists()
