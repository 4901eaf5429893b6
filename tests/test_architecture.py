"""The map of core/, as a test: who may import whom."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import core
from tests.conftest import ROOT

# Data pass the stages in this order; a stage imports what stands before it.
ALLOWED = {
    "errors": set(),
    "syntax": set(),
    "channel": set(),
    "memory": set(),
    "device_memory": set(),
    "namespaces": set(),
    "sandbox": {"namespaces"},
    "scratch": set(),
    "process": {"channel", "sandbox"},
    "spec": {"errors", "syntax"},
    "mutate": {"errors", "sandbox", "spec", "syntax"},
    "gates": {"errors", "mutate", "spec", "syntax"},
    "device": {"errors"},
    "profile": {"spec", "syntax"},
    "capture": {"errors", "gates", "mutate", "profile", "spec", "syntax"},
    "context": {"device", "profile", "training"},
    "verdict": set(),
    "noise": {"context", "verdict"},
    "evidence": {"profile", "spec", "verdict"},
    "plan": {"evidence", "verdict"},
    "settings": {"errors"},
    "agent": {
        *("errors", "gates", "launch", "mutate", "settings", "spec", "store"),
        "syntax",
    },
    "training": {"channel", "device_memory", "errors", "memory"},
    "judge": {"channel", "device_memory", "memory", "training"},
    "launch": {
        *("channel", "device", "memory", "process", "profile", "sandbox", "scratch"),
        "training",
    },
    "store": {"errors", "evidence", "scratch"},
    "pipeline": {
        *("context", "device", "errors", "evidence", "gates", "launch", "mutate"),
        *("noise", "plan", "process", "profile", "store", "training"),
    },
    "report": {"errors", "evidence", "gates", "launch", "spec"},
    "plugin": {
        *("context", "device", "errors", "evidence", "gates", "launch", "mutate"),
        *("noise", "pipeline", "plan", "process", "profile", "report", "sandbox"),
        *("agent", "settings", "spec", "store", "verdict"),
    },
    "session": {"report"},
    "queue": {"errors", "launch", "plugin", "report", "session"},
    "cli": {
        *("errors", "gates", "mutate", "plugin", "profile", "settings", "training"),
        *("launch", "queue", "report", "session", "spec", "store"),
        *("agent", "capture", "process", "syntax"),
    },
}
# Files of training/ that run outside a trial's processes as well: no torch there.
WITHOUT_TORCH = ("backend", "data", "tokenizer")


def modules() -> Iterator[tuple[str, Path]]:
    """Yield every module of core with the stage that it belongs to."""
    for path in sorted((ROOT / "core").rglob("*.py")):
        parts = path.relative_to(ROOT / "core").with_suffix("").parts
        if parts != ("__init__",):
            yield parts[0], path


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_a_stage_imports_only_what_the_table_allows():
    found = defaultdict(set)
    for stage, path in modules():
        for name in imports(path):
            top, _, rest = name.partition(".")
            if top == "core" and rest.split(".")[0] != stage:
                found[stage].add(rest.split(".")[0])

    assert {stage: found[stage] - allowed for stage, allowed in ALLOWED.items()} == {
        stage: set() for stage in ALLOWED
    }
    assert {stage for stage, _ in modules()} == set(ALLOWED)


def test_core_never_imports_what_people_write():
    for _, path in modules():
        tops = {name.partition(".")[0] for name in imports(path)}

        assert not tops & {"specs", "codemods", "tests"}, path


def test_torch_is_imported_only_where_a_trial_runs():
    for stage, path in modules():
        inside = stage in ("judge", "device_memory") or (
            stage == "training"
            and path.relative_to(ROOT / "core" / "training").parts[0].split(".")[0]
            not in WITHOUT_TORCH
        )
        tops = {name.partition(".")[0] for name in imports(path)}

        assert inside or "torch" not in tops, path


def test_what_trains_is_imported_by_the_processes_of_a_trial_alone():
    for stage, path in modules():
        names = [name.split(".") for name in imports(path)]
        ours = {name[2] for name in names if name[:2] == ["core", "training"]}

        assert stage in ("training", "judge") or ours <= set(WITHOUT_TORCH), path


def test_sql_is_written_in_the_store_alone():
    words = ("select ", "insert into", "create table", "duckdb.connect")
    for stage, path in modules():
        strings = [
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]

        assert stage == "store" or not any(
            text.startswith(words) for text in strings
        ), path


def test_the_map_in_the_docstring_names_every_stage():
    assert core.__doc__ is not None

    named = {
        line.split()[1] for line in core.__doc__.splitlines() if line.startswith("* ")
    }

    assert named == set(ALLOWED)


def test_no_module_is_a_grab_bag():
    grab_bags = {"utils", "common", "helpers", "types", "misc"}

    assert not [path for _, path in modules() if path.stem in grab_bags]


@pytest.mark.parametrize(
    "module",
    [
        *("core.plugin.trials", "core.pipeline", "core.launch.local"),
        *("core.process.zygote", "core.sandbox"),
    ],
)
def test_what_plans_stores_confines_and_forks_does_not_itself_import_torch(module: str):
    code = f"import sys, {module}; print(sorted(sys.modules.keys() & " + (
        "{'torch', 'libcst', 'codemods'}))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "[]\n"
