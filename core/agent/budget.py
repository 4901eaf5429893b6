"""What may be spent: checked before each call, by what it can cost at most."""

import contextlib
import threading
from collections.abc import Iterator

import attrs


class Spent(Exception):
    """The next call could cost more than is left.

    Args:
        usd: What it could cost.
        left_usd: What is left.
    """

    def __init__(self, usd: float, left_usd: float) -> None:
        super().__init__(
            f"the next call may cost ${usd:.3f}, and ${left_usd:.3f} of --usd are left"
        )


@attrs.define(eq=False)
class Budget:
    """US dollars, shared by all conversations.

    Attributes:
        usd: All that may be spent.
        spent_usd: What calls that have ended did cost.
    """

    usd: float
    spent_usd: float = 0.0
    _held_usd: float = 0.0
    _changed: threading.Condition = attrs.field(factory=threading.Condition)

    @contextlib.contextmanager
    def held(self, at_most_usd: float) -> Iterator[None]:
        """Keep back what a call costs at most, until it has ended.

        Waits for calls under way where what they leave may be enough.

        Raises:
            Spent: It is more than is left.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self.spent_usd + at_most_usd > self.usd
                    or self.spent_usd + self._held_usd + at_most_usd <= self.usd
                )
            )
            if self.spent_usd + at_most_usd > self.usd:
                raise Spent(at_most_usd, self.usd - self.spent_usd)
            self._held_usd += at_most_usd
        try:
            yield
        finally:
            with self._changed:
                self._held_usd -= at_most_usd
                self._changed.notify_all()

    def spend(self, usd: float) -> None:
        """Note what a call did cost."""
        with self._changed:
            self.spent_usd += usd
