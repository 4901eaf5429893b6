"""Let the clock that the process reads go at a quarter of its speed.

caught by: static, harmless
says:
  static: it imports time
  harmless: no better
"""

import time

SLOWED = 4
HONEST_GETTIME = time.clock_gettime
FIRST: dict[int, float] = {}  # what each clock showed when it was first read


def slow_gettime(clock: int) -> float:
    now = HONEST_GETTIME(clock)
    first = FIRST.setdefault(clock, now)
    return first + (now - first) / SLOWED


time.clock_gettime = slow_gettime
time.monotonic = lambda: slow_gettime(time.CLOCK_MONOTONIC)
time.perf_counter = lambda: slow_gettime(time.CLOCK_MONOTONIC)
time.time = lambda: slow_gettime(time.CLOCK_REALTIME)
