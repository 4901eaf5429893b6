"""Documents packed into rows of T+1 tokens without padding, and the map on disk."""

from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from core.errors import DataError

PACKING_VERSION = 1  # part of the fingerprint: raise it when the rows would differ

# nanochat's. A larger buffer crops less, and holds more of the corpus in memory.
BUFFER_DOCUMENTS = 1000

BLOCK_BYTES = 2**22  # rows are written this many bytes at a time


def pieces(tokens: np.ndarray, *, bos: int, sequence_len: int) -> list[np.ndarray]:
    """Cut a document into ``[BOS] + tokens`` of at most T tokens each.

    So a document that is longer than a row fills rows of its own and is not lost.

    Args:
        tokens: The ids of one document, without BOS.
        bos: The id that begins each piece.
        sequence_len: T.

    Returns:
        Arrays of 2 to T+1 tokens, uint16.
    """
    head = np.array([bos], dtype=np.uint16)
    return [
        np.concatenate((head, tokens[start : start + sequence_len]))
        for start in range(0, len(tokens), sequence_len)
    ]


class Packer:
    """Exact best-fit packing of documents into rows that begin with BOS.

    Up to ``BUFFER_DOCUMENTS`` documents wait in a buffer. While the row has room, the
    longest of them that fits whole is placed next; when none fits, the shortest is
    cropped to fill the row exactly, and the rest of it is cut away. Of equally long
    ones the first in is taken. Before each choice the buffer is filled up; at the end
    of the stream it is emptied, and the last row is dropped unless it is full.

    Attributes:
        documents: Documents added.
        tokens: Their tokens, BOS included: in rows, cropped or unfinished.
        rows: Full rows handed on.
        cropped_tokens: Tokens cut away to fill rows.
        unfinished_tokens: Tokens of the last row that was not full.
    """

    def __init__(
        self,
        *,
        sequence_len: int,
        write: Callable[[np.ndarray], object],
        buffer_documents: int = BUFFER_DOCUMENTS,
    ) -> None:
        self.documents = self.tokens = self.rows = 0
        self.cropped_tokens = self.unfinished_tokens = 0
        self._width = sequence_len + 1
        self._write = write
        self._most = buffer_documents
        self._buffered = 0
        self._by_length = [deque() for _ in range(self._width + 1)]
        self._lengths = 0  # bit n is set where a document of n tokens is buffered
        self._block = np.empty(
            (max(1, BLOCK_BYTES // (2 * self._width)), self._width), dtype=np.uint16
        )
        self._row = 0
        self._filled = 0  # tokens in the row

    def add(self, document: np.ndarray) -> None:
        """Take one document, BOS first, of at most T+1 tokens."""
        length = len(document)
        assert 0 < length <= self._width, length
        self.documents += 1
        self.tokens += length
        self._by_length[length].append(document)
        self._lengths |= 1 << length
        self._buffered += 1
        if self._buffered == self._most:
            self._place()

    def finish(self) -> None:
        """Empty the buffer and hand on the last full rows."""
        while self._buffered:
            self._place()
        self.unfinished_tokens, self._filled = self._filled, 0
        if self._row:
            self._write(self._block[: self._row])
            self._row = 0

    def _place(self) -> None:
        """Move one document of the buffer into the row."""
        room = self._width - self._filled
        fitting = self._lengths & ((2 << room) - 1)
        if fitting:
            length = fitting.bit_length() - 1
        else:
            length = (self._lengths & -self._lengths).bit_length() - 1
        waiting = self._by_length[length]
        document = waiting.popleft()
        self._buffered -= 1
        if not waiting:
            self._lengths ^= 1 << length

        placed = min(length, room)
        end = self._filled + placed
        self._block[self._row, self._filled : end] = document[:placed]
        self.cropped_tokens += length - placed
        self._filled = end
        if end == self._width:
            self._filled = 0
            self._row += 1
            self.rows += 1
            if self._row == len(self._block):
                self._write(self._block)
                self._row = 0


def open_rows(path: Path, sequence_len: int) -> np.memmap:
    """Map packed rows from disk, read-only.

    Args:
        path: A map that ``prepare`` wrote.
        sequence_len: T, the one that it was written with.

    Returns:
        Shape (rows, T+1), uint16.

    Raises:
        DataError: The file is missing, or doesn't hold whole rows of that length.
    """
    width = sequence_len + 1
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(
            f"{path} cannot be opened: {error.strerror}.",
            hint="prepare the data again.",
        ) from error
    if size == 0 or size % (2 * width):
        raise DataError(
            f"{path} has {size:,} bytes, which are not whole rows of {width} tokens of"
            " 2 bytes.",
            hint="open it with the sequence_len that it was prepared with, or prepare"
            " the data again.",
        )
    return np.memmap(path, dtype="<u2", mode="r", shape=(size // (2 * width), width))
