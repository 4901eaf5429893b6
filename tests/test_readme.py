"""README.md, AGENTS.md and docs/gpu.md are examples that run."""

import ast
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator

import attrs
import duckdb
import pytest

from codemods.base import Codemod
from core.profile import Profile
from core.spec import Case, read_spec
from core.store.connection import opened
from tests import test_store
from tests.conftest import ROOT

# The made-up history of the answers in docs/sql.md
journal, database, night = test_store.journal, test_store.database, test_store.night

README = ROOT / "README.md"
ON_GPUS = ROOT / "docs" / "gpu.md"
ON_THE_AGENT = ROOT / "docs" / "agent.md"
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (README, ROOT / "AGENTS.md", ON_GPUS, ON_THE_AGENT)
}
MADE_UP = ("specs/x.py", "specs/topic.py")  # in what shows how a command is called
MADE_ON_FIRST_USE = ("runs", "runs.duckdb", ".venv")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)]+)\)")


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of that language, in all texts."""
    return [
        block
        for text in TEXTS.values()
        for found, block in FENCE.findall(text)
        if found == language
    ]


def spans() -> list[tuple[str, str]]:
    """Return what stands in backticks outside of fenced blocks, and in which text."""
    return [
        (name, span)
        for name, text in TEXTS.items()
        for span in re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    ]


def section(title: str) -> str:
    """Return a section of the README."""
    return re.split(
        r"^## ", README.read_text().split(f"\n## {title}\n")[1], flags=re.M
    )[0]


def files(folder: str) -> dict[str, str]:
    """Return the Python blocks that name a file below *folder*, by that file."""
    found = {}
    for block in blocks("python"):
        first, _, rest = block.partition("\n")
        if first.startswith(f"# {folder}/"):
            found[first.removeprefix("# ")] = rest
    return found


def commands() -> list[list[str]]:
    """Return every command of the ``sh`` blocks and of the prose, in words."""
    written = [line for block in blocks("sh") for line in block.splitlines()]
    written += [span for _, span in spans() if " " in span and "<" not in span]
    parts = [part for line in written for part in re.split(r"&&|;(?= )|\|", line)]
    words = [shlex.split(part) for part in parts if part.count('"') % 2 == 0]
    return [found for found in words if found]


def test_every_python_block_names_the_file_that_holds_it():
    assert len(files("specs")) + len(files("codemods")) == len(blocks("python"))
    assert files("specs")
    assert files("codemods")


@pytest.mark.parametrize("file", files("specs"))
def test_the_spec_says_what_the_file_says(file, tmp_path):
    copy = tmp_path / file
    copy.parent.mkdir()
    copy.write_text(files("specs")[file])

    shown, errors = read_spec(copy, tmp_path)
    there, _ = read_spec(ROOT / file, ROOT)

    names = {case.name for case in shown}
    assert not errors
    assert shown
    assert said(shown) == said(case for case in there if case.name in names)


def said(cases: Iterator[Case]) -> list[Case]:
    return [attrs.evolve(case, file="", line=0) for case in cases]


@pytest.mark.parametrize("file", files("codemods"))
def test_the_codemod_is_the_file(file):
    assert files("codemods")[file] == (ROOT / file).read_text()


# SQL


@pytest.mark.parametrize("sql", blocks("sql"), ids=lambda sql: sql.split()[1])
def test_a_question_can_be_asked_before_there_is_an_answer(sql):
    with opened(None, 0.0) as db:
        assert db.execute(sql).fetchall() == []


@pytest.mark.parametrize("sql", blocks("sql"), ids=lambda sql: sql.split()[1])
def test_a_question_has_an_answer(sql, night):
    with duckdb.connect(str(night), read_only=True) as db:
        assert db.execute(sql).fetchall()


# Commands


def test_shell_blocks_are_shell():
    assert blocks("sh")
    for block in blocks("sh"):
        done = subprocess.run(["bash", "-n"], input=block, text=True, check=False)
        assert done.returncode == 0, block


@pytest.fixture(scope="module")
def pytest_help() -> str:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--help"],
        cwd=ROOT,
        env={"PATH": "", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def options(pytest_help: str) -> set[str]:
    """Return all options, of lines such as ``  -v, --verbose   Increase verbosity``."""
    lines = re.findall(r"^  (-.+?)(?:  |$)", pytest_help, re.MULTILINE)
    return {
        option
        for line in lines
        for option in re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", line)
    }


def spelt(option: str) -> str:
    """Return an option without inner dashes: pytest takes both, and lists one."""
    dashes = "--" if option.startswith("--") else "-"
    return dashes + option.replace("-", "")


def test_options_of_pytest_exist(pytest_help):
    told = [*commands(), *(span.split() for _, span in spans())]
    used = {
        word.partition("=")[0]
        for first, *others in told
        for word in (first, *others)
        if first.rpartition("/")[2] == "pytest" or first.startswith("-")
        if re.match(r"--?[A-Za-z]", word)
    }

    known = {*map(spelt, options(pytest_help)), "--help"}
    assert {"--collect-only", "-k", "--junitxml"} <= used
    assert [option for option in sorted(used) if spelt(option) not in known] == []


def test_the_readme_lists_the_options_of_experiments(pytest_help):
    group = pytest_help.split("experiments under specs/:\n")[1].split("\n\n")[0]
    paragraph = section("Options").strip().split(" Selection ")[0]
    listed = re.findall(r"`(--[\w-]+)`", paragraph)

    assert listed == re.findall(r"^  (--[\w-]+)", group, re.MULTILINE)


def inline(start: str) -> list[str]:
    return [span for _, span in spans() if span.startswith(start)]


@pytest.mark.parametrize("command", inline("python -c "))
def test_a_program_of_one_line_runs(command, night):
    _, *arguments = shlex.split(command)

    done = subprocess.run(
        [sys.executable, *arguments], cwd=night.parent, capture_output=True, text=True
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "specs/attention.py::qk_norm" in done.stdout


@pytest.mark.parametrize("command", inline("python -m libcst.tool "))
def test_a_codemod_by_itself_rewrites_the_module(command, tmp_path):
    _, *arguments, module = shlex.split(command)
    copy = tmp_path / "train.py"
    shutil.copy(ROOT / module, copy)

    done = subprocess.run(
        [sys.executable, *arguments, str(copy)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert copy.read_text() != (ROOT / module).read_text()


# Codemods


def rows() -> list[tuple[str, list[str]]]:
    """Return each codemod of the README's table, as module.Class, with its options."""
    found = []
    table = re.findall(r"^\| (`.+?) \| (.+?) \|$", README.read_text(), re.MULTILINE)
    for codemods, told in table:
        module = ""
        for name in re.findall(r"`([\w.]+)`", codemods):
            module = name.rpartition(".")[0] or module
            reference = f"{module}.{name.rpartition('.')[2]}"
            found.append((reference, re.findall(r"`(\w+)`", told)))
    return found


@pytest.mark.parametrize(("reference", "told"), rows())
def test_a_codemod_of_the_table_takes_these_options(reference, told):
    module, _, name = reference.rpartition(".")
    codemod = getattr(importlib.import_module(f"codemods.{module}"), name)

    assert issubclass(codemod, Codemod)
    assert sorted(told) == sorted(codemod.parameters())


def test_the_table_holds_the_whole_vocabulary():
    vocabulary = {
        f"{path.stem}.{node.name}"
        for path in (ROOT / "codemods").glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and "EXAMPLES" in ast.unparse(node)
        if path.stem not in ("base", "symbols") and not node.name.startswith("_")
    }

    assert {reference for reference, _ in rows()} == vocabulary


# Names


def exists(path: str) -> bool:
    """Return whether a path is in the repository, or may be missing from it."""
    is_folder, path = path.endswith("/"), path.rstrip("/")
    if path in MADE_UP or path.split("/")[0] in MADE_ON_FIRST_USE:
        return True
    return (ROOT / path).is_dir() if is_folder else (ROOT / path).exists()


def test_paths_exist():
    words = [word for _, span in spans() for word in span.split()]
    words += [word for command in commands() for word in command]
    paths = {
        word.partition("::")[0]
        for word in words
        if re.fullmatch(r"\.?[A-Za-z_][\w.-]*(/[\w.-]*)+(::\w+)?", word)
    }

    assert {"specs/", "core/training/train.py"} <= paths
    assert [path for path in sorted(paths) if not exists(path)] == []


def test_names_in_capitals_are_names_of_the_code():
    code = [
        path.read_text()
        for folder in ("core", "codemods")
        for path in (ROOT / folder).rglob("*.py")
    ]
    known = {name for text in code for name in re.findall(r"[A-Z]\w+", text)}
    used = {
        word
        for _, span in spans()
        for word in re.findall(r"^(?:\w+\.)*([A-Z][A-Za-z_]{3,})(?:\(.*\))?$", span)
    }

    assert {"EXAMPLES", "Experiment"} <= used
    assert sorted(used - known) == []


def test_the_page_on_gpus_names_columns_and_what_a_profile_holds(night):
    named = {
        span
        for text, span in spans()
        if text == str(ON_GPUS.relative_to(ROOT))
        if re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)+", span)
    }
    with duckdb.connect(str(night), read_only=True) as db:
        columns = {
            column
            for table in ("runs", "conditions")
            for column, *_ in db.execute(f"describe {table}").fetchall()
        }
    fields = {field.name for field in attrs.fields(Profile)}

    assert {"gap_seconds", "memory_mib"} <= named
    assert sorted(named - columns - fields) == []


def test_the_page_on_gpus_has_the_phases_of_a_trial_in_their_order():
    phases = re.findall(
        r"^\| (\w+) \|.*\| `(\w+)_seconds` \|$", ON_GPUS.read_text(), re.M
    )

    assert phases == [
        (phase, phase)
        for phase in ("ahead", "start", "train", "save", "serve", "score")
    ]


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_to_files(name):
    targets = [target.partition("#")[0] for target in LINK.findall(TEXTS[name])]
    local = [target for target in targets if target and "://" not in target]

    assert local
    folder = (ROOT / name).parent
    assert [target for target in local if not (folder / target).exists()] == []


def test_the_tree_lists_what_there_is():
    (tree,) = (block for _, block in FENCE.findall(section("The tree")))
    listed, parents = [], {0: ""}
    for line in tree.splitlines():
        indent, path = re.match(r"( *)(\S+)", line).groups()
        full = parents[len(indent)] + path
        parents[len(indent) + 2] = full
        listed.append(full)

    assert len(listed) > 5
    assert [path for path in listed if not exists(path)] == []


@pytest.mark.parametrize("name", TEXTS)
def test_no_placeholder_is_left(name):
    left = re.findall(r"^[A-Z]{3,}$|\b(?:TODO|TBD|XXX)\b", TEXTS[name], re.MULTILINE)

    assert left == []
