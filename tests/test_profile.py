import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import attrs
import pytest

import core.context
from core.context import NUMERIC_FILES, current_context, numerics_digest
from core.device import cpu
from core.profile import CPU, GPU, PROFILES, torch_build
from core.spec.vocabulary import PROFILE_NAMES

CORE = Path(core.context.__file__).parent


# --- profiles


def test_a_spec_can_speak_of_every_profile_there_is():
    assert set(PROFILES) == set(PROFILE_NAMES)
    assert all(name == profile.name for name, profile in PROFILES.items())


@pytest.mark.parametrize("profile", [GPU, CPU], ids=lambda profile: profile.name)
def test_a_profile_allows_at_least_two_seeds_since_one_is_never_enough(profile):
    assert profile.looks >= 2
    assert profile.hang_seconds > profile.grace_seconds > 0


# --- the build of torch


@pytest.mark.parametrize(
    ("line", "cuda"),
    [
        ("cuda: Optional[str] = '13.0'", "13.0"),
        ("cuda = '12.8'", "12.8"),
        ("cuda: Optional[str] = None", None),
        ("hip = '6.4'", None),
    ],
)
def test_the_cuda_of_the_build_is_read_and_torch_is_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, cuda: str | None
):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "raise AssertionError('it was run')"
    )
    (tmp_path / "torch" / "version.py").write_text(f"__version__ = '9'\n{line}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)

    assert torch_build().cuda == cuda


def test_the_build_is_the_installed_one():
    code = "import torch; print(torch.version.cuda)"

    said = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout

    assert str(torch_build().cuda) == said.strip()
    assert torch_build().version == version("torch")
    assert a_context().torch == version("torch")


# --- contexts


def a_context():
    return current_context(CPU, cpu(), data="8c1f", base="9f", shared=False)


@pytest.mark.parametrize(
    "field", [field.name for field in attrs.fields(core.context.Context)]
)
def test_a_change_in_any_field_is_another_context(field):
    context = a_context()
    value = getattr(context, field)

    other = attrs.evolve(context, **{field: value * 2})

    assert other.digest != context.digest


def test_the_same_conditions_are_the_same_context():
    assert a_context().digest == a_context().digest
    assert re.fullmatch(r"[0-9a-f]{12}", a_context().digest)


def test_a_session_with_another_budget_has_another_context():
    shorter = attrs.evolve(CPU, budget_seconds=1.0)

    other = current_context(shorter, cpu(), data="8c1f", base="9f", shared=False)

    assert other.digest != a_context().digest


def test_more_seeds_do_not_leave_the_context():
    more = attrs.evolve(CPU, looks=8)

    assert (
        current_context(more, cpu(), data="8c1f", base="9f", shared=False)
        == a_context()
    )


# --- the digest of what can change a number


@pytest.fixture
def core_copy(tmp_path):
    """Return a copy of core/ to change, with its digest."""
    copy = tmp_path / "core"
    shutil.copytree(CORE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy, numerics_digest(copy)


def numeric_files():
    paths = [CORE / name for name in NUMERIC_FILES]
    folders = [path.glob("*.py") if path.is_dir() else [path] for path in paths]
    return [f.relative_to(CORE).as_posix() for files in folders for f in sorted(files)]


def test_a_copy_elsewhere_has_the_same_digest(core_copy):
    assert core_copy[1] == numerics_digest()


@pytest.mark.parametrize("name", numeric_files())
def test_a_changed_numeric_file_is_another_context(core_copy, name):
    copy, before = core_copy

    with (copy / name).open("a") as file:
        file.write("\n")

    assert numerics_digest(copy) != before


@pytest.mark.parametrize("name", NUMERIC_FILES)
def test_a_numeric_file_that_was_renamed_does_not_drop_out_in_silence(core_copy, name):
    copy, _ = core_copy
    (copy / name).rename(copy / f"{name}.renamed")

    with pytest.raises(FileNotFoundError):
        numerics_digest(copy)


def test_a_rename_within_a_numeric_folder_is_another_context(core_copy):
    copy, before = core_copy
    (copy / "training/data/split.py").rename(copy / "training/data/splitting.py")

    assert numerics_digest(copy) != before


def test_a_change_elsewhere_keeps_the_context(core_copy):
    copy, before = core_copy
    (copy / "report" / "table.py").write_text("")

    assert numerics_digest(copy) == before


def test_all_that_trainer_server_and_judge_import_is_in_the_digest():
    harmless = {"__init__.py", "training/__init__.py", "errors.py", "channel.py"}
    waiting = ["judge.py", "training/entry.py", "training/serve.py"]
    found = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += imported(CORE / name)

    assert found - harmless - set(numeric_files()) == set()


def imported(file):
    """Return the modules of core that *file* imports, as paths below core/."""
    names = re.findall(r"^\s*(?:from|import) core\.?([\w.]*)", file.read_text(), re.M)
    for name in names:
        module = CORE.joinpath(*name.split("."))
        path = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
        yield path.relative_to(CORE).as_posix()
