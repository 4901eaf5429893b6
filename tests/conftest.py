"""What tests share: warnings are errors here, GPU tests need a GPU, one prepared corpus."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import filelock
import hypothesis
import pynvml
import pytest

from core.device import gpus
from core.launch.local import MAINS
from core.process.child import Child, Zygote
from tests.nvml import FakeDriver, compiled

pytest_plugins = ("pytester",)

# No test asserts a time: the machine may be busy.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

ROOT = Path(__file__).parents[1]
COSTLY = ("PYTHONDONTWRITEBYTECODE",)  # each session would compile the plugin anew


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a warning fail a test; a user's own runs must not die of one."""
    has_gpu = bool(gpus())
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("error"))
        if not has_gpu and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU is seen here"))


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the cache that the sessions under test share: data are prepared once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Return the process that all trials are forked from; it has imported torch."""
    folder = tmp_path_factory.mktemp("first")
    with Zygote(ROOT, tuple(MAINS.values())) as started:
        first = Child.start(
            "builtins:print",
            {},
            zygote=started,
            name="first",
            folder=folder,
            environment={},
            log=folder / "log.txt",
            policy=None,
        )
        first.end()
        yield started


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a stand-in for the driver's library, compiled once."""
    return compiled(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake_gpus(
    nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> FakeDriver:
    """Return what states which GPUs there are, for this process and its children.

    pynvml itself asks, as ever; what answers is the stand-in. Until it is told of GPUs,
    the machine has none.
    """
    driver = FakeDriver(tmp_path / "nvml.txt")
    driver()
    paths = [str(nvml_library.parent), os.environ.get("LD_LIBRARY_PATH", "")]
    monkeypatch.setenv("LD_LIBRARY_PATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("FAKE_NVML", str(driver.file))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    # LD_LIBRARY_PATH is read when a process starts: this one has done so.
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(nvml_library)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return driver


@pytest.fixture
def project(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    cache_home: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[pytest.Pytester]:
    """Return an empty project that loads the plugin, in a process of its own.

    Its sessions lock the machine's device, so xdist's workers take turns.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    for name in ("NO_COLOR", "FORCE_COLOR", "CI", *COSTLY):
        monkeypatch.delenv(name, raising=False)
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\n")
    pytester.makeconftest('pytest_plugins = ("core.plugin",)')
    (pytester.path / "specs").mkdir()
    with filelock.FileLock(tmp_path_factory.getbasetemp().parent / "device.lock"):
        yield pytester
