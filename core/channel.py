"""JSON lines over inherited pipes: all that the processes of a trial say to each other."""

import json
import os
from collections import deque
from typing import Any

import attrs

MAX_LINE_BYTES = 1 << 20  # a child that sends no newline must not fill our memory


class BadLine(Exception):
    """The other side sent something that is not one of our messages."""


def encode(message: dict[str, Any]) -> bytes:
    """Return *message* as one line."""
    return json.dumps(message, allow_nan=True).encode() + b"\n"


def write(fd: int, message: dict[str, Any]) -> None:
    """Write *message* whole, however little the pipe takes at a time."""
    rest = memoryview(encode(message))
    while rest:
        rest = rest[os.write(fd, rest) :]


@attrs.define
class Reader:
    """The reading end of a pipe, line by line.

    Attributes:
        fd: The file descriptor.
        ended: Nobody can write any more, and everything was read.
    """

    fd: int
    ended: bool = False
    _rest: bytes = b""
    _waiting: deque[dict[str, Any]] = attrs.field(factory=deque)

    def available(self) -> list[dict[str, Any]]:
        """Return the messages that one read completes; waits for at least one byte.

        Raises:
            BadLine: A line is not a JSON object, or has no end.
        """
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return []
        self.ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise BadLine(f"a line of more than {MAX_LINE_BYTES:,} bytes")
        return [_decoded(line) for line in lines]

    def receive(self) -> dict[str, Any] | None:
        """Return the next message, or None when the other side has gone."""
        while not self._waiting and not self.ended:
            self._waiting.extend(self.available())
        return self._waiting.popleft() if self._waiting else None


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:  # the latter of a million brackets
        raise BadLine(repr(line[:80])) from error
    if not isinstance(message, dict):
        raise BadLine(repr(line[:80]))
    return message
