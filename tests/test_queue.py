"""The queue: jobs go on beside short calls, and none is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest

from core.cli import main
from core.plugin.lock import project_lock
from core.queue import WAITS, Job, Queue, latest
from tests.test_json import COMMAND, deltaspec, printed
from tests.test_plugin import spec
from tests.test_trials import QUICK, cap, rows

NOTHING = ("--", "-k", "nothing")  # a session that ends at once, with exit code 5
LONG = ("--", "--budget", "60")
PUTS = """
import sys
from pathlib import Path
from core.queue import Queue
for _ in range(10):
    Queue(Path(sys.argv[1])).put(["specs"], [], Path("/nowhere"))
"""


@pytest.fixture
def queue(project: pytest.Pytester) -> Iterator[Queue]:
    """Return the queue of a project with one experiment; nothing of it stays behind."""
    spec(project, "logits", cap(12))
    queue = Queue(project.path)
    yield queue
    queue.stop()
    ended(runners(queue))


def runners(queue: Queue) -> list[psutil.Process]:
    """Return the runners of a project."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if command[-2:] == ["core.queue", str(queue.project)]:
            found.append(process)
    return found


def ended(processes: list[psutil.Process]) -> None:
    """Wait until *processes* have ended."""
    _, alive = psutil.wait_procs(processes, timeout=100)
    assert alive == []


def runner(queue: Queue) -> psutil.Process:
    """Return the runner that has taken the queue's first job."""
    while not queue._is_served():
        assert queue.jobs()
    (found,) = runners(queue)
    return found


def grown(queue: Queue, job: str, text: str) -> psutil.Process:
    """Return the session of a job once it has printed *text*."""
    output = queue.folder / job / "output.txt"
    while not output.exists() or text not in output.read_text():
        assert queue.jobs([job])[0].is_unfinished
    (session,) = runner(queue).children()
    return session


def codes(jobs: list[Job]) -> list[int | None]:
    return [job.exit_code for job in jobs]


def test_a_job_outlives_its_shell_and_wait_tells_what_came_of_it(
    project: pytest.Pytester, queue: Queue
):
    put = printed(deltaspec(project, "queue", "specs", "--json", *NOTHING))
    waited = deltaspec(project, "wait", "--json")

    assert [job["job"] for job in put["jobs"]] == ["1"]
    assert put["jobs"][0]["options"] == ["-k", "nothing"]
    assert put["errors"] == []
    found = printed(waited)
    assert waited.returncode == found["exit_code"] == 5
    (job,) = found["jobs"]
    assert (job["state"], job["exit_code"]) == ("done", 5)
    assert job["queued_at"] < job["started_at"] < job["ended_at"]
    assert job["result"]["exit_code"] == 5
    assert "1 deselected" in job["progress"]
    assert "1 deselected" in (project.path / job["output"]).read_text()


def test_two_that_queue_at_once_share_one_runner(
    project: pytest.Pytester, queue: Queue
):
    puts = [
        subprocess.Popen(
            [*COMMAND, "queue", "specs", *NOTHING],
            cwd=project.path,
            stdout=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    assert [put.wait() for put in puts] == [0, 0]

    deltaspec(project, "wait", "1", "2")

    first, second = queue.jobs()
    assert (first.exit_code, second.exit_code) == (5, 5)
    assert first.ended_at is not None
    assert second.started_at is not None
    assert first.ended_at <= second.started_at


def test_no_job_is_lost_between_a_runners_last_look_and_its_end(queue: Queue):
    puts = [
        subprocess.Popen([sys.executable, "-c", PUTS, str(queue.project)])
        for _ in range(3)
    ]
    assert [put.wait() for put in puts] == [0, 0, 0]

    ended(runners(queue))  # and nobody starts another

    assert codes(queue.jobs()) == [pytest.ExitCode.USAGE_ERROR] * 30
    assert queue.log.read_text() == ""


def test_while_a_person_has_the_project_a_job_waits(
    project: pytest.Pytester, queue: Queue
):
    (project.path / "runs").mkdir()
    with project_lock(project.path):
        deltaspec(project, "queue", "specs", *NOTHING)
        while not queue.jobs()[0].progress:
            assert runners(queue)
        waited = deltaspec(project, "wait", "--timeout", "0", "--json")

        found = printed(waited)
        assert waited.returncode == found["exit_code"] == 75
        assert found["jobs"][0]["state"] == "waiting"
        assert found["jobs"][0]["progress"] == WAITS.strip()

    assert deltaspec(project, "wait").returncode == 5


def test_a_killed_runner_is_replaced_by_the_next_wait(
    project: pytest.Pytester, queue: Queue
):
    (project.path / "runs").mkdir()
    with project_lock(project.path):
        deltaspec(project, "queue", "specs", *NOTHING)
        killed = runner(queue)
        killed.kill()
        ended([killed])
        assert [job.state for job in queue.jobs()] == ["waiting"]

    assert deltaspec(project, "wait").returncode == 5
    assert codes(queue.jobs()) == [5]


def test_a_killed_runner_is_replaced_by_the_next_job(
    project: pytest.Pytester, queue: Queue
):
    (project.path / "runs").mkdir()
    with project_lock(project.path):
        deltaspec(project, "queue", "specs", *NOTHING)
        killed = runner(queue)
        killed.kill()
        ended([killed])

    deltaspec(project, "queue", "specs", *NOTHING)
    ended(runners(queue))

    assert codes(queue.jobs()) == [5, 5]


def test_stop_takes_out_what_waits_and_nobody_takes_it_up_again(
    project: pytest.Pytester, queue: Queue
):
    (project.path / "runs").mkdir()
    with project_lock(project.path):
        deltaspec(project, "queue", "specs", *NOTHING)
        deltaspec(project, "queue", "specs", *NOTHING)
        stopped = deltaspec(project, "queue", "--stop", "--json")
    ended(runners(queue))

    assert [job["state"] for job in printed(stopped)["jobs"]] == ["stopped"] * 2
    waited = deltaspec(project, "wait", "--json")
    assert waited.returncode == pytest.ExitCode.INTERRUPTED
    assert [job["result"] for job in printed(waited)["jobs"]] == [None, None]
    deltaspec(project, "queue", "specs", *NOTHING)
    deltaspec(project, "wait")
    assert codes(queue.jobs()) == [2, 2, 5]


def test_ctrl_c_of_wait_leaves_the_job_and_says_so(
    project: pytest.Pytester, queue: Queue
):
    (project.path / "runs").mkdir()
    with project_lock(project.path):
        deltaspec(project, "queue", "specs", *NOTHING)
        wait = subprocess.Popen(
            [*COMMAND, "wait"],
            cwd=project.path,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert wait.stderr is not None
        began = wait.stderr.readline()
        wait.send_signal(signal.SIGINT)
        _, errors = wait.communicate(timeout=100)

    assert wait.returncode == 130
    assert began == "waiting for job 1: Ctrl-C ends the waiting alone\n"
    assert errors == (
        "the jobs go on without you: deltaspec wait waits for them again, deltaspec "
        "queue --stop ends them\n"
    )
    assert deltaspec(project, "wait").returncode == 5


@pytest.mark.slow
def test_a_session_whose_runner_is_killed_ends_and_runs_again(
    project: pytest.Pytester, queue: Queue, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    options = ("--", *QUICK, "--seeds", "2")
    deltaspec(project, "queue", "specs/logits.py::cap_12", *options)
    session = grown(queue, "1", "at most")

    runner(queue).kill()
    ended([session])
    cut_short = queue.jobs()
    waited = deltaspec(project, "wait", "--timeout", "540", "--json")

    assert [job.state for job in cut_short] == ["waiting"]
    assert waited.returncode == 0
    (job,) = printed(waited)["jobs"]
    assert job["result"]["summary"] == {"measured": 1}
    assert rows(project, "select seed, count(*) from runs group by seed") == [
        (0, 2),
        (1, 2),
    ]
    kept = [path for path in queue.folder.rglob("*") if path.is_file()]
    assert not [path for path in kept if "sk-secret" in path.read_text()]


def test_stop_interrupts_what_runs_though_its_shell_ignored_ctrl_c(
    project: pytest.Pytester, queue: Queue
):
    ignoring = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    subprocess.run(
        [*ignoring, *COMMAND, "queue", "specs", *LONG], cwd=project.path, check=True
    )
    session = grown(queue, "1", "at most")

    stopped = deltaspec(project, "queue", "--stop")

    ended([session])
    assert stopped.stdout.startswith("job 1  stopped, exit code 2  specs --budget 60")
    (job,) = queue.jobs()
    assert job.result is not None
    assert job.result["summary"] == {"not_run": 1}


# What is refused before it waits


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            "specs/none.py",
            "specs/none.py: there is no file {path}/specs/none.py.\n\n"
            "hint: name a spec file, a folder of them, or an id as pytest has it: "
            "specs/idea.py::name.\n",
        ),
        (
            "conftest.py",
            "conftest.py is not below {path}/specs.\n\n"
            "hint: name specs: the queue runs nothing else.\n",
        ),
        (
            "specs/logits.py::cap",
            "specs/logits.py has no experiment 'cap'.\n\n"
            "hint: name one that it has: cap_12.\n",
        ),
        (
            "specs/empty",
            "specs/empty holds no spec file.\n\nhint: write one: deltaspec new NAME.\n",
        ),
        (
            "specs/broken.py",
            "specs/broken.py:1: no Experiment is bound to a name in this file.\n\n"
            "hint: write NAME = Experiment(...), or start the file's name with '_'.\n",
        ),
    ],
)
def test_what_pytest_would_not_run_is_not_queued(
    project: pytest.Pytester, queue: Queue, asked, said, capsys
):
    (project.path / "specs" / "empty").mkdir()
    (project.path / "specs" / "broken.py").write_text("x = 1\n")

    code = main(["queue", asked, "specs/logits.py"])

    assert (code, queue.jobs()) == (1, [])
    assert capsys.readouterr() == ("", said.format(path=project.path))


def test_each_spec_that_is_refused_is_an_error_of_its_own(queue: Queue, capsys):
    main(["queue", "specs/a.py", "specs/b.py", "--json"])

    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [error["message"].split(":")[0] for error in found["errors"]] == [
        "specs/a.py",
        "specs/b.py",
    ]
    assert found["jobs"] == []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["queue", "--stop", "specs"],
            "--stop ends all that is queued, and specs was named.\n\n"
            "hint: leave out --stop, or the specs.\n",
        ),
        (
            ["queue", "--", "-x"],
            "-- -x: pytest's options need a SPEC.\n\n"
            "hint: name what to run: deltaspec queue specs/idea.py -- --seeds 2.\n",
        ),
        (
            ["wait"],
            "no job was ever queued in this project.\n\n"
            "hint: queue one: deltaspec queue specs/idea.py.\n",
        ),
        (
            ["wait", "--timeout", "-1"],
            "--timeout -1 is not a time to wait.\n\n"
            "hint: give seconds, as --timeout 540, or leave it out.\n",
        ),
    ],
)
def test_a_command_that_makes_no_sense_is_explained(
    queue: Queue, command, said, capsys
):
    assert main(command) == 1
    assert capsys.readouterr() == ("", said)


def test_a_job_that_is_not_there_is_named(
    project: pytest.Pytester, queue: Queue, capsys
):
    deltaspec(project, "queue", "specs", *NOTHING)

    assert main(["wait", "7"]) == 1
    assert capsys.readouterr().err == (
        "there is no job '7'; the last one is 1.\n\n"
        "hint: see which there are: deltaspec queue.\n"
    )


def test_a_runner_that_fails_is_said_and_the_job_is_kept(
    project: pytest.Pytester, queue: Queue, capsys
):
    folder = queue.folder / "1"
    folder.mkdir(parents=True)
    content = {"specs": ["specs"], "options": [], "cwd": "/", "queued_at": "now"}
    (folder / "job.json").write_text(json.dumps(content))
    (folder / "output.txt").mkdir()  # so that nothing can be written there

    assert main(["wait", "--json"]) == 1
    assert capsys.readouterr().err == (
        "the runner of the queue ended with exit code 1.\n\n"
        f"hint: read the end of {queue.log}; the jobs are kept.\n"
    )
    assert "IsADirectoryError" in queue.log.read_text()
    shutil.rmtree(folder)


def test_a_list_without_jobs_says_so(queue: Queue, capsys):
    assert main(["queue"]) == 0
    assert capsys.readouterr().out == "no job is queued\n"
    assert not os.path.exists(queue.folder)


# Which jobs are the latest


def some_job(name: str, queued: str, ended: str | None) -> Job:
    return Job(
        name=name,
        folder=Path(name),
        specs=(),
        options=(),
        cwd=Path(),
        state="waiting",
        exit_code=None,
        queued_at=queued,
        started_at=None,
        ended_at=ended,
    )


def test_the_latest_jobs_are_those_since_the_queue_was_empty():
    first = some_job("1", "10", "20")
    second, third = some_job("2", "30", "50"), some_job("3", "40", "60")

    assert latest([first]) == [first]
    assert latest([first, second, third]) == [second, third]
    assert latest([first, attrs.evolve(second, queued_at="15")]) == [
        first,
        attrs.evolve(second, queued_at="15"),
    ]
