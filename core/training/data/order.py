"""Everything random, keyed by the seed and a name; here, the order of training rows."""

import hashlib
from collections.abc import Iterator

import numpy as np


def keyed(seed: int, name: str) -> int:
    """Return a 63-bit seed for the random numbers called *name*."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def order(seed: int, rows: int) -> Iterator[int]:
    """Yield row numbers for ever, each epoch of all *rows* in an order of its own."""
    epoch = 0
    while True:
        key = keyed(seed, f"order of epoch {epoch}")
        yield from np.random.default_rng(key).permutation(rows).tolist()
        epoch += 1
