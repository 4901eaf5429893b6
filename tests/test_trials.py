"""Whole sessions: real models train in child processes, real rows are written."""

import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ET
from pathlib import Path

import duckdb
import psutil
import pytest

from core.settings import TRAINING_MODULE
from tests.conftest import ROOT
from tests.test_plugin import spec

# Short: what is tested here is the way of a trial, not its number.
QUICK = ("--budget", "0.4")
CAP = """
cap_{number} = Experiment(
    hypothesis="h", change="c",
    codemod=codemod("constants.SetConstant", name="SOFTCAP", value={number}),
    {more}
)
"""
# Later than an examination looks.
NAN = """
broken = Experiment(
    hypothesis="h", change="c",
    codemod=codemod("statements.ReplaceStatement", function="train",
        statement="run.log(step_loss)",
        source="run.log(step_loss * (float('nan') if step > 20 else 1.0))"),
)
"""
LONGER = ("--budget", "1.5")


def cap(number: int, more: str = "") -> str:
    return CAP.format(number=number, more=more)


def rows(project: pytest.Pytester, query: str) -> list[tuple[object, ...]]:
    with duckdb.connect(project.path / "runs.duckdb", read_only=True) as db:
        return db.sql(query).fetchall()


def runs(project: pytest.Pytester) -> list[tuple[object, ...]]:
    return rows(
        project,
        "select coalesce(name, 'base'), seed, status from runs"
        " left join experiments using (experiment) order by run",
    )


def test_a_session_measures_reports_and_remembers(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(project.path / "cache"))  # and prepares
    spec(project, "logits", cap(12))

    first = project.runpytest_subprocess(
        "specs", *QUICK, "--junitxml=junit.xml", "--durations=1"
    )
    second = project.runpytest_subprocess("specs", *QUICK, "-v")

    assert first.ret == 0
    first.stdout.fnmatch_lines([
        "data    packing: *",
        "profile cpu (no CUDA GPU seen): 0.4 s of CPU time a trial, at most 2 seeds",
        "device  1 × *",
        "context *, data *, base * (run 0 times)",
        "noise   seed sd * bpb with 2 degrees of freedom",
        "        a prior: 5 s on * (docs/noise.md)",
        "sandbox landlock * + seccomp; each process proves it (* attempts must fail)",
        "at most 4 trials, about *",
        "measured     specs/logits.py::cap_12  *  2 seeds  *",
        "*= verdicts =*",
        "  cap_12 * – * ± * 2 * measured*",
        'ask the history: duckdb runs.duckdb "from leaderboard"; each trial is in runs/',
        "*= slowest 1 durations =*",
        "*s call     specs/logits.py::cap_12",
        "*= 1 measured in *",
    ])
    ours = [line for line in first.outlines if str(project.path) not in line]
    assert max(map(len, ours)) <= 80
    assert "\x1b" not in first.stdout.str()
    assert runs(project) == [
        ("base", 0, "finished"),
        ("cap_12", 0, "finished"),
        ("base", 1, "finished"),
        ("cap_12", 1, "finished"),
    ]
    assert rows(project, "select symbol, old_source, new_source from changes") == [
        ("SOFTCAP", "15", "12")
    ]
    ((bpb, steps, points),) = rows(
        project,
        "select avg(val_bpb), max(steps), count(*) from runs join curves using (run)"
        " where seed = 1 and experiment is not null",
    )
    assert 1.0 < float(str(bpb)) < 10.0
    assert steps == points
    case = ET.parse(project.path / "junit.xml").find(".//testcase")
    assert case is not None
    assert float(case.get("time", "0")) > 1.0
    properties = {p.get("name"): p.get("value") for p in case.iter("property")}
    assert properties["verdict"] == "measured"
    assert set(properties) >= {"delta_bpb", "lower_bpb", "upper_bpb", "mutant"}

    assert second.ret == 0
    second.stdout.fnmatch_lines([
        "nothing to run: all is decided",
        "specs/logits.py::cap_12 MEASURED *",
        "1 of 1 verdicts are from earlier sessions; --rerun tests them on fresh seeds.",
    ])
    assert len(runs(project)) == 4


@pytest.mark.slow
def test_the_base_alone_says_how_far_it_varies_and_what_follows_knows_it(
    project: pytest.Pytester,
):
    spec(project, "logits", cap(12))
    broken = cap(13).replace("SOFTCAP", "SOFTCUP")
    missing = 'missing = Experiment(hypothesis="h", change="c")\n'
    spec(project, "broken", f"{broken}\n{missing}")

    alone = project.runpytest_subprocess(
        "specs", *QUICK, "--base-seeds", "3", "-rs", "-x"
    )
    again = project.runpytest_subprocess("specs", *QUICK, "--base-seeds", "3")
    after = project.runpytest_subprocess("specs/logits.py", *QUICK, "--seeds", "1")

    assert (alone.ret, again.ret, after.ret) == (0, 0, 0)
    alone.stdout.fnmatch_lines([
        "profile cpu (*): 0.4 s of CPU time a trial, the base with 3 seeds",
        "noise   seed sd * bpb with 2 degrees of freedom",
        "at most 3 trials, about *",
        "*= the base =*",
        "seed     0  val_bpb *",
        "seed     1  val_bpb *",
        "seed     2  val_bpb *",
        "mean        val_bpb *, sd * on cpu",
        "noise   seed sd * bpb with 4 degrees of freedom, as verdicts use it",
        'ask the history: duckdb runs.duckdb "from runs"; each trial is in runs/',
        "SKIPPED * --base-seeds: only the base runs",
    ])
    again.stdout.fnmatch_lines([
        "noise   seed sd * bpb with 4 degrees of freedom",
        "nothing to run: the base has run with 3 seeds",
        "mean        val_bpb *, sd * on cpu",
    ])
    after.stdout.fnmatch_lines(["at most 1 trial, about *", "*= 1 measured in *"])
    assert runs(project) == [
        ("base", 0, "finished"),
        ("base", 1, "finished"),
        ("base", 2, "finished"),
        ("cap_12", 0, "finished"),
    ]
    assert rows(project, "select word from verdicts") == [("measured",)]


@pytest.mark.slow
def test_a_base_that_does_not_run_alone_is_named_with_where_to_look(
    project: pytest.Pytester,
):
    spec(project, "logits", cap(12))
    source = (ROOT / TRAINING_MODULE).read_text()
    (project.path / "train.py").write_text(
        source.replace("run.log(step_loss)", "run.log(step_loss * float('nan'))")
    )
    (project.path / "pyproject.toml").write_text(
        "[tool.deltaspec]\nmodule = 'train.py'\n"
    )

    result = project.runpytest_subprocess("specs", *QUICK, "--base-seeds", "2")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([
        "ERROR: the base itself failed (nan): *[!.].",
        "hint: look at the machine, and at the end of log.txt in runs/*, then run "
        "again: nothing is lost.",
    ])


@pytest.mark.slow
def test_a_corpus_that_is_learned_by_heart_is_said_before_and_after(
    project: pytest.Pytester,
):
    spec(project, "logits", cap(12))
    corpus = project.mkdir("corpus")
    library = Path(textwrap.__file__).parent
    shutil.copy(library / "textwrap.py", corpus)
    text = [(library / name).read_text() for name in ("ast.py", "inspect.py")]
    (corpus / "val.py").write_text("".join(text))

    done = project.runpytest_subprocess(
        "specs", "--budget", "2", "--seeds", "1", "--data", str(corpus)
    )

    said = [
        "        beyond 4 times a model learns text by heart, and that is",
        "        what is ranked (arXiv 2305.16264): give it at least",
        "        * tokens, or a shorter --budget",
    ]
    done.stdout.fnmatch_lines([
        "corpus  a trial is about to read its * tokens * times",
        *said,
        "at most 2 trials, about *",
        "*= verdicts =*",
        "corpus  a trial read its * tokens * times",
        *said,
    ])
    ((epochs, tokens),) = rows(
        project, "select max(epochs), max(train_tokens) from runs"
    )
    assert float(str(epochs)) > 4
    assert float(str(tokens)) / float(str(epochs)) == pytest.approx(7000, rel=0.5)


@pytest.mark.slow
def test_a_nan_is_reproduced_and_fails_the_run_with_the_log(project: pytest.Pytester):
    spec(project, "broken", NAN)

    result = project.runpytest_subprocess("specs", *LONGER, "--seeds", "1")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([
        "crashed      specs/broken.py::broken  *",
        "crashed: nan with seed 0, twice: NonFiniteLoss: the training loss is nan *",
        "the end of runs/*/log.txt:",
        "*NonFiniteLoss: the training loss is nan*",
        "CRASHED specs/broken.py::broken - crashed: nan with seed 0*",
    ])
    assert runs(project) == [
        ("base", 0, "finished"),
        ("broken", 0, "crashed"),
        ("broken", 0, "crashed"),
    ]
    assert rows(
        project, "select distinct val_bpb, crash from runs where crash is not null"
    ) == [(None, "nan")]
    assert rows(project, "select word, delta_bpb from verdicts") == [("crashed", None)]


@pytest.mark.slow
def test_a_session_without_a_sandbox_says_so_in_red_and_is_compared_with_no_other(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    spec(project, "caps", cap(12))
    options = ("specs", *QUICK, "--seeds", "1")

    open_ = project.runpytest_subprocess(*options, "--sandbox=none", "--color=yes")
    confined = project.runpytest_subprocess(*options)

    assert open_.ret == confined.ret == 0
    assert (
        "\x1b[31msandbox none: edited code reaches whatever you can (--sandbox=none)"
        "\x1b[0m" in open_.outlines
    )
    assert "nothing to run: all is decided" not in confined.outlines
    found = rows(
        project,
        "select count(*), confined, sandbox, count(distinct context),"
        " bool_and(audit_probes > 0) from runs join contexts using (context)"
        " group by all order by confined",
    )
    level = "landlock * + seccomp"
    assert [(row[:2], row[3:]) for row in found] == [
        ((2, False), (1, True)),
        ((2, True), (1, True)),
    ]
    assert found[0][2] == "none"
    assert fnmatch.fnmatch(str(found[1][2]), level)


@pytest.mark.slow
def test_x_stops_at_the_first_failure_and_lf_selects_it(project: pytest.Pytester):
    project.makeini("[pytest]\n")  # with the cache that --lf reads
    spec(project, "a_broken", NAN)
    spec(project, "b_fine", cap(12))

    first = project.runpytest_subprocess("specs", *LONGER, "--seeds", "1", "-x")
    again = project.runpytest_subprocess("specs", "--lf", "--collect-only", "-q")

    assert first.ret == pytest.ExitCode.INTERRUPTED or first.ret == 1
    assert "stopping after 1 failures" in first.stdout.str()
    assert not [run for run in runs(project) if run[0] == "cap_12"]
    assert [line for line in again.outlines if "::" in line and " " not in line] == [
        "specs/a_broken.py::broken"
    ]


@pytest.mark.slow
def test_a_gross_harm_is_supported_and_the_next_session_reports_it(
    project: pytest.Pytester,
):
    spec(
        project,
        "harm",
        """
dead = Experiment(
    hypothesis="Without learning there is nothing.",
    change="Stop the output matrix.",
    codemod=codemod("constants.SetConstant", name="SOFTCAP", value=0.1),
    expect=Expect(delta_bpb=0.4, on="cpu"),
    tags=("harm",),
)
hopeful = Experiment(
    hypothesis="The same module, believed to help.",
    change="Stop the output matrix.",
    codemod=codemod("constants.SetConstant", name="SOFTCAP", value=0.1),
    expect=Expect(delta_bpb=-0.4, on="cpu"),
)
""",
    )

    first = project.runpytest_subprocess("specs", *QUICK)
    second = project.runpytest_subprocess("specs", *QUICK)
    strict = project.runpytest_subprocess("specs", *QUICK, "--strict-hypotheses", "-v")
    rerun = project.runpytest_subprocess("specs", *QUICK, "--rerun", "-v")

    first.stdout.fnmatch_lines([
        "supported    specs/harm.py::dead  +*",
        "dead: a repetition is supported too with *%*",
    ])
    second.stdout.fnmatch_lines(["supported    specs/harm.py::dead * (stored)"])
    assert first.ret == second.ret == 0  # a refuted hypothesis is a result
    first.stdout.fnmatch_lines(["refuted      specs/harm.py::hopeful  +*"])
    assert strict.ret == pytest.ExitCode.TESTS_FAILED
    strict.stdout.fnmatch_lines([
        "specs/harm.py::dead SUPPORTED *",
        "specs/harm.py::hopeful REFUTED *",
        "*1 failed, 1 supported in*",
    ])
    rerun.stdout.fnmatch_lines(["*attempt 2, on fresh seeds*"])
    assert {seed for (seed,) in rows(project, "select seed from runs")} == {
        *(0, 1, 1000, 1001)
    }


def started(project: pytest.Pytester, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "pytest", "specs", *arguments],
        cwd=project.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """Return all that *process* printed up to a line that matches *pattern*."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if re.search(pattern, line):
            return seen
    raise AssertionError(f"no line matches {pattern!r} in:\n{seen}")


@pytest.mark.slow
def test_ctrl_c_ends_the_children_and_the_next_session_goes_on(
    project: pytest.Pytester,
):
    spec(project, "caps", cap(12), cap(10))
    session = started(project, *QUICK, "--seeds", "1")

    read_until(session, "measured     specs/caps.py::cap_12")
    children = psutil.Process(session.pid).children(recursive=True)
    session.send_signal(signal.SIGINT)
    rest, _ = session.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=10)

    assert alive == []
    assert session.returncode == pytest.ExitCode.INTERRUPTED
    assert "interrupted: finished trials are kept, the same command goes on" in rest
    assert "cap_12" in rest  # the table has what was decided
    finished = runs(project)
    again = project.runpytest_subprocess("specs", *QUICK, "--seeds", "1")
    again.stdout.fnmatch_lines(["*2 measured in*"])
    assert runs(project)[: len(finished)] == finished
    assert len(runs(project)) == 3


@pytest.mark.slow
def test_sigkill_to_the_session_loses_only_the_trial_under_way(
    project: pytest.Pytester,
):
    spec(project, "caps", cap(12), cap(10))
    session = started(project, *QUICK, "--seeds", "1")

    read_until(session, "measured     specs/caps.py::cap_12")
    children = psutil.Process(session.pid).children(recursive=True)
    session.kill()
    session.communicate()
    _, alive = psutil.wait_procs(children, timeout=30)

    assert alive == []
    again = project.runpytest_subprocess("specs", *QUICK, "--seeds", "1")
    assert again.ret == 0
    assert [run for run in runs(project) if run[0] != "cap_10"] == [
        ("base", 0, "finished"),
        ("cap_12", 0, "finished"),
    ]
    assert not list((project.path / "runs" / ".partial").iterdir())


@pytest.mark.slow
def test_a_trainer_that_is_killed_is_run_again(project: pytest.Pytester):
    spec(project, "caps", cap(12))
    session = started(project, "--budget", "3", "--seeds", "1")
    read_until(session, "at most 2 trials")

    def trainer() -> psutil.Process | None:
        for process in psutil.Process(session.pid).children(recursive=True):
            if process.name() == "trainer":
                return process
        return None

    while (found := trainer()) is None:
        assert session.poll() is None
    found.kill()
    rest, _ = session.communicate(timeout=200)

    assert session.returncode == 0, rest
    assert runs(project) == [
        ("base", 0, "killed"),
        ("base", 0, "finished"),
        ("cap_12", 0, "finished"),
    ]
    assert rows(project, "select message from runs where status = 'killed'") == [
        ("the trainer was killed (SIGKILL) in phase start.",)
    ]


@pytest.mark.slow
def test_rows_wait_in_the_journal_while_somebody_has_the_file_open(
    project: pytest.Pytester,
):
    spec(project, "caps", cap(12))
    duckdb.connect(project.path / "runs.duckdb").close()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import duckdb, sys; db = duckdb.connect('runs.duckdb');"
            " print('open', flush=True); sys.stdin.read()",
        ],
        cwd=project.path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    read_until(holder, "open")

    during = project.runpytest_subprocess("specs", *QUICK, "--seeds", "1")
    holder.communicate("")
    after = project.runpytest_subprocess("specs", *QUICK, "--seeds", "1")

    assert during.ret == 0
    assert f"(PID {holder.pid}): new rows wait in runs/" in " ".join(during.outlines)
    assert after.ret == 0
    after.stdout.fnmatch_lines(["*(stored)"])
    assert len(runs(project)) == 2


@pytest.mark.slow
def test_the_database_is_rebuilt_from_the_run_folders(project: pytest.Pytester):
    spec(project, "caps", cap(12))
    project.runpytest_subprocess("specs", *QUICK, "--seeds", "1")
    before = rows(project, "select * from runs order by run")
    verdicts = rows(project, "select * from verdicts")

    (project.path / "runs.duckdb").unlink()
    again = project.runpytest_subprocess("specs", *QUICK, "--seeds", "1")

    again.stdout.fnmatch_lines(["*(stored)"])
    assert rows(project, "select * from runs order by run") == before
    assert rows(project, "select * from verdicts") == verdicts


@pytest.mark.slow
def test_a_run_folder_holds_what_it_takes_to_look_again(project: pytest.Pytester):
    spec(project, "caps", cap(12))

    project.runpytest_subprocess("specs", *QUICK, "--seeds", "1")

    (run,) = rows(project, "select run from runs where experiment is not null")
    folder = Path(project.path, "runs", str(run[0]))
    assert sorted(path.name for path in folder.iterdir()) == [
        "curve.parquet",
        "judge.txt",
        "log.txt",
        "result.json",
        "spec.json",
        "train.diff",
        "train.py",
    ]
    assert "+SOFTCAP = 12" in (folder / "train.diff").read_text()
    assert (
        json.loads((folder / "spec.json").read_text())["id"] == "specs/caps.py::cap_12"
    )
    assert os.stat(folder / "result.json").st_size > 0
