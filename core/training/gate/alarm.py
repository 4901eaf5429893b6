"""Stop what does not end, where a signal can reach it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType

from core.training.gate.finding import Broken


def ring(seconds: float) -> None:
    """Let the alarm go off in so many seconds of CPU time; zero silences it.

    Not of the clock: a busy machine makes nobody slow then.  A signal reaches a loop of
    Python that asks for nothing; only the main thread gets it.  Elsewhere, and for who only
    waits, the caller's time limit has to do.
    """
    if threading.current_thread() is threading.main_thread():
        signal.setitimer(signal.ITIMER_PROF, seconds)


@contextmanager
def alarm(
    module: ModuleType, check: str, message: Callable[[str], str]
) -> Iterator[None]:
    """Turn an alarm into a breach of *check* while the block runs.

    Args:
        module: Whose line is named.
        check: Whose breach it is.
        message: Given the line, as `` in line 7 of the mutated module`` or nothing.
    """

    def goes_off(number: int, frame: FrameType | None) -> None:
        raise Broken(check, message(_line(frame, module)))

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGPROF, goes_off)
    try:
        yield
    finally:
        ring(0)
        signal.signal(signal.SIGPROF, before)


def _line(frame: FrameType | None, module: ModuleType) -> str:
    while frame is not None:
        if frame.f_code.co_filename == module.__file__:
            return f" in line {frame.f_lineno} of the mutated module"
        frame = frame.f_back
    return ""
