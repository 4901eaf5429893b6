"""What a confined process tries, and what comes of it."""

import ctypes
import errno
import json
import mmap
import multiprocessing.shared_memory
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from core import sandbox
from core.process.child import Zygote, sandbox_of
from core.sandbox import NotConfined, Policy, enter, landlock_abi, level, prove
from tests.conftest import ROOT
from tests.inside import Inside, Said, refused

GUARDED = refused(errno.EACCES)  # as Landlock has it
FILTERED = refused(errno.EPERM)  # as the filter has it
WENT_WELL = Said(returned=None)

DEEDS = (
    "read {secret}",
    "write deltaspec's code",
    "write beside its own folder",
    "write to /dev/shm",
    "write to /tmp",
    "write to /var/tmp",
    "connect a socket (AF_INET, SOCK_STREAM)",
    "connect a socket (AF_INET, SOCK_DGRAM)",
    "connect a socket (AF_UNIX, SOCK_STREAM)",
    "connect a socket (AF_UNIX, SOCK_DGRAM)",
    "signal its parent",
    "read its parent's environment",
    "attach to its parent",
    "change its parent's limits",
    "change a file's mode",
    "make a namespace",
)


@pytest.fixture(scope="module")
def bare() -> Iterator[Zygote]:
    """Return a zygote that has imported this file, and no torch."""
    with Zygote(ROOT, (__name__,)) as started:
        yield started


@pytest.fixture
def inside(bare: Zygote, tmp_path: Path) -> Inside:
    return Inside(bare, tmp_path)


@pytest.fixture
def policy(inside: Inside, tmp_path: Path) -> Policy:
    """Return what a process of a trial has: a module, a folder, and a secret."""
    (tmp_path / "module").mkdir()
    (tmp_path / "module" / "train.py").write_text("a module")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "validation.bin").write_text("the answers")
    return Policy(
        read=(str(tmp_path / "module"),),
        write=(str(inside.own()),),
        lists=(str(ROOT),),
        secret=str(tmp_path / "data" / "validation.bin"),
    )


def own(policy: Policy, *names: str) -> Path:
    """Return a path in the folder that *policy* lets a process write."""
    return Path(policy.write[0], *names)


# --- deeds, done in the child


def read(path: str) -> str:
    return Path(path).read_text()


def overwrite(path: str) -> None:
    with open(path, "w") as file:
        file.write("mine")


def append(path: str) -> None:
    open(path, "a").close()


def attempted(policy: dict[str, Any]) -> list[tuple[str, int | None]]:
    """Do each deed of `prove`; return it with the number of its error."""
    done: list[tuple[str, int | None]] = []
    for deed, attempt in sandbox._attempts(Policy(**policy)):
        try:
            attempt()
        except OSError as error:
            done.append((deed, error.errno))
        else:
            done.append((deed, None))
    return done


def proved(policy: dict[str, Any]) -> int:
    return prove(Policy(**policy))


def entered(policy: dict[str, Any], abi: int) -> int:
    """Enter the sandbox as a kernel with an older Landlock has it; prove it."""
    enter(Policy(**policy), abi)
    return prove(Policy(**policy), abi)


def weakened(policy: dict[str, Any], *calls: str) -> int:
    """Enter a sandbox whose filter lets some calls pass; try to prove it."""
    for call in calls:
        sandbox.DENIED.pop(call, None)
        sandbox.SOCKETS.pop(call, None)
    enter(Policy(**policy))
    return prove(Policy(**policy))


# --- the proof


def test_each_deed_of_the_proof_is_tried_and_fails_inside(
    inside: Inside, policy: Policy
):
    said = inside(policy, attempted, attrs.asdict(policy))

    denied = {errno.EACCES, errno.EPERM}
    assert [deed for deed, _ in said.returned] == [
        deed.format(secret=policy.secret) for deed in DEEDS
    ]
    assert {number for _, number in said.returned} == denied
    assert inside.confined == {
        "event": "confined",
        "level": level(landlock_abi()),
        "tried": len(DEEDS),
    }


def test_each_deed_of_the_proof_goes_well_where_nothing_confines(
    inside: Inside, policy: Policy
):
    said = inside(None, attempted, attrs.asdict(policy))

    # Nobody listens: what fails then is no sandbox's doing.
    connects = [
        deed for deed in DEEDS if "connect" in deed and "INET, SOCK_D" not in deed
    ]
    assert dict(said.returned) == {
        deed.format(secret=policy.secret): errno.ECONNREFUSED
        if deed in connects
        else None
        for deed in DEEDS
    }


@pytest.mark.parametrize(
    ("calls", "went_well"),
    [
        (("connect", "socket"), "it could connect a socket (AF_INET, SOCK_DGRAM)"),
        (("chmod", "fchmodat", "fchmodat2"), "it could change a file's mode"),
        (("unshare",), "it could make a namespace"),
    ],
)
def test_a_filter_with_a_hole_is_no_proof_and_the_deed_is_named(
    inside: Inside, policy: Policy, calls: tuple[str, ...], went_well: str
):
    said = inside(None, weakened, attrs.asdict(policy), *calls)

    assert (said.raised, said.text) == ("NotConfined", went_well)


def test_where_nothing_confines_the_first_deed_is_named(inside: Inside, policy: Policy):
    told = attrs.evolve(policy, secret="")

    with_secret = inside(None, proved, attrs.asdict(policy))
    without = inside(None, proved, attrs.asdict(told))

    assert with_secret.text == f"it could read {policy.secret}"
    assert without.text == "it could write deltaspec's code"
    assert with_secret.raised == without.raised == "NotConfined"


def test_a_secret_that_is_not_there_is_no_proof(inside: Inside, policy: Policy):
    gone = attrs.evolve(policy, secret=policy.secret + ".gone")

    said = inside(policy, proved, attrs.asdict(gone))

    assert (said.raised, said.text) == (
        "NotConfined",
        f"read {gone.secret} failed for another reason: [Errno 2] No such file or "
        f"directory: '{gone.secret}'",
    )


def test_a_secret_that_the_policy_lets_be_read_is_no_proof(
    inside: Inside, policy: Policy
):
    open_ = attrs.evolve(policy, read=(os.path.dirname(policy.secret),))

    said = inside(None, entered, attrs.asdict(open_), landlock_abi())

    assert (said.raised, said.text) == (
        "NotConfined",
        f"it could read {policy.secret}",
    )


@pytest.mark.parametrize("abi", [0, *range(sandbox.LEAST_ABI, 8)])
def test_the_proof_holds_with_each_version_of_landlock_and_without_any(
    inside: Inside, policy: Policy, abi: int
):
    if abi > landlock_abi():
        pytest.skip(f"this kernel's Landlock is version {landlock_abi()}")

    said = inside(None, entered, attrs.asdict(policy), abi)

    # Of a file system of its own, two of the folders that it could write to are no part.
    assert said == Said(returned=len(DEEDS) - 2 * (abi == 0)), said.text


def test_a_machine_can_be_asked_how_it_confines():
    assert sandbox_of(ROOT) == (level(landlock_abi()), len(DEEDS) - 1)  # no secret


def test_the_module_says_for_itself_whether_it_holds():
    done = subprocess.run(
        [sys.executable, "-m", "core.sandbox"], cwd=ROOT, capture_output=True, text=True
    )

    assert json.loads(done.stdout) == {
        "level": level(landlock_abi()),
        "tried": len(DEEDS) - 1,
    }


# --- where there is no Landlock


def without_landlock(
    policy: dict[str, Any], function: str, *arguments: Any
) -> str | list[str] | None:
    """Call a function of this file in a file system of its own."""
    enter(Policy(**policy), abi=0)
    return globals()[function](*arguments)


def linked(path: str) -> None:
    os.symlink("/", path)


def listed(path: str) -> list[str]:
    return sorted(os.listdir(path))


def test_without_landlock_its_own_folder_is_all_that_it_can_write(
    inside: Inside, policy: Policy
):
    file, module = str(own(policy, "mine.txt")), f"{policy.read[0]}/train.py"

    def does(function: str, *arguments: Any) -> Said:
        return inside(
            None, without_landlock, attrs.asdict(policy), function, *arguments
        )

    assert does("overwrite", file) == WENT_WELL
    assert does("read", file) == Said(returned="mine")
    assert does("read", module) == Said(returned="a module")
    assert does("overwrite", module) == Said(raised="OSError", errno=errno.EROFS)
    assert does("append", "/tmp/new") == Said(raised="OSError", errno=errno.EROFS)
    assert does("linked", f"{file}.link") == FILTERED


def test_without_landlock_what_it_may_not_read_is_not_there(
    inside: Inside, policy: Policy
):
    def does(function: str, *arguments: Any) -> Said:
        return inside(
            None, without_landlock, attrs.asdict(policy), function, *arguments
        )

    link = own(policy, "link")
    link.symlink_to(policy.secret)
    gone = Said(raised="FileNotFoundError", errno=errno.ENOENT)

    assert does("read", policy.secret) == gone
    assert does("read", str(link)) == gone
    beside = set(does("listed", str(ROOT)).returned)
    assert "core" in beside
    assert not beside & {"specs", "codemods", "tests", "README.md"}
    assert does("read", f"/proc/{os.getpid()}/root{policy.secret}") == GUARDED


def filtered_and_entered(policy: dict[str, Any], abi: int) -> None:
    """Enter the sandbox where the kernel refuses namespaces, as the filter does."""
    sandbox._libc.prctl(38, 1, 0, 0, 0)  # or only root may
    sandbox._filter(can_signal=True, can_listen=False, can_start=True, can_link=True)
    enter(Policy(**policy), abi)


@pytest.mark.parametrize(
    ("abi", "text"),
    [
        (0, f"the kernel ({platform.release()}) has no Landlock, or it is off"),
        (2, "the kernel's Landlock is version 2, and 3 is the least"),
    ],
)
def test_a_kernel_without_landlock_that_refuses_namespaces_is_refused(
    inside: Inside, policy: Policy, abi: int, text: str
):
    said = inside(None, filtered_and_entered, attrs.asdict(policy), abi)

    assert said.raised == "NotConfined"
    assert said.text == (
        f"{text}; nor are there namespaces to do without "
        "(unshare: Operation not permitted)"
    )


def test_a_machine_whose_system_calls_are_unknown_is_refused(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")

    with pytest.raises(NotConfined) as caught:
        enter(Policy())

    assert str(caught.value) == (
        "the system calls of aarch64 are unknown to the filter"
    )


@pytest.mark.parametrize("field", ["read", "write", "lists"])
def test_a_folder_that_is_not_there_cannot_be_allowed(
    inside: Inside, policy: Policy, field: str
):
    nowhere = attrs.evolve(policy, **{field: ("/nowhere",)})

    said = inside(None, entered, attrs.asdict(nowhere), landlock_abi())

    assert said == Said(raised="FileNotFoundError", errno=errno.ENOENT)


# --- files


def test_its_own_folder_is_its_own(inside: Inside, policy: Policy):
    file = str(own(policy, "mine.txt"))

    assert inside(policy, overwrite, file) == WENT_WELL
    assert inside(policy, read, file) == Said(returned="mine")
    assert inside(policy, os.mkdir, str(own(policy, "sub"))) == WENT_WELL
    assert inside(policy, os.rename, file, str(own(policy, "sub", "a"))) == WENT_WELL
    assert inside(policy, os.truncate, str(own(policy, "sub", "a")), 2) == WENT_WELL
    assert inside(policy, os.remove, str(own(policy, "sub", "a"))) == WENT_WELL


def test_its_module_can_be_read_and_not_written(inside: Inside, policy: Policy):
    module = policy.read[0] + "/train.py"

    assert inside(policy, read, module) == Said(returned="a module")
    for deed in (overwrite, append, os.remove):
        assert inside(policy, deed, module) == GUARDED
    assert inside(policy, os.truncate, module, 0) == GUARDED
    assert inside(policy, os.rename, module, str(own(policy, "train.py"))) == GUARDED
    assert inside(policy, overwrite, policy.read[0] + "/more.py") == GUARDED
    assert Path(module).read_text() == "a module"


def test_no_link_or_pipe_can_be_made(inside: Inside, policy: Policy):
    here = str(own(policy, "link"))

    assert inside(policy, os.symlink, policy.secret, here) == GUARDED
    assert inside(policy, os.mkfifo, here) == GUARDED
    # Not even a hard link to what it may read: it would lie in its own folder.
    assert inside(policy, os.link, policy.read[0] + "/train.py", here).errno in (
        errno.EACCES,
        errno.EXDEV,
    )
    assert inside(policy, os.link, policy.secret, here).errno in (
        errno.EACCES,
        errno.EXDEV,
    )
    assert list(own(policy).iterdir()) == []


@pytest.mark.parametrize("deed", [read, os.listdir, overwrite])
def test_the_validation_map_is_out_of_reach_by_its_path(
    inside: Inside, policy: Policy, deed: Any
):
    path = Path(policy.secret)

    assert (
        inside(policy, deed, str(path if deed is not os.listdir else path.parent))
        == GUARDED
    )
    assert path.read_text() == "the answers"


def test_a_symbolic_link_that_somebody_else_made_leads_nowhere(
    inside: Inside, policy: Policy
):
    own(policy, "link").symlink_to(policy.secret)
    own(policy, "folder").symlink_to(Path(policy.secret).parent)

    assert inside(policy, read, str(own(policy, "link"))) == GUARDED
    assert inside(policy, read, str(own(policy, "folder", "validation.bin"))) == GUARDED
    assert inside(policy, os.listdir, str(own(policy, "folder"))) == GUARDED


def test_a_hard_link_that_somebody_else_made_is_what_its_folder_is(
    inside: Inside, policy: Policy
):
    # Landlock goes by the path that is opened, so nobody may make one there.
    os.link(policy.secret, own(policy, "link"))

    assert inside(policy, read, str(own(policy, "link"))) == Said(
        returned="the answers"
    )
    assert inside(policy, read, policy.secret) == GUARDED


@pytest.mark.parametrize(
    "place",
    ["root{secret}", "root", "cwd", "environ", "mem", "maps", "map_files"],
)
def test_the_processes_around_it_are_closed(inside: Inside, policy: Policy, place: str):
    for pid in (os.getpid(), inside.zygote._process.pid):
        path = f"/proc/{pid}/{place.format(secret=policy.secret)}"
        deed = os.listdir if place in ("root", "cwd", "map_files") else read

        assert inside(policy, deed, path) == GUARDED, path


def open_each(folder: str) -> list[int]:
    """Return the errors of opening what another process has open, and 0 for none."""
    found = set()
    for name in os.listdir(folder):
        for deed in (read, os.readlink):
            try:
                deed(f"{folder}/{name}")
                found.add(0)
            except OSError as error:
                found.add(error.errno)
    return sorted(found)


def test_what_others_have_open_can_be_counted_and_not_opened(
    inside: Inside, policy: Policy
):
    with open(policy.secret) as held:
        assert held.readable()

        said = inside(policy, open_each, f"/proc/{os.getpid()}/fd")

    assert said == Said(returned=[errno.EACCES])


def through_the_parent(place: str) -> str:
    return read(f"/proc/{os.getppid()}/{place}")


@pytest.mark.parametrize("place", ["root{secret}", "environ", "mem", "fd/0"])
def test_its_parent_is_closed(inside: Inside, policy: Policy, place: str):
    where = place.format(secret=policy.secret)

    assert inside(policy, through_the_parent, where) == GUARDED


def test_shared_memory_cannot_be_made(inside: Inside, policy: Policy):
    for deed, argument in (
        (overwrite, "/dev/shm/deltaspec-test"),
        (os.mkdir, "/dev/shm/deltaspec-test"),
    ):
        assert inside(policy, deed, argument) == GUARDED
    assert inside(policy, shared).raised == "PermissionError"
    assert inside(policy, semaphore).raised == "PermissionError"
    assert not os.path.exists("/dev/shm/deltaspec-test")


def shared() -> None:
    multiprocessing.shared_memory.SharedMemory(create=True, size=8)


def semaphore() -> None:
    multiprocessing.Lock()


@pytest.mark.parametrize("deed", ["chmod", "utime", "chown", "setxattr"])
def test_what_a_file_is_like_cannot_be_changed_not_even_of_its_own(
    inside: Inside, policy: Policy, deed: str
):
    file = own(policy, "mine.txt")
    file.write_text("mine")
    before = file.stat()

    said = inside(policy, change, deed, str(file))

    assert said == FILTERED
    assert (file.stat().st_mode, file.stat().st_mtime_ns) == (
        before.st_mode,
        before.st_mtime_ns,
    )


def change(deed: str, path: str) -> None:
    match deed:
        case "chmod":
            os.chmod(path, 0o777)
        case "utime":
            os.utime(path, (0, 0))
        case "chown":
            os.chown(path, 1, 1)
        case "setxattr":
            os.setxattr(path, "user.note", b"x")


def test_folders_of_modules_around_what_is_its_own_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    project, library = tmp_path / "project", tmp_path / "library"
    (project / "runs").mkdir(parents=True)
    library.mkdir()
    for folder in (project, library):
        (folder / "some.py").write_text("found = 1")
    path = [str(project), str(library), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))

    with Zygote(ROOT, (__name__,)) as zygote:
        inside = Inside(zygote, project / "runs")
        policy = Policy(write=(str(inside.own()),))
        of_project = inside(policy, read, str(project / "some.py"))
        of_library = inside(policy, read, str(library / "some.py"))

    assert of_project == GUARDED
    assert of_library == Said(returned="found = 1")


def test_what_lies_beside_the_machinery_is_not_read(inside: Inside, policy: Policy):
    assert inside(policy, read, str(ROOT / "core" / "memory.py")).raised is None
    assert inside(policy, read, str(ROOT / "README.md")) == GUARDED
    assert inside(policy, read, str(ROOT / "specs" / "attention.py")) == GUARDED
    assert inside(policy, read, "/etc/shadow") == GUARDED
    assert inside(policy, os.listdir, os.path.expanduser("~")) == GUARDED


# --- what it starts


def run(command: list[str]) -> tuple[int, str]:
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, (done.stdout + done.stderr).strip()


def test_what_it_starts_is_confined_as_well(inside: Inside, policy: Policy):
    code, text = inside(policy, run, ["cat", policy.secret]).returned
    opens = f"import os; os.open({policy.secret!r}, os.O_RDONLY)"
    python_code, python_text = inside(
        policy, run, [sys.executable, "-S", "-c", opens]
    ).returned

    assert (code, text) == (1, f"cat: {policy.secret}: Permission denied")
    assert python_code == 1
    assert python_text.splitlines()[-1] == (
        f"PermissionError: [Errno 13] Permission denied: '{policy.secret}'"
    )


STATUS = ("CapInh", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs", "Seccomp")


def status_of(command: list[str] | None) -> dict[str, int]:
    path = "/proc/self/status"
    text = read(path) if command is None else run([*command, path])[1]
    fields = dict(line.split(":\t", 1) for line in text.splitlines())
    return {name: int(fields[name], 16) for name in STATUS}


@pytest.mark.parametrize("command", [None, ["cat"]], ids=["itself", "what it starts"])
def test_its_privileges_are_gone_and_stay_so(
    inside: Inside, policy: Policy, command: list[str] | None
):
    said = inside(policy, status_of, command)

    assert said.returned == {
        **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapAmb"), 0),
        "NoNewPrivs": 1,
        "Seccomp": 2,
    }


def from_a_thread(path: str) -> list[str]:
    """Return what a thread that starts inside gets to read."""
    found = []

    def look() -> None:
        try:
            found.append(read(path))
        except PermissionError as error:
            found.append(str(error.errno))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found


def test_a_thread_is_confined_as_well(inside: Inside, policy: Policy):
    said = inside(policy, from_a_thread, policy.secret)

    assert said.returned == [str(errno.EACCES)]


# --- how much


def write_mib(path: str, mib: int) -> None:
    with open(path, "wb") as file:
        for _ in range(mib):
            file.write(bytes(2**20))


def test_a_file_is_no_larger_than_the_policy_says(inside: Inside, policy: Policy):
    little = attrs.evolve(policy, file_mib=4.0)

    said = inside(little, write_mib, str(own(policy, "large")), 8)
    fits = inside(little, write_mib, str(own(policy, "small")), 4)

    assert said == Said(raised="OSError", errno=errno.EFBIG)
    assert own(policy, "large").stat().st_size == 4 * 2**20
    assert fits == WENT_WELL


def of_memory(mib: int) -> int:
    return len(bytearray(mib * 2**20))


def in_memory_file(mib: int) -> None:
    os.ftruncate(os.memfd_create("large"), mib * 2**20)


def raise_limit() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)


def test_more_memory_than_the_policy_says_is_a_memory_error(
    inside: Inside, policy: Policy
):
    little = attrs.evolve(policy, host_mib=512.0, file_mib=64.0)

    assert inside(little, of_memory, 600) == Said(raised="MemoryError")
    assert inside(little, of_memory, 64) == Said(returned=64 * 2**20)
    assert inside(little, in_memory_file, 65) == Said(
        raised="OSError", errno=errno.EFBIG
    )
    assert inside(little, raise_limit).raised == "ValueError"  # only root may


def dumps_core() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_CORE)


def test_it_is_the_first_that_a_machine_short_of_memory_ends_and_leaves_no_core(
    inside: Inside, policy: Policy
):
    assert inside(policy, read, "/proc/self/oom_score_adj") == Said(returned="1000\n")
    assert inside(policy, dumps_core) == Said(returned=[0, 0])
    # With all of /proc to be read, and nothing of it to be written.
    assert inside(policy, overwrite, "/proc/self/oom_score_adj") == GUARDED


# --- other processes


def test_signals_reach_itself_and_nobody_else(inside: Inside, policy: Policy):
    assert inside(policy, os.kill, os.getpid(), 0) == FILTERED
    assert inside(policy, signal_parent, 0) == FILTERED
    assert inside(policy, signal_itself) == Said(returned="heard")
    assert inside(policy, signal_what_it_started) == Said(returned=-signal.SIGTERM)


def test_a_signal_to_all_reaches_nobody(inside: Inside, policy: Policy):
    # One that nobody minds: it is ignored where it is not asked for.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
    try:
        inside(policy, os.kill, -1, signal.SIGURG)
        heard = signal.sigpending()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    assert heard == set()


def signal_parent(number: int) -> None:
    os.kill(os.getppid(), number)


def signal_itself() -> str:
    heard = []
    signal.signal(signal.SIGUSR2, lambda *_: heard.append("heard"))
    os.kill(os.getpid(), signal.SIGUSR2)
    return heard[0]


def signal_what_it_started() -> int:
    process = subprocess.Popen(["sleep", "600"])
    process.terminate()
    return process.wait()


@pytest.mark.parametrize(
    "deed", ["renice", "limit", "read limit", "cores", "scheduler", "pidfd"]
)
def test_other_processes_keep_their_rank_their_limits_and_their_cores(
    inside: Inside, policy: Policy, deed: str
):
    said = inside(policy, meddle, deed, os.getpid())

    assert said == FILTERED
    assert resource.getrlimit(resource.RLIMIT_CORE) != (0, 1)


def meddle(deed: str, pid: int) -> None:
    match deed:
        case "renice":
            os.setpriority(os.PRIO_PROCESS, pid, 19)
        case "limit":
            resource.prlimit(pid, resource.RLIMIT_CORE, (0, 1))
        case "read limit":
            resource.prlimit(pid, resource.RLIMIT_CORE)
        case "cores":
            os.sched_setaffinity(pid, {0})
        case "scheduler":
            os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))
        case "pidfd":
            signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGTERM)


# --- the network

FAMILIES = range(1, 46)  # all that there are: AF_UNIX to AF_MCTP
KINDS = (
    *(socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET),
    socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
)


def sockets() -> list[tuple[int, int, int]]:
    """Return the error of making each kind of socket, 0 where it was made."""
    made = []
    for family in FAMILIES:
        for kind in KINDS:
            try:
                socket.socket(family, kind).close()
                made.append((family, kind, 0))
            except OSError as error:
                made.append((family, kind, error.errno))
    return made


def test_no_socket_of_any_family_can_be_made(inside: Inside, policy: Policy):
    said = inside(policy, sockets)

    assert [number for *_, number in said.returned] == [errno.EPERM] * (
        len(FAMILIES) * len(KINDS)
    )


def test_for_cuda_local_stream_sockets_can_be_made_and_no_others(
    inside: Inside, policy: Policy
):
    said = inside(attrs.evolve(policy, gpus=(0,)), sockets)

    streams = (KINDS[0], KINDS[3], KINDS[4])
    assert said.returned == [
        [
            family,
            kind,
            0 if family == socket.AF_UNIX and kind in streams else errno.EPERM,
        ]
        for family in FAMILIES
        for kind in KINDS
    ]


def local_socket(deed: str, address: str) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        if deed == "listen":
            opened.bind("\0" + address)
            opened.listen()
        elif deed == "bind":
            opened.bind(address)
        else:
            opened.connect(address)


def test_for_cuda_a_local_socket_can_listen_and_not_connect(
    inside: Inside, policy: Policy, tmp_path: Path
):
    on_gpu = attrs.evolve(policy, gpus=(0,))
    judge = str(tmp_path / "judge.socket")

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(judge)
        listening.listen()

        assert inside(on_gpu, local_socket, "connect", judge) == FILTERED
    assert inside(on_gpu, local_socket, "listen", "deltaspec-test") == WENT_WELL
    assert inside(on_gpu, local_socket, "bind", str(own(policy, "s"))) == GUARDED


def test_for_cuda_only_its_own_thread_names_can_be_written_in_proc(
    inside: Inside, policy: Policy
):
    on_gpu = attrs.evolve(policy, gpus=(0,))

    assert inside(on_gpu, name_thread) == Said(returned="driver\n")
    assert inside(on_gpu, overwrite, "/proc/self/oom_score_adj") == GUARDED
    assert inside(on_gpu, overwrite, f"/proc/{os.getpid()}/comm") == GUARDED
    assert inside(on_gpu, proved, attrs.asdict(on_gpu)) == Said(returned=len(DEEDS))


def name_thread() -> str:
    comm = f"/proc/self/task/{os.getpid()}/comm"
    Path(comm).write_text("driver")
    return read(comm)


# --- system calls by their numbers


def call(number: int, *arguments: int) -> int:
    """Return the number of the error of a system call, 0 if it went well."""
    libc = ctypes.CDLL(None, use_errno=True)
    went_well = libc.syscall(number, *arguments) >= 0
    return 0 if went_well else ctypes.get_errno()


def calls(numbers: dict[str, int]) -> dict[str, int]:
    return {name: call(number, *[0] * 6) for name, number in numbers.items()}


def test_every_call_on_the_list_is_refused(inside: Inside, policy: Policy):
    everything = {**sandbox.DENIED, **sandbox.SOCKETS}

    said = inside(policy, calls, everything)

    assert said.returned == dict.fromkeys(everything, errno.EPERM)


def start_a_thread_and_a_process() -> str:
    threading.Thread(target=ran.append, args=("a thread",)).start()
    os.fork()
    return "both"


ran: list[str] = []


def test_who_may_not_start_processes_has_threads_alone(inside: Inside, policy: Policy):
    alone = attrs.evolve(policy, starts=False)

    started = inside(alone, start_a_thread_and_a_process)
    called = inside(alone, calls, sandbox.STARTS)

    assert started == FILTERED
    assert called.returned == dict.fromkeys(sandbox.STARTS, errno.EPERM)
    assert inside.confined is not None
    assert inside.confined["tried"] == len(DEEDS) + 1


def test_the_numbers_on_the_list_are_those_of_the_kernels_header(tmp_path: Path):
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("the headers of the C library are not installed")
    defined = dict(
        line.split()[1:3]
        for line in header.read_text().splitlines()
        if line.startswith("#define __NR_")
    )
    ours = {
        **{**sandbox.DENIED, **sandbox.SIGNALS, **sandbox.SOCKETS},
        **{**sandbox.STARTS, **sandbox.LINKS},
        **{"clone": sandbox.CLONE, "clone3": sandbox.CLONE3},
        **{"prlimit64": sandbox.PRLIMIT, "sched_setaffinity": sandbox.SET_AFFINITY},
    }

    known = {name: number for name, number in ours.items() if f"__NR_{name}" in defined}

    assert {name: int(defined[f"__NR_{name}"]) for name in known} == known
    # What the header lacks is newer than it.
    newest = max(int(number) for number in defined.values())
    assert all(ours[name] > newest for name in ours.keys() - known.keys())


NEW_NAMESPACE = {
    **{"user": 0x1000_0000, "mount": 0x0002_0000, "pid": 0x2000_0000},
    **{"net": 0x4000_0000, "ipc": 0x0800_0000, "uts": 0x0400_0000},
    **{"cgroup": 0x0200_0000},
}


@pytest.mark.parametrize("flag", NEW_NAMESPACE.values(), ids=NEW_NAMESPACE)
def test_no_namespace_comes_with_a_new_process(
    inside: Inside, policy: Policy, flag: int
):
    said = inside(policy, call, sandbox.CLONE, flag | signal.SIGCHLD, 0, 0, 0, 0)

    assert said == Said(returned=errno.EPERM)


def test_what_the_filter_cannot_look_into_is_not_there(inside: Inside, policy: Policy):
    # libc falls back to clone, whose flags it can.
    assert inside(policy, call, sandbox.CLONE3, 0, 0) == Said(returned=errno.ENOSYS)


# getpid (20) of the 32-bit system calls: push rbx; mov eax, 20; int 0x80; pop rbx; ret
AS_32_BIT = bytes.fromhex("53 b8 14000000 cd80 5b c3")


def call_as_32_bit() -> int:
    code = mmap.mmap(
        -1, len(AS_32_BIT), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    )
    code.write(AS_32_BIT)
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    return ctypes.CFUNCTYPE(ctypes.c_int)(address)()


def test_the_other_ways_into_the_kernel_are_closed(inside: Inside, policy: Policy):
    x32_getpid = sandbox.X32 | 39
    assert inside(None, call_as_32_bit).returned > 0  # else this shows nothing

    assert inside(policy, call_as_32_bit) == Said(returned=-errno.EPERM)
    assert inside(policy, call, x32_getpid) == Said(returned=errno.ENOSYS)


def reads_memory_of(pid: int) -> int:
    """Return the error of reading one byte of another process."""
    libc = ctypes.CDLL(None, use_errno=True)
    byte = ctypes.create_string_buffer(1)
    local = (ctypes.c_void_p * 2)(ctypes.addressof(byte), 1)
    went_well = libc.process_vm_readv(pid, local, 1, local, 1, 0) >= 0
    return 0 if went_well else ctypes.get_errno()


def test_no_memory_of_another_process_can_be_read(inside: Inside, policy: Policy):
    assert inside(policy, reads_memory_of, os.getpid()) == Said(returned=errno.EPERM)
