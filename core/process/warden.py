"""Start one child and outlive it, so that nothing that it started stays behind.

The warden is the subreaper of everything below it: a daemon that a trial detached
becomes the warden's own child and is ended by its id.  It ends the trial when its
control pipe closes, so even a pytest that was killed leaves no process behind.

On the control pipe ``dump`` asks the child for a traceback of all threads (SIGUSR1); its
end means: end the trial.  The report is two JSON lines: the pid of the child, and how it
ended.
"""

import contextlib
import ctypes
import importlib
import os
import resource
import select
import signal
import sys
import tempfile
from typing import Any, NoReturn

import psutil

from core import sandbox
from core.channel import Reader, write

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
DUMP_SECONDS = 2.0  # faulthandler writes a dump in milliseconds, if it can at all


def _prctl(option: int, value: int | bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def run(request: dict[str, Any], fds: list[int]) -> NoReturn:
    """Be the warden of one child, from its start to its end.

    Args:
        request: As `core.process.child.Child.start` makes it.
        fds: Control, report, log, events and commands, then what the child inherits.
    """
    control, report, *for_child = fds
    os.setsid()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    _prctl(PR_SET_NAME, b"warden")
    if request["cpus"]:
        os.sched_setaffinity(0, request["cpus"])  # inherited by all below
    warden = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(control)
        os.close(report)
        _become(request, warden, *for_child[:3], for_child[3:])
    for fd in for_child:
        os.close(fd)
    write(report, {"pid": child})
    _supervise(child, control)
    for end in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            end(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    own = psutil.Process(child).cpu_times()  # while it has not been waited for
    _, status = os.waitpid(child, 0)
    left_behind = _sweep()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    with contextlib.suppress(BrokenPipeError):  # a killed pytest reads no report
        write(
            report,
            {
                "returncode": os.waitstatus_to_exitcode(status),
                "left_behind": left_behind,
                "peak_mib": usage.ru_maxrss / 1024,
                "helper_seconds": usage.ru_utime
                + usage.ru_stime
                - (own.user + own.system),
            },
        )
    os._exit(0)


def _become(
    request: dict[str, Any],
    warden: int,
    log: int,
    events: int,
    commands: int,
    inherited: list[int],
) -> NoReturn:
    """Be the child: confine this process, prove it, run the function."""
    os.setsid()
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(PR_SET_NAME, request["name"].encode())
    if os.getppid() != warden:  # it was killed before we asked to die with it
        os._exit(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, theirs in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(ours, theirs)
    kept = {0, 1, 2, events, commands, *inherited}
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in kept:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(fd)
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # the zygote may have looked for it already
    os.chdir(request["folder"])
    policy = request["policy"]
    if policy is not None:
        _confine(sandbox.Policy(**policy), events)
    module, _, function = request["main"].partition(":")
    main = getattr(importlib.import_module(module), function)
    main(request["settings"], events, Reader(commands), inherited)
    sys.exit(0)


def _confine(policy: sandbox.Policy, events: int) -> None:
    """Enter the sandbox and say that it holds, or say why there is none, and end."""
    try:
        sandbox.enter(policy)
        tried = sandbox.prove(policy)
    except (sandbox.NotConfined, OSError) as error:
        write(events, {"event": "unconfined", "message": str(error)})
        os._exit(1)
    level = sandbox.level(sandbox.landlock_abi())
    write(events, {"event": "confined", "level": level, "tried": tried})


def _supervise(child: int, control: int) -> None:
    """Wait until the child ends, or has to be ended."""
    exited = os.pidfd_open(child)
    poll = select.poll()
    poll.register(exited, select.POLLIN)
    poll.register(control, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if exited in ready or not os.read(control, 4096):
            return
        os.kill(child, signal.SIGUSR1)
        poll.unregister(control)
        poll.poll(DUMP_SECONDS * 1000)
        poll.register(control, select.POLLIN)


def _sweep() -> int:
    """End every process below this one; return how many there were."""
    swept: set[int] = set()
    while True:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    swept.add(process.pid)
                    process.kill()
        try:
            os.waitpid(-1, 0)
            while os.waitpid(-1, os.WNOHANG)[0]:  # of thousands, as many as have ended
                pass
        except ChildProcessError:
            return len(swept)
