"""The plugin from outside: what a pytest user types, and what they read."""

import platform
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import duckdb
import filelock
import pytest

from tests.conftest import ROOT

HEADER = "from core.spec import Expect, Experiment, Sweep, codemod\n"
ROPE = """
rope_base = Experiment(
    hypothesis="Positions far apart stay apart.",
    change="Multiply the rotary base by {factor}.",
    codemod=codemod("constants.ScaleConstant", name="ROPE_BASE", factor="{factor}"),
    sweep=Sweep(factor=(5, 20)),
    expect=Expect(delta_bpb=-0.0012, sd=0.001),
    tags=("attention",),
)
"""
SOFTCAP = """
softcap = Experiment(
    hypothesis="A tighter cap calibrates.",
    change="Halve the cap of the logits.",
    codemod=codemod("constants.ScaleConstant", name="SOFTCAP", factor=0.8),
)
"""


def write(project: pytest.Pytester, path: str, text: str) -> Path:
    file = project.path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(text))
    return file


def spec(project: pytest.Pytester, name: str, *experiments: str) -> Path:
    return write(project, f"specs/{name}.py", HEADER + "".join(experiments))


def ids(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if re.match(r"specs/\S+::", line)]


def block(result: pytest.RunResult, start: str) -> str:
    """Return the lines from the one that begins with *start* to the next blank pair."""
    text = "\n".join(result.outlines)
    return text[text.index(start) :]


def test_ids_are_file_experiment_and_swept_value(project: pytest.Pytester):
    spec(project, "attention", ROPE, SOFTCAP)

    result = project.runpytest_subprocess("specs", "--collect-only", "-q")

    assert ids(result) == [
        "specs/attention.py::rope_base[5]",
        "specs/attention.py::rope_base[20]",
        "specs/attention.py::softcap",
    ]
    assert result.ret == 0


@pytest.mark.parametrize(
    ("keyword", "selected"),
    [
        ("attention", ["positions.py::rope_base[5]", "positions.py::rope_base[20]"]),
        ("rope_base and 20", ["positions.py::rope_base[20]"]),
        ("logits", ["logits.py::softcap"]),
        ("softcap or 5", ["logits.py::softcap", "positions.py::rope_base[5]"]),
    ],
)
def test_k_matches_file_name_tag_and_swept_value(
    project: pytest.Pytester, keyword: str, selected: list[str]
):
    spec(project, "positions", ROPE)
    spec(project, "logits", SOFTCAP)

    result = project.runpytest_subprocess(
        "specs", "--collect-only", "-q", "-k", keyword
    )

    assert ids(result) == [f"specs/{name}" for name in selected]


def test_a_spec_named_on_the_command_line_is_collected_once(project: pytest.Pytester):
    spec(project, "attention", SOFTCAP)

    result = project.runpytest_subprocess(
        "specs/attention.py::softcap", "--collect-only", "-q"
    )

    assert ids(result) == ["specs/attention.py::softcap"]


def test_nothing_under_specs_is_executed(project: pytest.Pytester):
    write(project, "specs/__init__.py", "open('package', 'w')")
    write(project, "specs/ideas/__init__.py", "open('folder', 'w')")
    write(project, "specs/ideas/evil.py", "open('spec', 'w')")
    write(project, "specs/test_evil.py", "open('test', 'w')")
    write(project, "specs/_notes.py", "open('notes', 'w')")

    result = project.runpytest_subprocess("specs", "--collect-only")

    assert result.ret == 1
    assert not [
        name
        for name in ("package", "folder", "spec", "test", "notes")
        if (project.path / name).exists()
    ]


def test_a_conftest_under_specs_is_refused_before_it_is_imported(
    project: pytest.Pytester,
):
    found = write(project, "specs/conftest.py", "open('conftest_ran', 'w')")

    result = project.runpytest_subprocess("specs")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.errlines[0] == (
        f"ERROR: {found} is code, and what is under specs/ is never executed."
    )
    assert "hint: move it to the conftest.py beside specs/, or remove it." in (
        result.errlines
    )
    assert not (project.path / "conftest_ran").exists()


def test_a_broken_spec_is_reported_under_k_and_the_others_are_collected(
    project: pytest.Pytester,
):
    spec(project, "attention", ROPE)
    spec(
        project,
        "broken",
        """
wider = Experiment(
    hypothesis="More is more.",
    change="Widen.",
    expect=Expect(delta_bpb="-0.01"),
)
""",
    )

    result = project.runpytest_subprocess("specs", "--collect-only", "-k", "attention")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([
        "*<Experiment rope_base?20?>  ROPE_BASE: 10000 → 200000",
        "*ERROR collecting specs/broken.py*",
        "specs/broken.py:6: delta_bpb='-0.01': expected a number of bits per byte.",
        "",
        "hint: write it without quotes: delta_bpb=-0.01.",
    ])


def test_xdist_and_experiments_exclude_each_other(project: pytest.Pytester):
    spec(project, "attention", SOFTCAP)

    result = project.runpytest_subprocess("specs", "-n", "2")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.errlines[0] == (
        "ERROR: -n 2: experiments run one a device, and xdist's workers would share it."
    )


@pytest.mark.slow
def test_xdist_still_runs_ordinary_tests(project: pytest.Pytester):
    spec(project, "attention", SOFTCAP)
    write(project, "tests/test_it.py", "def test_it(): pass")

    result = project.runpytest_subprocess("tests", "-n", "1")

    result.assert_outcomes(passed=1)


PROBE = """
import sys

def pytest_sessionfinish():
    heavy = {"torch", "libcst", "duckdb", "pyarrow", "scipy", "numpy", "tiktoken"}
    print("loaded", sorted(heavy & set(sys.modules)))
"""


def test_a_dry_run_loads_neither_torch_nor_libcst_nor_duckdb(project: pytest.Pytester):
    spec(project, "attention", ROPE)
    write(project, "probe.py", PROBE)

    result = project.runpytest_subprocess(
        "specs", "--collect-only", "-p", "probe", "-s"
    )

    assert "loaded []" in result.outlines


DRY = """
no_op = Experiment(
    hypothesis="h", change="c",
    codemod=codemod("constants.SetConstant", name="SOFTCAP", value=15),
)
miss = Experiment(
    hypothesis="h", change="c",
    codemod=codemod("constants.SetConstant", name="SOFTKAP", value=10),
)
odd_heads = Experiment(
    hypothesis="h", change="c",
    codemod=codemod("constants.SetConstant", name="N_KV_HEAD", value=3),
)
other_vocabulary = Experiment(
    hypothesis="h", change="c",
    codemod=codemod("constants.SetConstant", name="VOCAB_SIZE", value=50),
)
tight = Experiment(
    hypothesis="h", change="c",
    codemod=codemod("constants.SetConstant", name="SOFTCAP", value=12),
)
tight_again = Experiment(
    hypothesis="h", change="c",
    codemod=codemod("constants.ScaleConstant", name="SOFTCAP", factor=0.8),
)
clash = Experiment(
    hypothesis="h", change="c",
    codemod=(
        codemod("constants.SetConstant", name="SOFTCAP", value=12),
        codemod("constants.SetConstant", name="SOFTCAP", value=13),
    ),
)
nobody_wrote_it = Experiment(hypothesis="h", change="c")
"""


def test_a_dry_run_flags_what_cannot_run_and_what_runs_twice(project: pytest.Pytester):
    spec(project, "dry", DRY)

    result = project.runpytest_subprocess("specs", "--collect-only")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    report = block(result, "specs/dry.py::no_op")
    assert "SOFTCAP is 15 already." in report
    assert "specs/dry.py::miss (specs/dry.py:7)" in report
    assert "The training module has no constant 'SOFTKAP'." in report
    assert re.search(r"N_HEAD=\d+ is not a multiple of N_KV_HEAD=3\.", report)
    assert "VOCAB_SIZE is 50, and the data were prepared for " in report
    assert "rewrites lines that" in report
    assert (
        "specs/dry.py::nobody_wrote_it unimplemented: there is no codemod at "
        "codemods/dry/nobody_wrote_it.py. Write one, name one in codemod=, or have one "
        "written by --agent." in report
    )
    assert (
        "specs/dry.py::tight_again  (the same module as specs/dry.py::tight)" in report
    )
    assert (
        "dry run: 2 applied, 5 cannot run, 1 unimplemented, 1 twice; nothing was trained"
        in report
    )
    assert not (project.path / "runs").exists()


def test_a_dry_run_with_v_shows_each_diff_in_colour(project: pytest.Pytester):
    spec(project, "logits", SOFTCAP)

    result = project.runpytest_subprocess(
        "specs", "--collect-only", "-v", "--color=yes"
    )

    text = "\n".join(result.outlines)
    assert "\x1b[31m-SOFTCAP = 15  #" in text
    assert "\x1b[32m+SOFTCAP = 12  #" in text


def test_no_color_is_respected(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NO_COLOR", "1")
    spec(project, "logits", SOFTCAP)

    result = project.runpytest_subprocess("specs", "--collect-only", "-v")

    assert "\x1b" not in "\n".join(result.outlines)


@pytest.mark.slow
def test_a_codemod_is_found_by_the_name_of_its_experiment(project: pytest.Pytester):
    spec(
        project,
        "logits",
        """
cap = Experiment(hypothesis="h", change="Cap at {at}.", sweep=Sweep(at=(9, 11)))
""",
    )
    write(
        project,
        "codemods/logits/cap.py",
        '''
        """Cap the logits elsewhere."""

        from codemods.constants import SetConstant


        class Cap(SetConstant):
            """Cap the logits at another value."""

            def __init__(self, context, *, at: int) -> None:
                super().__init__(context, name="SOFTCAP", value=at)
        ''',
    )

    result = project.runpytest_subprocess("specs", "--collect-only")

    result.stdout.fnmatch_lines([
        "*<Experiment cap?9?>  SOFTCAP: 15 → 9",
        "*<Experiment cap?11?>  SOFTCAP: 15 → 11",
    ])


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--budget", "0"], "ERROR: --budget 0 is not a training time."),
        (["--seeds", "0"], "ERROR: --seeds 0: expected 1 to 64."),
        (
            ["--base-seeds", "1"],
            "ERROR: --base-seeds 1: expected 2 to 64, since the spread is that of two or "
            "more seeds on one device.",
        ),
        (
            ["--base-seeds", "4", "--rerun"],
            "ERROR: --base-seeds runs no candidate, so --rerun has no effect.",
        ),
        (["--data", "nowhere"], "ERROR: There is no corpus at nowhere."),
    ],
)
def test_an_impossible_option_is_refused_before_anything_runs(
    project: pytest.Pytester, option: list[str], said: str
):
    spec(project, "logits", SOFTCAP)

    result = project.runpytest_subprocess("specs", *option)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert any(line.startswith(said) for line in result.errlines), result.errlines
    assert not (project.path / "runs.duckdb").exists()


def test_a_corpus_that_is_smaller_than_one_evaluation_is_refused(
    project: pytest.Pytester,
):
    spec(project, "logits", SOFTCAP)
    for number in range(40):
        words = " ".join(f"{number * k * 7919 % 9973:x}" for k in range(400))
        write(project, f"corpus/{number}.txt", f"Text {number}. {words}\n")

    result = project.runpytest_subprocess("specs", "--data", "corpus")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    message, _, hint = result.errlines[:3]
    assert re.fullmatch(
        r"ERROR: the corpus has [\d,]+ validation tokens, and an evaluation under the "
        r"profile cpu takes at least 8,192\.",
        message,
    )
    assert hint == "hint: name a larger corpus, or more of its files: --data PATH."
    assert not (project.path / "runs.duckdb").exists()


def test_specs_are_refused_where_pytest_sees_another_root(project: pytest.Pytester):
    spec(project, "attention", SOFTCAP)
    evil = write(project, "specs/test_evil.py", "open('evil_ran', 'w')")

    result = project.runpytest_subprocess("specs", f"--rootdir={evil.parent}")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.errlines[0] == (
        f"ERROR: pytest's root is {evil.parent}, and the project is {project.path}: "
        "its specs would be collected as something else."
    )
    assert not (project.path / "evil_ran").exists()


def test_a_folder_whose_name_cannot_be_a_module_is_reported(project: pytest.Pytester):
    write(project, "specs/My-ideas/cap.py", HEADER + SOFTCAP)

    result = project.runpytest_subprocess("specs", "--collect-only")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([
        "specs/My-ideas/cap.py:1: 'My-ideas' in the file's path does not match *",
    ])


@pytest.mark.parametrize(
    "selected", ["specs/deep/cap.py::rope_base[5]", "specs/deep/cap.py"]
)
def test_what_a_person_names_is_collected_from_wherever_they_stand(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, selected: str
):
    write(project, "specs/deep/cap.py", HEADER + ROPE)
    monkeypatch.chdir(project.path / "specs")

    result = project.runpytest_subprocess(
        str(project.path / selected), "--collect-only", "-q"
    )

    assert "specs/deep/cap.py::rope_base[5]" in ids(result)
    assert ("specs/deep/cap.py::rope_base[20]" in ids(result)) != ("[5]" in selected)


def test_a_cache_that_cannot_be_written_is_named(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    spec(project, "logits", SOFTCAP)

    result = project.runpytest_subprocess("specs", "--collect-only")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.errlines[:3] == [
        "ERROR: the cache folder /dev/null/deltaspec cannot be made: Not a directory.",
        "",
        "hint: set XDG_CACHE_HOME to a folder that you can write to.",
    ]


def test_a_file_in_the_place_of_runs_is_named(project: pytest.Pytester):
    spec(project, "logits", SOFTCAP)
    write(project, "runs", "not a folder")

    result = project.runpytest_subprocess("specs")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.errlines[0].startswith(
        f"ERROR: {project.path}/runs cannot be written"
    )


def test_a_constant_that_moved_is_shown_as_moved(project: pytest.Pytester):
    spec(
        project,
        "order",
        """
order = Experiment(
    hypothesis="h", change="c",
    codemod=(
        codemod("statements.DeleteStatement", statement="ROPE_BASE = 10_000"),
        codemod("statements.InsertBefore", statement="SOFTCAP = 15",
            source="ROPE_BASE = 10_000"),
    ),
)
""",
    )

    result = project.runpytest_subprocess("specs", "--collect-only")

    assert result.ret == 0
    result.stdout.fnmatch_lines(["*<Experiment order>  ↕*"])


# As a kernel that was built without Landlock: its system calls are not there.  The
# number in the place of UNSHARE is refused.
WITHOUT_LANDLOCK = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None)
steps = [
    (0x20, 0, 0, 0),
    (0x15, 0, 1, UNSHARE), (0x06, 0, 0, 0x5_0000 | 1),
    (0x35, 0, 2, 444), (0x25, 1, 0, 446), (0x06, 0, 0, 0x5_0000 | 38),
    (0x06, 0, 0, 0x7FFF_0000),
]
code = b"".join(struct.pack("<HBBI", *step) for step in steps)
kept = ctypes.create_string_buffer(code, len(code))
libc.prctl(38, 1, 0, 0, 0)
head = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(kept))
assert libc.prctl(22, 2, head, 0, 0) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


UNSHARE, NOTHING = "272", "-1 & 0xFFFF_FFFF"


def test_a_machine_that_cannot_confine_what_was_edited_is_refused(
    project: pytest.Pytester,
):
    spec(project, "logits", SOFTCAP)
    project.runpytest_subprocess("specs", "--collect-only")  # its codemod has been run
    without = WITHOUT_LANDLOCK.replace("UNSHARE", UNSHARE)

    result = project.run(sys.executable, "-c", without, "-m", "pytest", "specs")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.errlines == [
        "ERROR: edited code cannot be confined on this machine: the kernel "
        f"({platform.release()}) has no Landlock, or it is off; nor are there "
        "namespaces to do without (unshare: Operation not permitted).",
        "",
        "hint: run on Linux 6.2 or newer with Landlock, or allow user namespaces, on "
        "x86-64; or trust what you run, and have its numbers kept apart: "
        "--sandbox=none.",
        "",
    ]
    assert not (project.path / "runs.duckdb").exists()


@pytest.mark.slow
def test_without_landlock_a_session_confines_by_namespaces(project: pytest.Pytester):
    spec(project, "logits", SOFTCAP)
    without = WITHOUT_LANDLOCK.replace("UNSHARE", NOTHING)

    result = project.run(*(
        sys.executable,
        "-c",
        without,
        "-m",
        "pytest",
        "specs",
        "--budget=0.5",
    ))

    result.stdout.fnmatch_lines([
        "sandbox namespaces + seccomp; each process proves it (* attempts must fail)"
    ])
    with duckdb.connect(str(project.path / "runs.duckdb"), read_only=True) as runs:
        said = runs.sql("SELECT DISTINCT status, sandbox FROM runs").fetchall()
    assert said == [("finished", "namespaces + seccomp")], result.outlines


def test_two_sessions_cannot_use_one_device(project: pytest.Pytester):
    spec(project, "logits", SOFTCAP)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from core.plugin.lock import locked; from pathlib import Path;"
            "from core.device import cpu; lock = locked(Path('elsewhere'), [cpu()]);"
            "print('locked', flush=True); sys.stdin.read()",
        ],
        cwd=project.path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()

    result = project.runpytest_subprocess("specs")
    holder.communicate()

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.errlines == [
        f"ERROR: the device cpu is used by another session (process {holder.pid}).",
        "",
        "hint: wait until it has ended, or stop it.",
        "",
    ]


def test_two_sessions_cannot_use_one_project(project: pytest.Pytester):
    spec(project, "logits", SOFTCAP)
    (project.path / "runs").mkdir()

    with filelock.FileLock(project.path / "runs" / ".lock"):
        result = project.runpytest_subprocess("specs")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.errlines[0] == (
        f"ERROR: the project {project.path} is used by another session."
    )


@pytest.mark.slow
def test_a_prediction_that_no_affordable_plan_can_show_is_refused(
    project: pytest.Pytester,
):
    spec(
        project,
        "tiny",
        """
tiny = Experiment(
    hypothesis="h", change="c",
    codemod=codemod("constants.ScaleConstant", name="SOFTCAP", factor=0.8),
    expect=Expect(delta_bpb=-0.001, on="cpu"),
)
""",
    )

    result = project.runpytest_subprocess("specs", "-rs")

    result.assert_outcomes(skipped=1)
    text = "\n".join(result.outlines)
    assert re.search(r"2 seeds would show -0\.001 with a chance of \d+%", text)
    assert "nothing to run: 1 skipped for want of power, as said below" in text
    assert "or predict something larger." in " ".join(text.split())


def test_this_file_runs_the_plugin_of_this_checkout(project: pytest.Pytester):
    code = "import core.plugin; print(core.plugin.__file__)"

    result = project.run(sys.executable, "-c", code)

    assert result.outlines == [str(ROOT / "core" / "plugin" / "__init__.py")]
