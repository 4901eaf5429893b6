"""The trainer's main: rehearse, train for real, leave the weights.

Runs as ``python -m core.training.entry EVENTS_FD COMMANDS_FD SETTINGS``.
"""

import contextlib
import faulthandler
import gc
import importlib
import json
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from core.channel import Reader, write
from core.training.data import open_rows
from core.training.module import load_module
from core.training.oom import (
    MEASURED_PARTS,
    MICRO_BATCH,
    OutOfMemory,
    shortage,
    smaller,
    what_fits,
)
from core.training.run import (
    Budget,
    NonFiniteLoss,
    Rehearsal,
    Run,
    Training,
    keyed,
)

# What torch.compile imports at its first call, which takes seconds.
COMPILER = ("torch._dynamo", "torch._inductor.compile_fx")
CLOCKS = {"wall": time.CLOCK_MONOTONIC, "cpu": time.CLOCK_PROCESS_CPUTIME_ID}


def reset_random_state(seed: int) -> None:
    """Seed the global generators, for edits that draw from them (dropout, say)."""
    random.seed(keyed(seed, "random"))
    np.random.seed(keyed(seed, "numpy") % 2**32)
    torch.manual_seed(keyed(seed, "torch"))


def trained(module: Any, run: Run, seed: int) -> nn.Module:
    """Call ``train(run)`` from a fresh random state; return its model."""
    reset_random_state(seed)
    model = module.train(run)
    if not isinstance(model, nn.Module):
        raise TypeError(f"train(run) returned {type(model).__name__}, not a model")
    return model


# A RuntimeError of the CPU's allocator, of the driver, and of cuBLAS.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def crash_of(error: BaseException) -> str:
    """Return the kind of crash that *error* is."""
    if isinstance(error, NonFiniteLoss):
        return "nan"
    is_known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if is_known or any(text in str(error) for text in OUT_OF_MEMORY):
        return "oom"
    return "exception"


def settle(settings: dict[str, Any]) -> torch.device:
    """Set what holds for the process, and return the device; nothing is on it yet."""
    torch.set_num_threads(settings["threads"])
    torch.set_float32_matmul_precision("high")
    return torch.device(settings["device"])


def run_trainer(settings: dict[str, Any], events: int, commands: Reader) -> None:
    """Import, wait for the device, rehearse, train, save."""
    device, seed = settle(settings), settings["seed"]
    rows = open_rows(Path(settings["training"]), settings["sequence_len"])
    module = load_module(Path("train.py"))
    if device.type == "cuda":
        for name in COMPILER:
            importlib.import_module(name)
    if commands.receive() is None:  # the device is free for us
        return
    rehearse(module, settings, device)
    kept_mib = released(device)
    compiled = 0

    def start() -> Budget:
        nonlocal compiled
        write(events, {"event": "ready", "kept_mib": kept_mib})
        go = commands.receive()
        if go is None:
            raise BrokenPipeError  # nobody wants it any more
        compiled = compilations()
        return Budget(
            clock=CLOCKS[go["clock"]], began=go["began"], ends_at=go["ends_at"]
        )

    run = Training(
        device=device,
        seed=seed,
        rows=rows,
        start=start,
        report=lambda loss, tokens: write(
            events, {"event": "step", "loss_nats": loss, "tokens": tokens}
        ),
    )
    model = trained(module, run, seed)
    run.finish()
    write(
        events,
        {
            "event": "trained",
            "peak_mib": peak_mib(device),
            "compilations": compilations() - compiled,
        },
    )
    safetensors.torch.save_model(model, settings["weights"])
    write(events, {"event": "saved"})


def rehearse(module: Any, settings: dict[str, Any], device: torch.device) -> None:
    """Train on random tokens, so that all is compiled; all of it is dropped again.

    Raises:
        OutOfMemory: It does not fit; the message says what would.
    """

    def rehearsed(steps: int) -> None:
        run = Rehearsal(
            device=device,
            seed=settings["seed"],
            steps=steps,
            sequence_len=settings["sequence_len"],
            vocab_size=settings["vocab_size"],
        )
        trained(module, run, settings["seed"])

    try:
        rehearsed(settings["rehearsal_steps"])
        return
    except torch.OutOfMemoryError as error:
        message = f"{shortage(error, device)}, in rehearsal"
    # Not in the handler: the traceback holds on to the tensors of every frame.
    released(device)
    micro_batch = getattr(module, MICRO_BATCH, None)
    if not isinstance(micro_batch, int) or micro_batch < 2:
        raise OutOfMemory(f"{message}; the module has no {MICRO_BATCH} to lower")
    free_bytes, _ = torch.cuda.mem_get_info(device)
    rows = module.TOTAL_BATCH_TOKENS // settings["sequence_len"]
    peaks: dict[int, int] = {}
    for part in MEASURED_PARTS:
        measured = module.MICRO_BATCH_ROWS = smaller(rows, micro_batch, part)
        try:
            rehearsed(steps=1)
        except torch.OutOfMemoryError:
            raise OutOfMemory(f"{message}; nor do {measured} rows fit") from None
        peaks[measured] = torch.cuda.max_memory_allocated(device)
        released(device)
    fits = what_fits(
        rows=rows, micro_batch=micro_batch, peaks=peaks, free_bytes=free_bytes
    )
    raise OutOfMemory(f"{message}; {fits}")


def released(device: torch.device) -> float:
    """Give back what nobody holds any more; return the MiB that stay allocated."""
    gc.collect()
    if device.type != "cuda":
        return 0.0
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / 2**20


def compilations() -> int:
    """Return how many graphs torch.compile has compiled in this process."""
    if "torch._dynamo" not in sys.modules:
        return 0
    return sys.modules["torch._dynamo"].utils.counters["stats"]["unique_graphs"]


def peak_mib(device: torch.device) -> float | None:
    """Return the most memory that a GPU gave us, in MiB; None on a CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) / 2**20


def guarded(main: Any, settings: dict[str, Any], events: int, commands: Reader) -> None:
    """Call *main*; say on *events* why it failed, with the traceback in the log."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    try:
        main(settings, events, commands)
    except BrokenPipeError:
        sys.exit(1)  # nobody listens any more
    except BaseException as error:  # SystemExit too: the parent must hear why
        traceback.print_exc()
        sys.stderr.flush()
        said = str(error).strip() or "no message"
        if isinstance(error, torch.OutOfMemoryError):  # torch's own text fills a page
            with contextlib.suppress(RuntimeError):  # a driver that answers no more
                said = shortage(error, torch.device(settings["device"]))
        text = f"{type(error).__name__}: {said}"
        message = text.splitlines()[0][:500]
        write(events, {"event": "failed", "crash": crash_of(error), "message": message})
        sys.exit(1)


if __name__ == "__main__":
    guarded(
        run_trainer, json.loads(sys.argv[3]), int(sys.argv[1]), Reader(int(sys.argv[2]))
    )
