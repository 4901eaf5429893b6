"""The host memory that judge and server share: ids of a question, logits of its answer."""

import mmap
import os

import numpy as np


def allocate(rows: int, sequence_len: int, logits_of: int) -> int:
    """Return a file descriptor of memory for one question and its answer.

    Args:
        rows: Of a question, at most.
        sequence_len: Tokens a row.
        logits_of: Logits a token; 0 where they stay on a GPU.
    """
    fd = os.memfd_create("logits")
    os.ftruncate(fd, rows * sequence_len * (2 + 4 * logits_of))
    return fd


def views(fd: int, rows: int, sequence_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ids, uint16 (rows, T), and logits, float32 (rows, T, logits_of), in it."""
    memory = mmap.mmap(fd, 0)
    ids = np.frombuffer(memory, np.uint16, rows * sequence_len)
    logits = np.frombuffer(memory, np.float32, offset=ids.nbytes)
    return (
        ids.reshape(rows, sequence_len),
        logits.reshape(rows, sequence_len, -1),
    )
