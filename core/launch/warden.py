"""Start one child and outlive it, so that nothing that it started stays behind.

The warden is the subreaper of everything below it: a daemon that a trial detached
becomes the warden's own child and is ended by its id.  It ends the trial when its
standard input closes, so even a pytest that was killed leaves no process behind.

Standard input is the control pipe: ``dump`` asks the child for a traceback of all
threads (SIGUSR1); its end means: end the trial.  The report is two JSON lines: the pid
of the child, and how it ended.
"""

import contextlib
import ctypes
import os
import resource
import select
import signal
import subprocess
import sys

import psutil

from core.channel import write

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
DUMP_SECONDS = 2.0  # faulthandler writes a dump in milliseconds, if it can at all


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def _die_with_the_warden() -> None:
    """Run between fork and exec.  The sandbox of a child belongs here as well."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(argv: list[str]) -> None:
    """Run ``warden REPORT_FD FD,FD,... CPU,CPU,... COMMAND...`` until the child ends."""
    report_fd = int(argv[0])
    inherited, cpus = ([int(n) for n in list_.split(",") if n] for list_ in argv[1:3])
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    if cpus:
        os.sched_setaffinity(0, cpus)  # inherited by all that the child starts
    child = subprocess.Popen(
        argv[3:],
        stdin=subprocess.DEVNULL,
        pass_fds=inherited,
        start_new_session=True,
        preexec_fn=_die_with_the_warden,
    )
    for fd in inherited:
        os.close(fd)
    write(report_fd, {"pid": child.pid})
    _supervise(child)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    returncode = child.wait()
    left_behind = _sweep()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    with contextlib.suppress(BrokenPipeError):  # a killed pytest reads no report
        write(
            report_fd,
            {
                "returncode": returncode,
                "left_behind": left_behind,
                "peak_mib": usage.ru_maxrss / 1024,
            },
        )


def _supervise(child: subprocess.Popen[bytes]) -> None:
    """Wait until the child ends, or has to be ended."""
    exited = os.pidfd_open(child.pid)
    poll = select.poll()
    poll.register(exited, select.POLLIN)
    poll.register(0, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if exited in ready or not os.read(0, 4096):
            return
        child.send_signal(signal.SIGUSR1)
        poll.unregister(0)
        poll.poll(DUMP_SECONDS * 1000)
        poll.register(0, select.POLLIN)


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
        except ChildProcessError:
            return len(swept)


if __name__ == "__main__":
    main(sys.argv[1:])
