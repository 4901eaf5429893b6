"""What torch.compile keeps: from the base alone, and a copy for each trial."""

import os
from pathlib import Path

import pytest

from core.launch.compile_cache import CompileCache
from core.scratch import remove


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
    cache.fill()

    assert gone
    assert kernel.read_text() == "of the base"


def test_what_an_edited_trial_writes_reaches_nobody_else(cache: CompileCache):
    kernel = put(cache, "trainer", "of the base")
    cache.adopt()
    cache.fill()

    kernel.write_text("poison")
    put(cache, "trainer", "poison", "cd/another.py")
    cache.adopt()  # even where it is taken for a run of the base
    cache.fill()

    assert kernel.read_text() == "of the base"
    assert not (cache.own("trainer") / "inductor" / "cd").exists()


def test_each_process_gets_its_own_and_not_that_of_another(cache: CompileCache):
    put(cache, "trainer", "of the trainer")
    served = put(cache, "server1", "of the server")
    cache.adopt()

    cache.fill()

    assert served.read_text() == "of the server"


def test_links_are_not_followed(cache: CompileCache, tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("sealed")
    put(cache, "trainer", "of the base")
    (cache.own("trainer") / "inductor" / "link.py").symlink_to(secret)

    cache.adopt()
    cache.fill()

    assert not (cache.own("trainer") / "inductor" / "link.py").exists()


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
