"""Sessions with the agent: codemods are written while trials that are ready train."""

import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET

import psutil
import pytest

from tests.messages import Messages
from tests.scripted import (
    KEY,
    agrees,
    author,
    environment,
    hands_in,
    reader,
    says,
    sets,
)
from tests.test_plugin import spec
from tests.test_trials import QUICK, cap, read_until, rows

OPTIONS = (*QUICK, "--seeds", "1")
TIGHT = """
tight = Experiment(
    hypothesis="A tighter cap calibrates.", change="Set SOFTCAP to 11."
)
"""
VAGUE = """
vague = Experiment(hypothesis="h", change="Make it better by {by}.", sweep=Sweep(by=(1, 2)))
"""
SETS_TIGHT = sets("Tight", "SOFTCAP", 15, 11)
HANGS = says("Let me see.", hang=3)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in list(os.environ):
        if name.startswith("ANTHROPIC_"):
            monkeypatch.delenv(name)


def tight(*before):
    """Return what writes ``tight`` in the end."""
    return (
        author("specs/ideas.py::tight", *before, *hands_in(SETS_TIGHT)),
        reader("SOFTCAP", agrees()),
    )


def started(server, *options):
    """Begin a session that can be read while it runs."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "pytest", "specs", "--agent", *OPTIONS, *options],
        env=environment(server),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_what_is_ready_trains_while_the_model_writes_and_what_it_wrote_follows(project):
    spec(project, "ready", cap(12))
    spec(project, "ideas", TIGHT, VAGUE)
    vague = author("specs/ideas.py::vague", says("By what?"), says("By what?"))
    with Messages([*tight(HANGS), vague], key=KEY) as server:
        session = started(server, "--junitxml=junit.xml", "--json=found.json")
        before = read_until(session, "measured     specs/ready.py::cap_12")
        is_hanging = server.hanging.is_set()
        server.released.set()
        after, _ = session.communicate(timeout=300)

    assert session.returncode == 0, after
    assert is_hanging
    assert "tight" not in before
    assert "specs/ideas.py::tight: tight.py written, 1 round, $0." in after
    assert "measured     specs/ideas.py::tight" in after
    reason = (
        "unimplemented: the model says: By what? What was tried is kept: --agent begins"
        " another attempt with it."
    )
    assert f"agent   specs/ideas.py::vague: {reason}" in before + after
    assert "agent   claude-opus-5-5: 1 written, 1 unimplemented; 6 calls" in after
    assert KEY not in before + after
    assert rows(project, "select id, word from leaderboard order by id") == [
        ("specs/ideas.py::tight", "measured"),
        ("specs/ready.py::cap_12", "measured"),
    ]
    assert rows(
        project,
        "select purpose, outcome, count(*), bool_and(usd > 0) from agent_calls"
        " where id = 'specs/ideas.py::tight' group by all order by all",
    ) == [
        ("check", "answered", 1, True),
        ("implement", "answered", 2, True),
        ("implement", "cut", 1, True),
    ]
    assert rows(
        project, "select id, outcome, rounds from agent_attempts order by id"
    ) == [
        ("specs/ideas.py::tight", "implemented", 1),
        ("specs/ideas.py::vague", "unimplemented", 0),
    ]
    found = json.loads((project.path / "found.json").read_text())
    assert {(e["id"], e["state"], e["word"]) for e in found["experiments"]} == {
        ("specs/ready.py::cap_12", "decided", "measured"),
        ("specs/ideas.py::tight", "decided", "measured"),
        ("specs/ideas.py::vague[1]", "unimplemented", None),
        ("specs/ideas.py::vague[2]", "unimplemented", None),
    }
    cases = {
        case.get("name"): case
        for case in ET.parse(project.path / "junit.xml").iter("testcase")
    }
    assert cases["vague[1]"].find("skipped").get("message") == reason
    properties = {
        p.get("name"): p.get("value") for p in cases["tight"].iter("property")
    }
    assert properties["verdict"] == "measured"


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_a_model_and_the_next_session_goes_on(project):
    spec(project, "ideas", TIGHT)
    first, second = hands_in(SETS_TIGHT)
    scripts = [
        author("specs/ideas.py::tight", first, second | {"hang": 2}, second),
        reader("SOFTCAP", agrees()),
    ]
    with Messages(scripts, key=KEY) as server:
        session = started(server)
        assert server.hanging.wait(200)
        children = psutil.Process(session.pid).children(recursive=True)
        session.send_signal(signal.SIGINT)
        said, _ = session.communicate(timeout=100)  # it hangs on for twice as long
        left = [child for child in children if child.is_running()]
        again, _ = started(server).communicate(timeout=300)
        asked = len(server.requests)

    assert session.returncode == pytest.ExitCode.INTERRUPTED
    assert "interrupted: finished trials are kept, the same command goes on" in said
    assert "Traceback" not in said
    assert not left
    assert "tight.py written, 1 round" in again
    assert "; 2 calls (1 known answers used again)" in again
    assert "measured     specs/ideas.py::tight" in again
    assert asked == 1 + 1 + 2


def test_without_the_agent_the_skip_says_how_to_get_a_codemod(project):
    spec(project, "ideas", TIGHT)

    done = project.runpytest_subprocess("specs", "-rs")

    assert done.ret == 0
    text = " ".join(done.stdout.str().split())
    assert (
        "unimplemented: there is no codemod at codemods/ideas/tight.py. Write one, name"
        " one in codemod=, or have one written by --agent."
    ) in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--usd", "1"],
            "--usd speaks of the agent, and --agent is not given.\n\n"
            "hint: add --agent, or leave out --usd.",
        ),
        (
            ["--agent", "--usd", "-1"],
            "--usd -1 buys nothing.\n\nhint: give US dollars, as --usd 5.",
        ),
    ],
)
def test_options_of_the_agent_that_mean_nothing_are_refused(project, options, message):
    spec(project, "ideas", TIGHT)

    done = project.runpytest_subprocess("specs", "--collect-only", *options)

    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.str().strip() == f"ERROR: {message}"
