"""Hand out training rows, batch by batch, from the process that keeps the clock.

A trainer never sees the training map: before its clock starts it has no data, and after
it has ended it gets no more.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Self

import attrs
import numpy as np

from core.memory import hand_out_view
from core.training.data import open_rows
from core.training.data.order import order


@attrs.define(eq=False)
class HandOut:
    """The batches of one trial.

    Attributes:
        rows: The training map, uint16 (N, T + 1).
        vocab_size: Tokens that there are.
    """

    rows: Sequence[np.ndarray]
    vocab_size: int
    _memory: np.ndarray
    _order: Iterator[int]
    _tokens: list[int] = attrs.field(factory=list)

    @classmethod
    def open(
        cls, training: Path, sequence_len: int, vocab_size: int, *, seed: int, fd: int
    ) -> Self:
        """Return the batches of the map *training*, in the order of *seed*.

        Args:
            training: Packed rows.
            sequence_len: T.
            vocab_size: Tokens that there are.
            seed: Keys the order.
            fd: Memory that the trainer shares, of which each batch takes the beginning.
        """
        rows = open_rows(training, sequence_len)
        memory = hand_out_view(fd, sequence_len)
        return cls(rows, vocab_size, memory, order(seed, len(rows)))

    def give(self, rows: int) -> bool:
        """Put the next *rows* where the trainer finds them; False if they do not fit."""
        if not 0 < rows <= len(self._memory):
            return False
        chosen = list(islice(self._order, rows))
        np.take(self.rows, chosen, axis=0, out=self._memory[:rows])
        before = self._tokens[-1] if self._tokens else 0
        self._tokens.append(before + rows * (self._memory.shape[1] - 1))
        return True

    def tokens_after(self, step: int) -> int | None:
        """Return how many tokens the first *step* batches had; None if there are fewer."""
        return self._tokens[step - 1] if step <= len(self._tokens) else None
