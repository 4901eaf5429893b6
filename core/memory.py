"""The host memory that two processes of a trial share: rows, questions, answers."""

import fcntl
import mmap
import os

import numpy as np

HAND_OUT_TOKENS = 2**24  # of one batch, at most; pages that nobody touches cost nothing


def allocate(size: int) -> int:
    """Return a file descriptor of *size* bytes of memory, which keep that size."""
    fd = os.memfd_create("deltaspec", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    # Whoever shares it could otherwise take it away under our feet: that is a SIGBUS.
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def hand_out_rows(sequence_len: int) -> int:
    """Return how many rows a batch may have."""
    return max(1, HAND_OUT_TOKENS // (sequence_len + 1))


def hand_out_bytes(sequence_len: int) -> int:
    """Return the bytes of the largest batch."""
    return 2 * hand_out_rows(sequence_len) * (sequence_len + 1)


def hand_out_view(fd: int, sequence_len: int) -> np.ndarray:
    """Return the rows of a batch, uint16 (rows, T + 1), in the memory *fd*."""
    rows = np.frombuffer(mmap.mmap(fd, 0), np.uint16)
    return rows.reshape(-1, sequence_len + 1)


def question_bytes(rows: int, sequence_len: int, logits_of: int) -> int:
    """Return the bytes of a question and its answer.

    Args:
        rows: Of a question.
        sequence_len: Tokens a row.
        logits_of: Logits a token; 0 where they stay on a GPU.
    """
    return rows * sequence_len * (2 + 4 * logits_of)


def question_views(
    fd: int, rows: int, sequence_len: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return ids, uint16 (rows, T), and logits, float32 (rows, T, logits_of), in it."""
    memory = mmap.mmap(fd, 0)
    ids = np.frombuffer(memory, np.uint16, rows * sequence_len)
    logits = np.frombuffer(memory, np.float32, offset=ids.nbytes)
    return (
        ids.reshape(rows, sequence_len),
        logits.reshape(rows, sequence_len, -1),
    )
