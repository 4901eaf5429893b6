"""The last lines of a child's log, safe to print."""

import os
import stat
import unicodedata
from pathlib import Path

TAIL_LINES = 20
TAIL_BYTES = 16 * 1024
LINE_CHARACTERS = 300


def escaped(text: str) -> str:
    """Return *text* with control, format and bidi characters written out.

    A run's log is printed on a terminal and stored; neither should obey it.
    """
    return "".join(
        character
        if character == "\t"
        or unicodedata.category(character)[0] not in "CZ"
        or character == " "
        else character.encode("unicode_escape").decode()
        for character in text
    )


def tail(path: Path) -> tuple[str, ...]:
    """Return the last lines of *path*, escaped and cut; empty when there is no such file."""
    try:
        # A trial may have put anything in its log's place: a pipe that would make us
        # wait, or a link to what it must not read.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return ()
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            text = file.read().decode(errors="backslashreplace")
    except OSError:
        return ()
    lines = [escaped(line)[:LINE_CHARACTERS] for line in text.split("\n")]
    return tuple(line for line in lines if line.strip())[-TAIL_LINES:]
