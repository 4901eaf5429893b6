"""Children of a zygote: how they start, what they have, and how they end."""

import faulthandler
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from core.process.child import Exit, NotStarted, Unread, Zygote, python_environment
from core.sandbox import Policy, landlock_abi, level
from tests.conftest import ROOT
from tests.inside import Inside, Said

SOON = 30.0  # seconds; on a busy machine, and no test waits for it


@pytest.fixture(scope="module")
def bare() -> Iterator[Zygote]:
    """Return a zygote that has imported this file, and no torch."""
    with Zygote(ROOT, (__name__,)) as started:
        yield started


@pytest.fixture
def inside(bare: Zygote, tmp_path: Path) -> Inside:
    return Inside(bare, tmp_path)


def pid_of(zygote: Zygote) -> int:
    return zygote._process.pid


# --- functions for the child


def who() -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "warden": os.getppid(),
        "zygote": psutil.Process(os.getppid()).ppid(),
        "name": psutil.Process().name(),
        "session": os.getsid(0),
        "folder": os.getcwd(),
        "cores": sorted(os.sched_getaffinity(0)),
    }


def leave(status: int) -> None:
    os._exit(status)


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def sleep() -> None:
    time.sleep(600)


def compute(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def compute_in_a_helper(seconds: float) -> None:
    if os.fork() == 0:
        compute(seconds)
        os._exit(0)
    os.wait()
    compute(2 * seconds)


def leave_a_daemon(behind: int) -> int:
    """Detach a process as daemons do; it is nobody's child then."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        daemon = os.fork()
        if daemon == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        os.write(writing, str(daemon).encode())
        os._exit(0)
    return int(os.read(reading, 64))


def environment() -> dict[str, str]:
    return dict(os.environ)


def first_environment() -> list[str]:
    """Return what the process was started with, as its file in /proc has it."""
    return Path("/proc/self/environ").read_bytes().decode().split("\0")


def open_descriptors() -> dict[str, str]:
    names = os.listdir("/proc/self/fd")
    return {
        fd: os.readlink(f"/proc/self/fd/{fd}")
        for fd in names
        if os.path.exists(f"/proc/self/fd/{fd}")
        or os.path.islink(f"/proc/self/fd/{fd}")
    }


def temporary_folder() -> str:
    return tempfile.gettempdir()


# --- the zygote


def test_all_children_have_one_zygote(inside: Inside):
    families = [inside(None, who).returned for _ in range(3)]

    assert {family["zygote"] for family in families} == {pid_of(inside.zygote)}
    assert len({family["pid"] for family in families}) == 3
    assert len({family["warden"] for family in families}) == 3


def test_another_zygote_takes_over_from_one_that_was_killed(inside: Inside):
    before = inside(None, who).returned["zygote"]
    os.kill(before, signal.SIGKILL)
    os.waitid(os.P_PID, before, os.WEXITED | os.WNOWAIT)

    after = inside(None, who).returned["zygote"]

    assert after == pid_of(inside.zygote) != before


def test_a_zygote_that_cannot_import_says_what_it_lacks(tmp_path: Path):
    with (
        Zygote(ROOT, ("json", "no_such_module")) as zygote,
        pytest.raises(NotStarted) as caught,
    ):
        Inside(zygote, tmp_path)(None, who)

    text = str(caught.value)
    assert text.startswith("the process that forks children ended: Traceback (most")
    assert text.endswith("ModuleNotFoundError: No module named 'no_such_module'")


def test_a_child_outlives_its_zygote(tmp_path: Path):
    zygote = Zygote(ROOT, (__name__,))
    child = Inside(zygote, tmp_path).start(None, sleep)
    pid = child.pid()

    zygote.close()
    alive = psutil.Process(pid).is_running()
    ended = child.end()

    assert alive
    assert ended == Exit(
        returncode=-signal.SIGKILL,
        peak_mib=ended.peak_mib,
        helper_seconds=ended.helper_seconds,
    )
    assert not psutil.pid_exists(pid)


SESSION = """
import os, signal, sys
from pathlib import Path
from core.process.child import Zygote
from tests.inside import Inside
from tests.test_process import sleep, who

# Whoever starts the tests in the background lets them ignore it, and all below them.
signal.signal(signal.SIGINT, signal.default_int_handler)
folder = Path(sys.argv[1])
inside = Inside(Zygote(Path(sys.argv[2]), ("tests.test_process",)), folder)
try:
    print(inside(None, who).returned["zygote"], inside.start(None, sleep).pid(), flush=True)
    signal.pause()
except KeyboardInterrupt:
    print(inside(None, who).returned["zygote"], flush=True)
    signal.pause()
"""


@pytest.fixture
def session(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Return a session in a process group of its own, with a child that sleeps."""
    started = subprocess.Popen(
        [sys.executable, "-c", SESSION, str(tmp_path), str(ROOT)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    yield started
    started.kill()
    started.communicate()


def test_ctrl_c_reaches_the_session_and_not_its_zygote(
    session: subprocess.Popen[str],
):
    assert session.stdout is not None
    before = session.stdout.readline().split()[0]

    os.killpg(session.pid, signal.SIGINT)  # as the terminal does
    after = session.stdout.readline().strip()

    assert after == before


def test_a_session_that_is_killed_leaves_neither_zygote_nor_warden_nor_child(
    session: subprocess.Popen[str],
):
    assert session.stdout is not None
    zygote, child = map(int, session.stdout.readline().split())
    below = psutil.Process(session.pid).children(recursive=True)

    session.kill()
    session.wait()
    _, alive = psutil.wait_procs(below, timeout=SOON)

    assert {zygote, child} < {process.pid for process in below}
    assert len(below) >= 3
    assert alive == []


# --- what a child has


def test_a_child_has_a_session_a_folder_a_name_and_cores_of_its_own(
    inside: Inside, tmp_path: Path
):
    core = min(os.sched_getaffinity(0))

    child = inside.start(None, who, name="a name", folder=tmp_path, cpus=[core])
    said = child.events.receive()
    child.end()

    assert said is not None
    assert said["returned"]["pid"] == said["returned"]["session"] == child.pid()
    assert said["returned"]["name"] == "a name"
    assert said["returned"]["folder"] == str(tmp_path)
    assert said["returned"]["cores"] == [core]


def test_a_child_has_the_environment_that_it_is_given_and_no_keys_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    monkeypatch.setenv("HOME", "/home/somebody")

    given = {**python_environment(ROOT), "MINE": "1"}
    with Zygote(ROOT, (__name__,)) as zygote:
        inside = Inside(zygote, tmp_path)
        its_own = inside(None, environment, environment=given).returned
        at_first = inside(None, first_environment, environment=given).returned

    assert its_own == given
    assert not {"ANTHROPIC_API_KEY", "HOME"} & its_own.keys()
    assert "PATH=" + os.environ["PATH"] in at_first
    assert not [said for said in at_first if "secret" in said or "somebody" in said]


def test_a_child_has_open_what_it_is_given_and_nothing_else(inside: Inside):
    reading, writing = os.pipe()
    pipe = os.readlink(f"/proc/self/fd/{reading}")

    child = inside.start(None, open_descriptors, inherited=[reading])
    said = child.events.receive()
    child.end()
    os.close(reading)
    os.close(writing)

    assert said is not None
    kinds = sorted(
        "its log" if path.endswith(".log") else re.sub(r"[\d\[\]]+$", "", path)
        for path in said["returned"].values()
        if not path.endswith("/fd")  # the folder that it lists
    )
    assert kinds == ["/dev/null", "its log", "its log", "pipe:", "pipe:", "pipe:"]
    assert pipe in said["returned"].values()


def test_a_child_looks_for_its_own_temporary_folder(inside: Inside):
    own = inside.own()
    given = {**python_environment(ROOT), "TMPDIR": str(own)}

    said = inside(None, temporary_folder, environment=given)

    assert said == Said(returned=str(own))


def test_a_child_says_how_it_is_confined_before_all_else(
    inside: Inside, tmp_path: Path
):
    policy = Policy(write=(str(inside.own()),))

    child = inside.start(policy, who)
    first, second = child.events.receive(), child.events.receive()
    child.end()

    assert first == {
        "event": "confined",
        "level": level(landlock_abi()),
        "tried": 15,
    }
    assert second is not None
    assert second["returned"]["pid"] == child.pid()


def test_a_child_that_cannot_be_confined_says_why_and_does_nothing(
    inside: Inside, tmp_path: Path
):
    policy = Policy(write=(str(inside.own()),), read=(str(tmp_path / "nowhere"),))

    child = inside.start(policy, who)
    said = [child.events.receive() for _ in range(2)]
    ended = child.leave(SOON)

    assert said == [
        {
            "event": "unconfined",
            "message": f"[Errno 2] No such file or directory: '{tmp_path / 'nowhere'}'",
        },
        None,
    ]
    assert ended.returncode == 1


# --- how a child ends


@pytest.mark.parametrize("status", [0, 1, 77])
def test_the_status_of_a_child_is_told(inside: Inside, status: int):
    child = inside.start(None, leave, status)

    assert child.leave(SOON).returncode == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV, signal.SIGRTMIN])
def test_the_signal_that_ended_a_child_is_told(inside: Inside, number: int):
    child = inside.start(None, die, int(number))

    assert child.leave(SOON).returncode == -number


def test_a_child_whose_warden_was_killed_has_ended_too(inside: Inside):
    child = inside.start(None, sleep)
    pid = child.pid()
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)

    ended = child.leave(SOON)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], SOON)

    assert ended == Exit(returncode=None)
    assert not psutil.pid_exists(pid)


def dump_when_asked(ready: str) -> None:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    Path(ready).write_text("it is")
    sleep()


def test_a_dump_shows_where_a_child_was(inside: Inside):
    ready = inside.folder / "ready"
    os.mkfifo(ready)
    child = inside.start(None, dump_when_asked, str(ready))
    ready.read_text()  # waits for it

    ended = child.end(dump=True)

    log = (inside.folder / "own0.log").read_text()
    assert ended.returncode == -signal.SIGKILL
    assert re.search(r"test_process.py\", line \d+ in dump_when_asked\n", log)


def test_a_daemon_that_a_child_left_is_ended_and_counted(inside: Inside):
    child = inside.start(None, leave_a_daemon, 1)
    said = child.events.receive()
    assert said is not None
    alive = psutil.pid_exists(said["returned"])

    ended = child.leave(SOON)

    assert alive
    assert ended.left_behind == 1
    assert not psutil.pid_exists(said["returned"])


def test_what_helpers_of_a_child_computed_is_counted_without_its_own(inside: Inside):
    child = inside.start(None, compute_in_a_helper, 0.5)

    ended = child.leave(SOON)

    assert 0.5 <= ended.helper_seconds < 0.6


def test_a_child_that_has_gone_can_be_told_something(inside: Inside):
    child = inside.start(None, leave, 0)
    child.exit()

    child.send({"anything": 1})

    assert child.end().returncode == 0


def test_a_child_that_does_not_read_stops_nobody(inside: Inside):
    child = inside.start(None, sleep)

    with pytest.raises(Unread) as caught:
        child.send({"text": "x" * 1_000_000})  # more than a pipe takes
    child.end()

    assert str(caught.value) == "the inside does not read what it is told"


def test_a_child_that_was_ended_can_be_ended_again(inside: Inside):
    child = inside.start(None, sleep)

    first, again = child.end(), child.end()

    assert first == again
    assert child.closed


def test_a_child_that_was_dismissed_twice_ends_once(inside: Inside):
    child = inside.start(None, sleep)

    child.dismiss()
    child.dismiss()

    assert child.exit() == child.end()
    assert child.exit().returncode == -signal.SIGKILL


def test_the_environment_of_python_keeps_what_finds_libraries(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    monkeypatch.setenv("PYTHONPATH", "/opt/modules")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    environment = python_environment(Path("/library"))

    assert environment["LD_LIBRARY_PATH"] == "/opt/lib"
    assert environment["PYTHONPATH"] == "/library:/opt/modules"
    assert "secret" not in json.dumps(environment)
