"""Time a step, and what comes before the first one: of this tree and another, in turns.

    python benchmarks/step.py [--against CHECKOUT] [--rounds 3] [--steps 40]
        [--kernels 20] [--device cuda]

Each round starts a process for each tree that does what a trainer does up to its clock,
on random tokens and without a sandbox.  In its first round a tree finds nothing compiled,
later it finds what it left.  With --kernels it also prints where a step goes.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
UNEVEN_STEPS = 2  # at the start of a run, that count for nothing
PROFILED_STEPS = 3
AHEAD = "settle_seconds", "ahead of the device"
WARM = (
    ("context_seconds", "  the device"),
    ("module_seconds", "  the module"),
    ("first_seconds", "  model and first step"),
    ("again_seconds", "  model and first step again"),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=3, help="two or more; 3")
    parser.add_argument("--steps", type=int, default=40, help="a round; 40")
    parser.add_argument("--kernels", type=int, default=0, help="how many to show")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--module", default="core/training/train.py", help="in a tree")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.rounds < 2:
        parser.error(f"--rounds {asked.rounds}: expected 2 or more, the first is cold")
    if asked.steps < UNEVEN_STEPS + 2:
        parser.error(
            f"--steps {asked.steps}: expected {UNEVEN_STEPS + 2} or more, of which "
            f"the first {UNEVEN_STEPS} count for nothing"
        )
    if asked.child:
        print(json.dumps(measured(asked)))
        return
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA GPU is seen here: name another device, --device cpu")
    trees = {"this": ROOT}
    if asked.against is not None:
        trees["other"] = asked.against.resolve()
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory(prefix="deltaspec-") as folder:
        for number in range(1, asked.rounds + 1):
            for name, tree in trees.items():
                found = started(tree, Path(folder, name))
                rounds[name].append(found)
                print(
                    f"round {number}, {name}: "
                    f"{1e3 * statistics.median(found['step_seconds']):.1f} ms a step, "
                    f"{_total(found):.1f} s up to the first",
                    file=sys.stderr,
                )
    show(rounds, asked.steps)


def started(tree: Path, caches: Path) -> dict[str, Any]:
    """Return what a process measured that imports from *tree*."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", *sys.argv[1:]],
        cwd=tree,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                filter(None, (str(tree), os.environ.get("PYTHONPATH")))
            ),
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
            "TRITON_CACHE_DIR": str(caches / "triton"),
        },
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(
            f"no step of {tree} was measured, for the reason above: it takes a trainer "
            "of deltaspec (settle, trained) and a module with train(run)"
        )
    return json.loads(done.stdout.splitlines()[-1])


def measured(asked: argparse.Namespace) -> dict[str, Any]:
    """Do what a trainer does, and return how long each part of it took."""
    from core.training.entry import settle, trained
    from core.training.module import load_module

    watch = Stopwatch()
    device = settle({"threads": torch.get_num_threads(), "device": asked.device})
    found: dict[str, Any] = {"settle_seconds": watch.lap()}
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.synchronize(device)
    found["context_seconds"] = watch.lap()
    module = load_module(Path(asked.module).absolute())
    found["module_seconds"] = watch.lap()
    for name in ("first_seconds", "again_seconds"):
        trained(module, steps_of(module, device, 1), 0)
        _synchronize(device)
        found[name] = watch.lap()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    run = steps_of(module, device, asked.steps)
    trained(module, run, 0)
    _synchronize(device)
    found |= {
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else "a CPU",
        "torch": torch.__version__,
        "step_seconds": run.seconds()[UNEVEN_STEPS:],
        "tokens": module.TOTAL_BATCH_TOKENS,
        "loss_nats": float(run.loss),
        "peak_mib": torch.cuda.max_memory_allocated(device) / 2**20
        if device.type == "cuda"
        else None,
    }
    if asked.kernels:
        found["kernels"] = kernels(module, device)[: asked.kernels]
    return found


class Stopwatch:
    """Tells the seconds since it was asked last."""

    def __init__(self) -> None:
        self.since = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        since, self.since = self.since, time.perf_counter()
        return self.since - since


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def steps_of(
    module: Any,
    device: torch.device,
    steps: int,
    around: contextlib.AbstractContextManager[Any] | None = None,
) -> Any:
    """Return a run of so many steps on random tokens, which knows when each began.

    Args:
        module: The training module.
        device: Where it trains.
        steps: How many.
        around: Entered before the first step, and left after the last one.
    """
    from core.training.run import Run

    class Steps(Run):
        def batches(self, rows: int) -> Iterator[torch.Tensor]:
            generator = torch.Generator(device).manual_seed(0)
            shape = (rows, module.SEQUENCE_LEN + 1)
            self.marks: list[Any] = []
            _synchronize(device)
            with around or contextlib.nullcontext():
                for step in range(steps):
                    self.progress = step / steps
                    ids = torch.randint(
                        module.VOCAB_SIZE, shape, generator=generator, device=device
                    )
                    self.mark()
                    yield ids
                self.mark()
                _synchronize(device)

        def mark(self) -> None:
            if device.type == "cuda":
                event = torch.cuda.Event(enable_timing=True)
                event.record()
                self.marks.append(event)
            else:
                self.marks.append(time.perf_counter())

        def seconds(self) -> list[float]:
            pairs = zip(self.marks, self.marks[1:], strict=False)
            if device.type == "cuda":
                return [begun.elapsed_time(ended) / 1e3 for begun, ended in pairs]
            return [ended - begun for begun, ended in pairs]

        def log(self, loss: torch.Tensor) -> None:
            self.loss = loss

    return Steps(device=device, seed=0)


def kernels(module: Any, device: torch.device) -> list[tuple[float, float, str]]:
    """Return milliseconds a step, calls a step and name of each kernel, longest first."""
    from torch.profiler import ProfilerActivity, profile

    from core.training.entry import trained

    of_device = device.type == "cuda"
    activity = ProfilerActivity.CUDA if of_device else ProfilerActivity.CPU
    profiled = profile(activities=[activity], acc_events=True)
    trained(module, steps_of(module, device, PROFILED_STEPS, profiled), 0)
    spent = "self_device_time_total" if of_device else "self_cpu_time_total"
    return sorted(
        (
            (
                getattr(event, spent) / 1e3 / PROFILED_STEPS,
                event.count / PROFILED_STEPS,
                event.key,
            )
            for event in profiled.key_averages()
        ),
        reverse=True,
    )


def show(rounds: dict[str, list[dict[str, Any]]], steps: int) -> None:
    """Print medians of each tree, and how this one compares."""
    one = rounds["this"][0]
    print(
        f"{one['device']}, torch {one['torch']}, {len(rounds['this'])} rounds", end=""
    )
    print(f" of {steps} steps{' in turns' * ('other' in rounds)}\n")
    columns = "".join(f"{name:>14}" for name in rounds)
    print(f"{'':<36}{columns}{'ratio' if 'other' in rounds else '':>8}")
    steps_ms = {
        name: [1e3 * statistics.median(found["step_seconds"]) for found in of_tree]
        for name, of_tree in rounds.items()
    }
    medians = {name: statistics.median(ms) for name, ms in steps_ms.items()}
    _row("ms a step", medians, ".1f")
    _row("  fastest round", {name: min(ms) for name, ms in steps_ms.items()}, ".1f")
    _row("  slowest round", {name: max(ms) for name, ms in steps_ms.items()}, ".1f")
    _row(
        "tokens a second",
        {name: 1e3 * rounds[name][0]["tokens"] / ms for name, ms in medians.items()},
        ",.0f",
    )
    for text, field, form in (
        ("peak MiB", "peak_mib", ",.0f"),
        ("nats at the last step", "loss_nats", ".4f"),
    ):
        if one[field] is not None:
            _row(text, {name: found[-1][field] for name, found in rounds.items()}, form)
    print("\nseconds")
    _row(
        "nothing compiled",
        {name: _total(found[0]) for name, found in rounds.items()},
        ".1f",
    )
    _row(
        "all compiled",
        {
            name: statistics.median(map(_total, found[1:]))
            for name, found in rounds.items()
        },
        ".1f",
    )
    for field, text in (*WARM, AHEAD):
        _row(
            text,
            {
                name: statistics.median(each[field] for each in found[1:])
                for name, found in rounds.items()
            },
            ".2f",
        )
    for name, found in rounds.items():
        if found[-1].get("kernels"):
            print(f"\n{name}: ms a step, calls, kernel")
            for ms, calls, kernel in found[-1]["kernels"]:
                print(f"{ms:>8.2f}{calls:>7.1f}  {kernel[:63]}")


def _total(found: dict[str, Any]) -> float:
    """Return what lies between being given the device and a model that trains."""
    return sum(found[field] for field, _ in WARM)


def _row(text: str, values: dict[str, float], form: str) -> None:
    shown = "".join(f"{value:>14{form}}" for value in values.values())
    ratio = f"{values['this'] / values['other']:.3f}" if "other" in values else ""
    print(f"{text:<36}{shown}{ratio:>8}")


if __name__ == "__main__":
    main()
