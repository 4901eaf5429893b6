import ast
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import attrs
import pytest

import core.context
from core.context import JUDGE_FILES, NUMERIC_FILES, current_context, files_digest
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


def a_context(profile=CPU, *, confined=True):
    return current_context(
        profile, cpu(), data="8c1f", base="9f", shared=False, confined=confined
    )


@pytest.mark.parametrize(
    "field", [field.name for field in attrs.fields(core.context.Context)]
)
def test_a_change_in_any_field_is_another_context(field):
    context = a_context()
    value = getattr(context, field)
    changed = not value if isinstance(value, bool) else value * 2

    other = attrs.evolve(context, **{field: changed})

    assert other.digest != context.digest


def test_the_same_conditions_are_the_same_context():
    assert a_context().digest == a_context().digest
    assert re.fullmatch(r"[0-9a-f]{12}", a_context().digest)


def test_a_session_with_another_budget_has_another_context():
    shorter = attrs.evolve(CPU, budget_seconds=1.0)

    assert a_context(shorter).digest != a_context().digest


def test_a_run_without_a_sandbox_is_never_compared_with_one_in_it():
    assert a_context(confined=False).digest != a_context(confined=True).digest


def test_more_seeds_do_not_leave_the_context():
    more = attrs.evolve(CPU, looks=8)

    assert a_context(more) == a_context()


# --- the digest of what can change a number


@pytest.fixture
def core_copy(tmp_path):
    """Return a copy of core/ to change, with its digest."""
    copy = tmp_path / "core"
    shutil.copytree(CORE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy, files_digest(NUMERIC_FILES, copy)


def numeric_files():
    paths = [CORE / name for name in NUMERIC_FILES]
    folders = [path.glob("*.py") if path.is_dir() else [path] for path in paths]
    return [f.relative_to(CORE).as_posix() for files in folders for f in sorted(files)]


def test_a_copy_elsewhere_has_the_same_digest(core_copy):
    assert core_copy[1] == files_digest(NUMERIC_FILES)


@pytest.mark.parametrize("name", numeric_files())
def test_a_changed_numeric_file_is_another_context(core_copy, name):
    copy, before = core_copy

    with (copy / name).open("a") as file:
        file.write("\n")

    assert files_digest(NUMERIC_FILES, copy) != before


@pytest.mark.parametrize("name", NUMERIC_FILES)
def test_a_numeric_file_that_was_renamed_does_not_drop_out_in_silence(core_copy, name):
    copy, _ = core_copy
    (copy / name).rename(copy / f"{name}.renamed")

    with pytest.raises(FileNotFoundError):
        files_digest(NUMERIC_FILES, copy)


def test_a_rename_within_a_numeric_folder_is_another_context(core_copy):
    copy, before = core_copy
    (copy / "training/data/split.py").rename(copy / "training/data/splitting.py")

    assert files_digest(NUMERIC_FILES, copy) != before


def test_the_judge_has_a_digest_of_its_own(core_copy):
    copy, _ = core_copy
    before = files_digest(JUDGE_FILES, copy)

    (copy / "training" / "serve.py").write_text("")
    served_otherwise = files_digest(JUDGE_FILES, copy)
    (copy / "judge" / "audit.py").write_text("")

    assert served_otherwise == before
    assert files_digest(JUDGE_FILES, copy) != before


def test_a_change_elsewhere_keeps_the_context(core_copy):
    copy, before = core_copy
    (copy / "report" / "table.py").write_text("")

    assert files_digest(NUMERIC_FILES, copy) == before


def test_all_that_the_processes_of_a_trial_import_is_in_the_digest():
    harmless = {
        *("__init__.py", "training/__init__.py", "errors.py", "channel.py"),
        "namespaces.py",
        "sandbox.py",  # it refuses what no number comes from
    }
    waiting = [
        *("judge/__init__.py", "training/entry.py", "training/serve.py"),
        "process/zygote.py",
    ]
    found = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += imported(CORE / name)

    assert found - harmless - set(numeric_files()) == set()


def imported(file):
    """Return the modules of core that *file* imports, as paths below core/."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "core":
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in (node.module, *named):
                module = CORE.joinpath(*name.split(".")[1:])
                if module.with_suffix(".py").is_file():
                    yield module.with_suffix(".py").relative_to(CORE).as_posix()
                elif module.is_dir():
                    yield (module / "__init__.py").relative_to(CORE).as_posix()
