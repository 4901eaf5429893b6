"""What programs read: one document a session, as docs/json.md has it."""

import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from core.cli import JSON_VERSION
from core.cli.queue import told
from core.errors import GateRefused
from core.evidence import Verdict
from core.gates import Work
from core.mutate import Mutant, Refusal, SymbolChange
from core.queue import Job
from core.report.outcome import (
    DRY_RUN,
    RUN,
    Selected,
    Told,
    document,
    encoded,
    error,
    experiment,
)
from core.spec import Case, Expect
from core.store.verdicts import FIELDS
from tests.conftest import ROOT
from tests.test_plugin import spec, write
from tests.test_trials import QUICK, cap

COMMAND = (sys.executable, "-m", "core.cli")
CASE = Case(
    file="specs/logits.py",
    line=3,
    name="softcap",
    hypothesis="h",
    change="c",
    expect=Expect(delta_bpb=-0.001),
)
MUTANT = Mutant(
    source="A = 2\n",
    diff="-A = 1\n+A = 2\n",
    changes=(
        SymbolChange(symbol="A", kind="constant", edit="changed", old="1", new="2"),
    ),
    digest="d" * 32,
    refusals=(Refusal(line=1, symbol="", reason="it uses open"),),
)
VERDICT = Verdict(
    mutant=MUTANT.digest,
    claim="none",
    attempt=0,
    word="measured",
    reason="The spec predicts nothing.",
    delta_bpb=-0.01,
    lower_bpb=-0.02,
    upper_bpb=0.0,
    noise_sd=0.01,
    noise_df=2.0,
    looks=2,
    candidates=2,
    bases=2,
    seconds=1.0,
    runs=("run",),
)
WORK = Work(case=CASE, mutant=MUTANT, configuration={})
PROBLEM = GateRefused("it uses open.", hint="leave it out.")
MISSING = """
missing = Experiment(hypothesis="h", change="c")
"""
SPY = """
spy = Experiment(
    hypothesis="h", change="c",
    codemod=codemod("statements.InsertBefore", function="train",
        statement="run.log(step_loss)", source="open('x')"),
)
"""


def deltaspec(
    project: pytest.Pytester, *arguments: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments], cwd=project.path, capture_output=True, text=True
    )


def printed(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """Return the one document that a command printed."""
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {e["id"].partition("::")[2]: e for e in found["experiments"]}


# The page


def fields(title: str) -> list[str]:
    """Return the fields that docs/json.md lists under a heading."""
    page = (ROOT / "docs" / "json.md").read_text()
    (section,) = re.findall(
        rf"^##+ {title}\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL
    )
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


def job(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    content = {"specs": ["specs"], "options": [], "cwd": "/", "queued_at": "now"}
    (folder / "job.json").write_text(json.dumps(content))
    return told(Job.read(folder, is_served=False), folder.parent)


def test_the_page_has_every_field_of_every_document_in_its_order(tmp_path):
    whole = experiment(Selected(case=CASE, work=WORK, problem=PROBLEM), RUN)

    assert {
        "A session": fields("A session"),
        "An experiment": fields("An experiment"),
        "A change": fields("A change"),
        "A refusal": fields("A refusal"),
        "An error": fields("An error"),
        "A job": fields("A job"),
        "A verdict": fields("A verdict"),
    } == {
        "A session": list(document(command=RUN, exit_code=0)),
        "An experiment": list(whole),
        "A change": list(whole["changes"][0]),
        "A refusal": list(whole["refusals"][0]),
        "An error": list(error(PROBLEM)),
        "A job": list(job(tmp_path / "1")),
        "A verdict": list(FIELDS),
    }


def test_the_page_names_the_version():
    page = (ROOT / "docs" / "json.md").read_text()

    assert set(re.findall(r"^\| `version` \| (\d+) \|", page, re.MULTILINE)) == {
        str(JSON_VERSION)
    }


# One experiment


@pytest.mark.parametrize(
    ("selected", "command", "state"),
    [
        ({"work": WORK}, DRY_RUN, "applied"),
        ({"work": WORK}, RUN, "not_run"),
        ({"work": WORK, "skip_reason": "needs about 17 seeds"}, RUN, "skipped"),
        ({"skip_reason": "unimplemented: there is no codemod"}, RUN, "unimplemented"),
        ({"work": WORK, "problem": PROBLEM}, DRY_RUN, "cannot_run"),
        ({"work": WORK, "told": Told(verdict=VERDICT)}, RUN, "decided"),
        ({"work": WORK, "told": Told(lost="the driver fell off")}, RUN, "not_run"),
        (
            {"work": WORK, "problem": PROBLEM, "told": Told(verdict=VERDICT)},
            RUN,
            "decided",
        ),
    ],
)
def test_a_state_says_how_far_an_experiment_came(selected, command, state):
    found = experiment(Selected(case=CASE, **selected), command)

    assert found["state"] == state
    assert (found["word"] is not None) == (state == "decided")


def test_a_lost_trial_is_an_error_of_the_machine():
    lost = Told(lost="the GPU fell off the bus.", log_tail=("end",))

    found = experiment(Selected(case=CASE, work=WORK, told=lost), RUN)

    assert found["log_tail"] == ["end"]
    assert found["error"] == {
        "kind": "Lost",
        "message": "the GPU fell off the bus.",
        "hint": "look at the machine, then run again: nothing is lost.",
        "place": "specs/logits.py:3",
    }


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_finite_number_is_null(number):
    verdict = attrs.evolve(VERDICT, lower_bpb=number, replication=number)

    found = experiment(Selected(case=CASE, work=WORK, told=Told(verdict=verdict)), RUN)

    assert (found["lower_bpb"], found["replication"]) == (None, None)
    assert json.loads(encoded(found)) == found


def test_what_a_trial_printed_can_neither_move_a_cursor_nor_break_a_parser():
    told = Told(
        verdict=attrs.evolve(VERDICT, word="crashed", reason="\x1b[2J and \ud800"),
        log_tail=("\x1b]0;title\x07",),
    )

    found = json.loads(encoded(experiment(Selected(case=CASE, told=told), RUN)))

    assert found["reason"] == r"\x1b[2J and \ud800"
    assert found["log_tail"] == [r"\x1b]0;title\x07"]


def test_a_diff_with_half_a_surrogate_pair_is_still_json():
    mutant = attrs.evolve(MUTANT, diff="+A = '\ud800'\n")
    work = attrs.evolve(WORK, mutant=mutant)

    found = json.loads(encoded(experiment(Selected(case=CASE, work=work), RUN)))

    assert found["diff"] == "+A = '?'\n"


# Sessions


def test_a_dry_run_says_of_each_experiment_what_it_is(project: pytest.Pytester):
    twin = cap(12).replace("cap_12", "twin")
    lost = cap(11).replace("SOFTCAP", "SOFTCUP")
    spec(project, "logits", cap(12), twin, lost, MISSING, SPY)
    write(project, "specs/broken.py", "x = 1\n")

    done = deltaspec(project, "dry-run", "specs", "--json")

    found = printed(done)
    assert done.returncode == found["exit_code"] == 1
    assert "dry run: 2 applied, 2 cannot run, 1 unimplemented" in done.stderr
    assert (found["version"], found["command"]) == (JSON_VERSION, "dry-run")
    assert (found["context"], found["error"]) == (None, None)
    assert found["summary"] == {"applied": 2, "cannot_run": 2, "unimplemented": 1}
    assert found["errors"] == [
        {
            "kind": "SpecError",
            "message": "no Experiment is bound to a name in this file.",
            "hint": "write NAME = Experiment(...), or start the file's name with '_'.",
            "place": "specs/broken.py:1",
        }
    ]
    of = by_name(found)
    assert of["cap_12"]["changes"] == [
        {
            "symbol": "SOFTCAP",
            "kind": "constant",
            "edit": "changed",
            "old": "15",
            "new": "12",
        }
    ]
    assert "+SOFTCAP = 12" in of["cap_12"]["diff"]
    assert of["cap_12"]["same_module_as"] is None
    assert of["twin"]["same_module_as"] == "specs/logits.py::cap_12"
    assert of["cap_11"]["error"] == {
        "kind": "SiteNotFound",
        "message": "The training module has no constant 'SOFTCUP'.",
        "hint": "use a name that is there: SOFTCAP.",
        "place": "specs/logits.py:15",
    }
    assert of["missing"]["reason"].startswith("unimplemented: there is no codemod at")
    (refusal,) = of["spy"]["refusals"]
    assert (refusal["symbol"], refusal["reason"]) == (
        "train",
        "it uses open; a training module has no files, processes or network",
    )


def test_without_json_a_command_is_pytest_itself(project: pytest.Pytester):
    spec(project, "logits", cap(12))

    done = deltaspec(project, "dry-run", "specs/logits.py", "--", "-k", "nothing")

    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "1 deselected" in done.stdout
    assert done.stderr == ""


def test_a_session_that_cannot_run_says_why(project: pytest.Pytester):
    spec(project, "logits", cap(12))

    done = deltaspec(project, "run", "specs", "--json", "--", "--seeds", "99")

    found = printed(done)
    assert done.returncode == found["exit_code"] == pytest.ExitCode.USAGE_ERROR
    assert found["error"] == {
        "kind": "SessionError",
        "message": "--seeds 99: expected 1 to 64.",
        "hint": "give the number of seeds an experiment may use, as --seeds 4.",
        "place": "",
    }
    assert by_name(found)["cap_12"]["state"] == "not_run"


def test_a_spec_that_is_not_there_is_the_error_of_the_session(
    project: pytest.Pytester,
):
    found = printed(deltaspec(project, "run", "specs/none.py", "--json"))

    assert found["exit_code"] == pytest.ExitCode.USAGE_ERROR
    assert found["error"] == {
        "kind": "UsageError",
        "message": "file or directory not found: specs/none.py",
        "hint": "read what pytest printed.",
        "place": "",
    }


def test_a_pytest_that_does_not_begin_leaves_a_document_all_the_same(
    project: pytest.Pytester,
):
    done = deltaspec(project, "run", "specs", "--json", "--", "--no-such-option")

    found = printed(done)
    assert done.returncode == found["exit_code"] == pytest.ExitCode.USAGE_ERROR
    assert "unrecognized arguments: --no-such-option" in done.stderr
    assert found["error"] == {
        "kind": "NoDocument",
        "message": "pytest ended with exit code 4 and left no document.",
        "hint": "read what it printed.",
        "place": "",
    }


@pytest.mark.parametrize(
    ("place", "why"),
    [("none/out.json", "{path}/none takes no file"), ("specs", "it is a folder")],
)
def test_a_document_that_cannot_be_written_is_refused_first(
    project: pytest.Pytester, place: str, why: str
):
    spec(project, "logits", cap(12))

    result = project.runpytest_subprocess("specs", f"--json={place}")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.errlines[:3] == [
        f"ERROR: --json={place} cannot be written: {why.format(path=project.path)}.",
        "",
        "hint: name a file in a folder that you can write to.",
    ]


@pytest.mark.slow
def test_a_run_is_a_document_and_show_knows_it_afterwards(project: pytest.Pytester):
    spec(project, "logits", cap(12), SPY)
    quick = ("--", *QUICK, "--seeds", "1")

    first = deltaspec(project, "run", "specs", "--json", *quick)
    again = deltaspec(project, "run", "specs/logits.py::cap_12", "--json", *quick)
    shown = deltaspec(project, "show", "specs/logits.py::cap_12", "--json")
    dry = deltaspec(project, "dry-run", "specs", "--json")

    found = printed(first)
    assert (first.returncode, again.returncode, shown.returncode) == (1, 0, 0)
    assert found["summary"] == {"measured": 1, "invalid": 1}
    assert found["context"]["profile"] == "cpu"
    of = by_name(found)
    assert of["spy"]["error"]["kind"] == "GateRefused"
    cap_12 = of["cap_12"]
    assert (cap_12["state"], cap_12["seeds"], cap_12["stored"]) == ("decided", 1, False)
    assert cap_12["lower_bpb"] < cap_12["delta_bpb"] < cap_12["upper_bpb"]
    assert all((project.path / "runs" / run).is_dir() for run in cap_12["runs"])
    (stored,) = printed(again)["experiments"]
    assert stored == {**cap_12, "stored": True}
    (verdict,) = printed(shown)["verdicts"]
    assert verdict["context"] == found["context"]["context"]
    for same in ("id", "word", "reason", "delta_bpb", "mutant", "runs", "attempt"):
        assert verdict[same] == cap_12[same]
    assert by_name(printed(dry))["cap_12"]["run_before"] == "measured"


def test_ctrl_c_leaves_a_document_of_what_was_done(project: pytest.Pytester):
    spec(project, "logits", cap(12))
    session = subprocess.Popen(
        [*COMMAND, "run", "specs", "--json", "--", "--budget", "60"],
        cwd=project.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert session.stderr is not None
    for line in session.stderr:
        if line.startswith("at most"):
            break

    session.send_signal(signal.SIGINT)
    output, _ = session.communicate(timeout=100)

    found = json.loads(output)
    assert session.returncode == found["exit_code"] == pytest.ExitCode.INTERRUPTED
    assert found["summary"] == {"not_run": 1}


# Show


@pytest.mark.parametrize(
    ("asked", "message", "hint"),
    [
        (
            "specs/logits.py",
            "specs/logits.py does not say which experiment.",
            "name one, as specs/idea.py::name.",
        ),
        (
            "specs/logits.py::cap_12",
            "there is no {path}/runs.duckdb: nothing has run in this project.",
            "run an experiment: deltaspec run specs/idea.py.",
        ),
    ],
)
def test_show_says_what_is_missing(project: pytest.Pytester, asked, message, hint):
    done = deltaspec(project, "show", asked, "--json")

    assert done.returncode == 1
    assert printed(done) == {
        "version": JSON_VERSION,
        "command": "show",
        "error": {
            "kind": "StoreError" if "::" in asked else "SessionError",
            "message": message.format(path=project.path),
            "hint": hint,
            "place": "",
        },
    }
