"""Let Hypothesis look for an example that fails, and for the smallest such."""

import time
from collections.abc import Callable
from typing import TypeVar

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis.strategies import SearchStrategy

from core.training.gate.finding import Broken

Example = TypeVar("Example")


class _Failed(Exception):
    """An example fails; Hypothesis tries smaller ones."""


def search(
    strategy: SearchStrategy[Example],
    judged: Callable[[Example], str | None],
    *,
    check: str,
    seed: int,
    most: int,
    ends_at: float,
    shrink_seconds: float,
) -> None:
    """Try the simplest example, then others while there is time.

    Args:
        strategy: What an example is made of; hashable.
        judged: Returns what is wrong with an example, or None.
        check: Whose breach it is.
        seed: The same examples for the same seed.
        most: Examples that are tried.
        ends_at: On the monotonic clock; only the first example is tried after that.
        shrink_seconds: How long smaller examples are looked for.

    Raises:
        Broken: An example fails, and it is the smallest that was found.
    """
    failed: dict[Example, str] = {}
    tried = 0

    def verdict(example: Example) -> str | None:
        nonlocal ends_at, tried
        if example in failed:
            return failed[example]
        if tried and time.monotonic() >= ends_at:
            return None
        tried += 1
        message = judged(example)
        if message is not None:
            if not failed:
                ends_at = time.monotonic() + shrink_seconds
            failed[example] = message
        return message

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=most,
        database=None,
        deadline=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @hypothesis.given(strategy)
    def passes(example: Example) -> None:
        message = verdict(example)
        if message is not None:
            raise _Failed(message)

    try:
        passes()
    except _Failed as smallest:
        raise Broken(check, str(smallest)) from None
