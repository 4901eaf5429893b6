"""A session of pytest as a child process, and the document that it leaves behind."""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.report.outcome import document, failure

PR_SET_PDEATHSIG = 1


def command(
    specs: Sequence[str],
    options: Sequence[str],
    *,
    is_dry: bool,
    document: Path | None = None,
) -> list[str]:
    """Return how pytest is called.

    Args:
        specs: Spec files, folders or pytest ids.
        options: pytest's.
        is_dry: Nothing is trained.
        document: Where it leaves its document, if anywhere.
    """
    return [
        *(sys.executable, "-u", "-m", "pytest"),
        *(["--collect-only"] if is_dry else []),
        *specs,
        *options,
        *([] if document is None else [f"--json={document}"]),
    ]


def started(
    command: Sequence[str], *, cwd: Path | None, output: Any
) -> "subprocess.Popen[bytes]":
    """Start pytest so that only we interrupt it, and so that our end does, too.

    Args:
        command: As `command` has it.
        cwd: Where; None for here.
        output: A file, for all that it prints.

    Raises:
        OSError: It cannot be started there.
    """
    libc, parent = ctypes.CDLL(None), os.getpid()

    def begin() -> None:
        # A shell that starts us in the background has told us to ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
        if os.getppid() != parent:  # gone before that
            os._exit(0)

    return subprocess.Popen(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        process_group=0,
        preexec_fn=begin,
    )


def exit_code(child: "subprocess.Popen[bytes]") -> int:
    """Return how a child ended, as a shell has it: 128 and the signal if it was killed."""
    code = child.wait()
    return code if code >= 0 else 128 - code


def read_document(path: Path, *, command: str, exit_code: int) -> dict[str, Any]:
    """Return the document of a session that has ended; one is made up if it has none.

    Args:
        path: Where pytest was told to leave it.
        command: What to say that it was.
        exit_code: How it ended.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        said = failure(
            "NoDocument",
            f"pytest ended with exit code {exit_code} and left no document.",
            hint="read what it printed.",
        )
        return document(command=command, exit_code=exit_code, error=said)
