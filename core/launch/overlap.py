"""One trial is scored while the trainer of the next one starts on the same device.

The servers of the next wait until the one before has left, and so does its clock.
"""

import threading

import attrs


class Unwanted(Exception):
    """The trial is not wanted any more; its clock has not started."""


@attrs.define(eq=False)
class Overlap:
    """Who else is on the device of a trial.

    The scheduler says so, and the thread of the trial asks.
    """

    _is_alone: threading.Event = attrs.field(factory=threading.Event)
    _is_unwanted: bool = False
    _is_followed: bool = False

    def __attrs_post_init__(self) -> None:
        self._is_alone.set()

    def hold(self) -> None:
        """Another trial is still scored there; `admit` or `dismiss` will follow."""
        self._is_alone.clear()

    def admit(self) -> None:
        """The one before has left."""
        self._is_alone.set()

    def dismiss(self) -> None:
        """The trial is not wanted any more, if its clock has not started yet."""
        self._is_unwanted = True
        self._is_alone.set()

    def follow(self) -> None:
        """Another trial starts while this one is scored."""
        self._is_followed = True

    def is_followed(self) -> bool:
        """Say whether another trial has started there since."""
        return self._is_followed

    def await_device(self) -> None:
        """Wait until no other trial is on the device.

        Raises:
            Unwanted: The trial is not wanted any more.
        """
        self._is_alone.wait()
        if self._is_unwanted:
            raise Unwanted
