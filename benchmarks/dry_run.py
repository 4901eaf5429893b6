"""Time `pytest specs/ --collect-only` against an empty session, cold and warm.

    python benchmarks/dry_run.py [REPEATS]

Prints seconds (median of the repeats, taken in turn) and what a dry run adds to a
pytest session that collects nothing.  Cold means: no mutant is in the cache.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def seconds(*arguments: str, cache: str) -> float:
    """Return the wall-clock time of one pytest session."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": cache},
        capture_output=True,
        text=True,
        check=False,
    )
    took = time.perf_counter() - began
    if done.returncode not in (0, 5):  # 5: nothing was collected
        raise SystemExit(f"{done.stdout}\n{done.stderr}")
    return took


def main() -> None:
    """Time the three kinds of session in turn."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    times: dict[str, list[float]] = {"empty": [], "cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as empty:
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as cache:
                times["empty"].append(seconds(empty, cache=cache))
                times["cold"].append(seconds("specs", cache=cache))
                times["warm"].append(seconds("specs", cache=cache))
    base = statistics.median(times["empty"])
    print(f"{'session':<8}{'seconds':>9}{'beyond empty':>14}{'x empty':>9}")
    for name, values in times.items():
        took = statistics.median(values)
        print(f"{name:<8}{took:>9.2f}{took - base:>14.2f}{took / base:>9.1f}")


if __name__ == "__main__":
    main()
