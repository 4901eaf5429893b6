"""Time the preparation of a corpus, stage by stage.

    python benchmarks/prepare.py [--data PATH] [--vocab-size V] [--sequence-len T]

PATH is whatever a session's --data takes. It is prepared in a cache of its own, which is
removed. ``cpu`` is the CPU time of all threads, ``serial`` that of the one thread that
the others work for: however many cores there are, a stage takes at least so long.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

from core.gates import configuration
from core.training.data import open_source, prepare

MODULE = Path(__file__).resolve().parents[1] / "core/training/train.py"


class Stages:
    """The seconds of each stage, by what the preparation says of its progress."""

    def __init__(self) -> None:
        self.name = ""
        self.seconds: dict[str, list[float]] = {}
        self._last = self._now()

    def __call__(self, name: str, share: float) -> None:
        """Add what has passed to the stage before, where another one begins."""
        if name != self.name:
            self.finish()
            self.name = name

    def finish(self) -> None:
        """Add what has passed to the present stage."""
        now = self._now()
        if self.name:
            sums = self.seconds.setdefault(self.name, [0.0, 0.0, 0.0])
            for index, (after, before) in enumerate(zip(now, self._last, strict=True)):
                sums[index] += after - before
        self._last = now

    @staticmethod
    def _now() -> tuple[float, float, float]:
        return time.monotonic(), time.process_time(), time.thread_time()


def main() -> None:
    """Print a line for each stage, then what was made."""
    sizes = configuration(MODULE.read_text())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="stdlib")
    parser.add_argument("--vocab-size", type=int, default=sizes["VOCAB_SIZE"])
    parser.add_argument("--sequence-len", type=int, default=sizes["SEQUENCE_LEN"])
    arguments = parser.parse_args()
    stages = Stages()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as cache:
        prepared = prepare(
            open_source(arguments.data),
            vocab_size=arguments.vocab_size,
            sequence_len=arguments.sequence_len,
            cache=Path(cache),
            progress=stages,
        )
        stages.finish()
        seconds = time.monotonic() - began
    print(f"{'stage':30} {'seconds':>8} {'cpu':>8} {'serial':>8}")
    for name, (wall, cpu, serial) in stages.seconds.items():
        print(f"{name:30} {wall:8.1f} {cpu:8.1f} {serial:8.1f}")
    splits = [prepared.counts[split] for split in ("training", "validation")]
    tokens = sum(split["tokens"] - split["pieces"] for split in splits)
    corpus_bytes = sum(split["bytes"] for split in splits)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{seconds:.1f} s in all on {len(os.sched_getaffinity(0))} cores, peak"
        f" {peak_mib:,.0f} MiB\n"
        f"{corpus_bytes / 1e6:,.0f} MB of text, {tokens:,} tokens without BOS,"
        f" {corpus_bytes / tokens:.3f} bytes per token\n"
        f"fingerprint {prepared.fingerprint}"
    )


if __name__ == "__main__":
    main()
