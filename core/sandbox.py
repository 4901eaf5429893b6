"""Confine this process and all that it will start to what a trial needs.

Landlock (https://docs.kernel.org/userspace-api/landlock.html) says which files can be
reached, or, where the kernel's is too old, a file system of its own holds no others; a
seccomp filter closes what that leaves open: sockets, other processes, owners and modes
of files, new namespaces.  All is inherited, and nobody can take it back.  Whether it
holds is never concluded from a version: `prove` tries what must fail.

``python -m core.sandbox`` confines itself and says whether that holds here.
"""

import ctypes
import errno
import json
import os
import platform
import resource
import socket
import stat
import struct
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from core import namespaces
from core.namespaces import Place

LEAST_ABI = 3  # of Landlock: truncation; the filter makes up for what came later
MACHINE = "x86_64"  # whose system calls the filter knows by their numbers

# Of Landlock's rights to files, by bit.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = range(6)
MAKE_DIR, MAKE_REG, REFER, TRUNCATE, IOCTL_DEV = 7, 8, 13, 14, 15
RIGHTS_OF_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many bits there are; then 16


def _bits(*rights: int) -> int:
    return sum(1 << right for right in rights)


READ = _bits(EXECUTE, READ_FILE, READ_DIR)
# No links, pipes, sockets or devices: whoever reads a run folder would follow them.
OWN = READ | _bits(
    WRITE_FILE, REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG, REFER, TRUNCATE
)
DEVICE = _bits(READ_FILE, WRITE_FILE, IOCTL_DEV)
OF_FILES = _bits(EXECUTE, WRITE_FILE, READ_FILE, TRUNCATE, IOCTL_DEV)

# What an interpreter, a C compiler and a CUDA driver read.
SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/proc", "/sys"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives"),
    *("/etc/localtime", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf"),
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
GPU_DEVICES = (
    *("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"),
    "/dev/nvidia-caps",
)

# Refused by the filter; numbers of x86_64.  A call of a kernel newer than this list is
# not refused: what it could reach, Landlock guards.
DENIED = {
    # A trial speaks through the pipes that it was given.
    **{"connect": 42},
    **{"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427},
    **{
        "shmget": 29,
        "shmat": 30,
        "shmctl": 31,
        "semget": 64,
        "semop": 65,
        "semctl": 66,
    },
    **{"semtimedop": 220, "msgget": 68, "msgsnd": 69, "msgrcv": 70, "msgctl": 71},
    **{"mq_open": 240, "mq_unlink": 241},
    # Other processes.
    **{"ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312},
    **{"pidfd_getfd": 438, "process_madvise": 440, "process_mrelease": 448},
    **{"perf_event_open": 298, "bpf": 321, "userfaultfd": 323, "migrate_pages": 256},
    **{"move_pages": 279, "setpriority": 141, "ioprio_set": 251, "sched_setparam": 142},
    **{"sched_setscheduler": 144, "sched_setattr": 314},
    # Landlock does not guard what a file is like, only what is in it.
    **{"chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "chown": 92},
    **{"fchown": 93, "lchown": 94, "fchownat": 260, "utime": 132, "utimes": 235},
    **{"futimesat": 261, "utimensat": 280, "setxattr": 188, "lsetxattr": 189},
    **{"fsetxattr": 190, "setxattrat": 463, "removexattr": 197, "lremovexattr": 198},
    **{"fremovexattr": 199, "removexattrat": 466, "file_setattr": 469},
    # A namespace of one's own gives back what was taken.
    **{"unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155},
    **{"chroot": 161, "move_mount": 429, "open_tree": 428, "open_tree_attr": 467},
    **{"fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433},
    **{"mount_setattr": 442, "name_to_handle_at": 303, "open_by_handle_at": 304},
    # The machine, and keys that it keeps.
    **{"add_key": 248, "request_key": 249, "keyctl": 250, "init_module": 175},
    **{"finit_module": 313, "delete_module": 176, "kexec_load": 246, "reboot": 169},
    **{"kexec_file_load": 320, "swapon": 167, "swapoff": 168, "acct": 163},
    **{"settimeofday": 164, "clock_settime": 227, "adjtimex": 159},
    **{"clock_adjtime": 305, "sethostname": 170, "setdomainname": 171},
    **{"quotactl": 179, "quotactl_fd": 443, "syslog": 103, "iopl": 172, "ioperm": 173},
    **{"fanotify_init": 300, "fanotify_mark": 301, "personality": 135, "vhangup": 153},
}
SIGNALS = {
    **{"kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129},
    **{"rt_tgsigqueueinfo": 297, "pidfd_send_signal": 424},
}
# CUDA does not start without a socket that it listens to, and nobody connects to.
SOCKETS = {"socket": 41, "bind": 49, "listen": 50}
# Landlock lets nobody make these; without it the filter does.
LINKS = {"symlink": 88, "symlinkat": 266, "mknod": 133, "mknodat": 259}
STARTS = {"fork": 57, "vfork": 58, "execve": 59, "execveat": 322}
CLONE, CLONE3, PRLIMIT, SET_AFFINITY = 56, 435, 302, 203
THREAD = 0x0001_0000  # CLONE_THREAD
NAMESPACES = 0x7E02_0080  # CLONE_NEW*: user, mount, pid, net, ipc, uts, cgroup, time
X32 = 0x4000_0000

_libc = ctypes.CDLL(None, use_errno=True)


class NotConfined(RuntimeError):
    """The sandbox cannot be had here, or does not hold."""


@attrs.frozen(kw_only=True)
class Policy:
    """What a process may reach beside the interpreter and the system's libraries.

    Attributes:
        read: Files and folders to read; a folder with all below it.
        write: Folders of its own.
        lists: Folders whose names it may list, and those of the folders below.
        gpus: Minor numbers of the GPUs that it may use.
        secret: A file that it must not be able to read.
        starts: It may start processes.
        file_mib: Largest file that it may write; None for no bound.
        host_mib: Most memory of the machine that it may ask for; None for no bound.
    """

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    gpus: tuple[int, ...] = ()
    secret: str = ""
    starts: bool = True
    file_mib: float | None = None
    host_mib: float | None = None


def landlock_abi() -> int:
    """Return the version of Landlock's interface, 0 where there is none."""
    return max(0, _libc.syscall(444, None, 0, 1))


def level(abi: int) -> str:
    """Return how a process is confined, as it is recorded with each run."""
    by = f"landlock {abi}" if abi >= LEAST_ABI else "namespaces"
    return f"{by} + seccomp"


def enter(policy: Policy, abi: int | None = None) -> None:
    """Confine this thread and all that it will start, for ever.

    Args:
        policy: What stays within reach.
        abi: Of Landlock; what the kernel has, unless a test asks for less.

    Raises:
        NotConfined: The kernel refuses.
        OSError: A folder of the policy is not there.
    """
    found = landlock_abi()
    abi = found if abi is None else abi
    if platform.machine() != MACHINE:
        raise NotConfined(
            f"the system calls of {platform.machine()} are unknown to the filter"
        )
    _limit(policy)
    rules = _ruleset(policy, abi) if abi >= LEAST_ABI else None
    if rules is None:
        _leave_all_but(policy, abi)
    if _libc.prctl(38, 1, 0, 0, 0):  # no new privileges
        raise NotConfined(f"prctl: {_error()}")
    if rules is not None:
        if _libc.syscall(446, rules, 0):
            raise NotConfined(f"landlock_restrict_self: {_error()}")
        os.close(rules)
    _drop_capabilities()
    _filter(
        can_signal=abi >= 6,
        can_listen=bool(policy.gpus),
        can_start=policy.starts,
        can_link=rules is not None,
    )


def _error() -> str:
    return os.strerror(ctypes.get_errno())


def _limit(policy: Policy) -> None:
    # Of two, the kernel that is short of memory ends the one with the larger number.
    Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for which, mib in (
        (resource.RLIMIT_FSIZE, policy.file_mib),
        (resource.RLIMIT_DATA, policy.host_mib),
    ):
        if mib is not None:
            resource.setrlimit(which, (int(mib * 2**20),) * 2)


def _ruleset(policy: Policy, abi: int) -> int:
    """Return the descriptor of a Landlock ruleset."""
    handled = (1 << RIGHTS_OF_ABI.get(abi, 16)) - 1
    net, scoped = (0b11 if abi >= 4 else 0), (0b11 if abi >= 6 else 0)
    parts = [handled, *([net] if abi >= 4 else []), *([scoped] if abi >= 6 else [])]
    head = struct.pack(f"{len(parts)}Q", *parts)
    rules = _libc.syscall(444, head, len(head), 0)
    if rules < 0:
        raise NotConfined(f"landlock_create_ruleset: {_error()}")
    for path, rights, must_exist in _rules(policy):
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            if must_exist:
                raise
            continue
        try:
            is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
            allowed = rights & handled & (~0 if is_folder else OF_FILES)
            rule = struct.pack("<Qi", allowed, fd)
            if _libc.syscall(445, rules, 1, rule, 0):
                raise NotConfined(f"landlock_add_rule for {path}: {_error()}")
        finally:
            os.close(fd)
    return rules


def _leave_all_but(policy: Policy, abi: int) -> None:
    """Confine this process without Landlock, of which *abi* is not enough."""
    places = []
    for path, rights, must_exist in _rules(policy):
        if must_exist:
            os.stat(path)
        if os.path.exists(path):
            places.append(Place(os.path.abspath(path), _kind(rights)))
    if policy.secret:
        os.stat(policy.secret)  # that it cannot be found there is the proof
    try:
        namespaces.enter(places)
    except OSError as error:
        landlock = (
            f"the kernel's Landlock is version {abi}, and {LEAST_ABI} is the least"
            if abi
            else f"the kernel ({platform.release()}) has no Landlock, or it is off"
        )
        raise NotConfined(
            f"{landlock}; nor are there namespaces to do without ({error.strerror})"
        ) from error


def _kind(rights: int) -> str:
    if rights == _bits(READ_DIR):
        return namespaces.NAME
    if rights & _bits(IOCTL_DEV):
        return namespaces.DEVICE
    return namespaces.OWN if rights & _bits(WRITE_FILE) else namespaces.READ


def _rules(policy: Policy) -> Iterator[tuple[str, int, bool]]:
    """Yield paths with their rights, and whether they have to be there."""
    kept_from_it = (*policy.lists, *policy.write, policy.secret)
    for path in (*SYSTEM, *interpreter(kept_from_it)):
        yield path, READ, False
    for path in DEVICES:
        yield path, DEVICE, False
    for path in policy.read:
        yield path, READ, True
    for path in policy.lists:
        yield path, _bits(READ_DIR), True
    for path in policy.write:
        yield path, OWN, True
    if policy.gpus:
        gpus = [f"/dev/nvidia{minor}" for minor in policy.gpus]
        for path in (*GPU_DEVICES, *gpus):
            yield path, DEVICE | _bits(READ_DIR), False
        # The driver names its threads there, or does not start.  Only its own: in
        # another's folder it could make that one the kernel's first victim.
        yield "/proc/self/task", _bits(READ_FILE, READ_DIR, WRITE_FILE, TRUNCATE), True


def interpreter(kept_from_it: Iterable[str] = ()) -> list[str]:
    """Return what this interpreter reads: itself, its libraries, where it finds modules.

    Of a checkout that is only the package ``core``: beside it lie specs and runs.

    Args:
        kept_from_it: Who keeps modules around one of these (``PYTHONPATH=.``) keeps more
            there than modules.
    """
    core = Path(__file__).resolve().parent
    found = [sys.prefix, sys.base_prefix, sys.exec_prefix, str(core)]
    found += os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    around = {core.parent}
    for path in filter(None, kept_from_it):
        around.update([Path(path).resolve(), *Path(path).resolve().parents])
    found += [path for path in sys.path if Path(path).resolve() not in around]
    if core.parent.name == "site-packages":
        found.append(str(core.parent))
    return [path for path in dict.fromkeys(found) if os.path.isabs(path)]


def _drop_capabilities() -> None:
    """Give up what root can do beyond its own files."""
    header = struct.pack("<Ii", 0x2008_0522, 0)
    if _libc.capset(header, bytes(24)):
        raise NotConfined(f"capset: {_error()}")


def _filter(
    *, can_signal: bool, can_listen: bool, can_start: bool, can_link: bool
) -> None:
    """Install the seccomp filter.

    Args:
        can_signal: Landlock keeps signals inside, so they need not be refused.
        can_listen: Local sockets can be made, for CUDA.
        can_start: Processes can be started, and not threads alone.
        can_link: Links and pipes need not be refused: Landlock does.
    """
    refuse, absent = 0x0005_0000 | errno.EPERM, 0x0005_0000 | errno.ENOSYS
    allow = 0x7FFF_0000
    load, mask, give = 0x20, 0x54, 0x06
    equal, at_least, any_bit = 0x15, 0x35, 0x45
    number, arch, first, second = 0, 4, 16, 24  # offsets into struct seccomp_data
    program = [
        (load, 0, 0, arch),
        (equal, 1, 0, 0xC000_003E),
        (give, 0, 0, refuse),
        (load, 0, 0, number),
        (at_least, 0, 1, X32),
        (give, 0, 0, absent),
        (equal, 0, 1, CLONE3),  # its flags cannot be read; libc then takes clone
        (give, 0, 0, absent),
    ]

    def when(call: int, *steps: tuple[int, int, int, int]) -> None:
        program.append((equal, 0, len(steps), call))
        program.extend(steps)

    when(
        CLONE,
        (load, 0, 0, first),
        (any_bit, 0, 1, NAMESPACES),
        (give, 0, 0, refuse),
        *(() if can_start else [(any_bit, 1, 0, THREAD), (give, 0, 0, refuse)]),
        (give, 0, 0, allow),
    )
    if can_listen:
        when(
            SOCKETS["socket"],
            (load, 0, 0, first),
            (equal, 0, 5, socket.AF_UNIX),
            (load, 0, 0, second),
            (mask, 0, 0, 0xF),  # without its flags
            (equal, 1, 0, socket.SOCK_STREAM),
            (equal, 0, 1, socket.SOCK_SEQPACKET),
            (give, 0, 0, allow),
            (give, 0, 0, refuse),
        )
    of_itself = [PRLIMIT, SET_AFFINITY]
    if not can_signal:
        of_itself += [SIGNALS[name] for name in ("kill", "tkill", "tgkill")]
    for call in of_itself:
        when(
            call,
            (load, 0, 0, first),
            (equal, 1, 0, 0),
            (equal, 0, 1, os.getpid()),
            (give, 0, 0, allow),
            (give, 0, 0, refuse),
        )
    denied = [
        *DENIED.values(),
        *(() if can_listen else SOCKETS.values()),
        *(() if can_signal else SIGNALS.values()),
        *(() if can_start else STARTS.values()),
        *(() if can_link else LINKS.values()),
    ]
    for call in denied:
        when(call, (give, 0, 0, refuse))
    program.append((give, 0, 0, allow))
    code = b"".join(struct.pack("<HBBI", *step) for step in program)
    kept = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(kept))
    if _libc.prctl(22, 2, head, 0, 0):
        raise NotConfined(f"seccomp: {_error()}")


# What must fail


def prove(policy: Policy, abi: int | None = None) -> int:
    """Try what a confined process must not be able to do; return how much was tried.

    Args:
        policy: That it entered with.
        abi: Of Landlock; as for `enter`.

    Raises:
        NotConfined: Something of it went well, or what must work does not.
    """
    abi, tried = landlock_abi() if abi is None else abi, 0
    refused = {errno.EACCES, errno.EPERM}
    if abi < LEAST_ABI:  # what is out of reach is not there, or cannot be written
        refused |= {errno.ENOENT, errno.EROFS}
    for deed, attempt in _attempts(policy):
        try:
            attempt()
        except OSError as error:
            if error.errno not in refused:
                raise NotConfined(
                    f"{deed} failed for another reason: {error}"
                ) from error
            tried += 1
        else:
            raise NotConfined(f"it could {deed}")
    return tried


def _attempts(policy: Policy) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield deeds with a way to try each; none does harm if it goes well."""
    if policy.secret:
        yield f"read {policy.secret}", partial(_open, policy.secret, os.O_RDONLY)
    yield "write deltaspec's code", partial(_open, __file__, os.O_WRONLY)
    for folder in policy.write:
        beside = os.path.join(os.path.dirname(folder), f".probe-{os.getpid()}")
        yield "write beside its own folder", partial(_make, beside)
    for folder in ("/dev/shm", "/tmp", "/var/tmp"):
        if os.path.isdir(folder):
            made = f"{folder}/deltaspec-probe-{os.getpid()}"
            yield f"write to {folder}", partial(_make, made)
    for family in (socket.AF_INET, socket.AF_UNIX):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            deed = f"connect a socket ({family.name}, {kind.name})"
            yield deed, partial(_connect, family, kind)
    parent = os.getppid()
    yield "signal its parent", partial(os.kill, parent, 0)
    yield (
        "read its parent's environment",
        partial(_open, f"/proc/{parent}/environ", os.O_RDONLY),
    )
    yield "attach to its parent", partial(_called, "ptrace", 0x4206, parent, 0, 0)
    yield (
        "change its parent's limits",
        partial(resource.prlimit, parent, resource.RLIMIT_CORE, (0, 0)),
    )
    yield "change a file's mode", partial(os.chmod, "/dev/null", 0o666)
    yield "make a namespace", partial(_called, "unshare", 0x1000_0000)
    if not policy.starts:
        yield "start a process", _start


def _start() -> None:
    if os.fork() == 0:
        os._exit(0)
    os.wait()


def _open(path: str, flags: int) -> None:
    os.close(os.open(path, flags))


def _make(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    os.unlink(path)


def _connect(family: socket.AddressFamily, kind: socket.SocketKind) -> None:
    nobody = ("127.0.0.1", 9) if family == socket.AF_INET else "\0deltaspec-probe"
    with socket.socket(family, kind) as opened:
        opened.connect(nobody)


def _called(function: str, *arguments: int) -> None:
    if getattr(_libc, function)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main(arguments: Iterable[str]) -> None:
    """Confine this process as a trial would be; say how, or why that cannot be."""
    answer: dict[str, Any]
    try:
        with tempfile.TemporaryDirectory() as folder:
            policy = Policy(write=(folder,), secret=next(iter(arguments), ""))
            child = os.fork()  # so that the folder can be removed again
            if child == 0:
                enter(policy)
                answer = {"level": level(landlock_abi()), "tried": prove(policy)}
                print(json.dumps(answer), flush=True)
                os._exit(0)
            os.waitpid(child, 0)
    except (NotConfined, OSError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
