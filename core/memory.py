"""The memory that judge and server share: ids of a question, logits of its answer."""

import mmap
import os

import numpy as np


def allocate(rows: int, sequence_len: int, vocab_size: int) -> int:
    """Return a file descriptor of memory for one question and its answer."""
    fd = os.memfd_create("logits")
    os.ftruncate(fd, rows * sequence_len * (2 + 4 * vocab_size))
    return fd


def views(
    fd: int, rows: int, sequence_len: int, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return ids, uint16 (rows, T), and logits, float32 (rows, T, V), in that memory."""
    memory = mmap.mmap(fd, 0)
    ids = np.frombuffer(memory, np.uint16, rows * sequence_len)
    logits = np.frombuffer(
        memory, np.float32, rows * sequence_len * vocab_size, offset=ids.nbytes
    )
    return (
        ids.reshape(rows, sequence_len),
        logits.reshape(rows, sequence_len, vocab_size),
    )
