"""The trainer's main: rehearse, train for real, leave the weights.

It runs as a child of the zygote, inside the sandbox.  Until the clock starts it has no
training data at all; then it has the batches that it is handed out.
"""

import contextlib
import faulthandler
import gc
import os
import random
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch._dynamo.utils import counters

from core.channel import Reader, write
from core.memory import hand_out_rows, hand_out_view
from core.training.compiler import configure_compiler, prepare_compiler
from core.training.data.order import keyed
from core.training.module import load_module
from core.training.oom import (
    MEASURED_PARTS,
    MICRO_BATCH,
    OutOfMemory,
    shortage,
    smaller,
    what_fits,
)
from core.training.run import NonFiniteLoss, Rehearsal, Run, Training

WORKERS = "torch._inductor.async_compile"


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
    configure_compiler()
    torch.set_float32_matmul_precision("high")
    device = torch.device(settings["device"])
    if device.type == "cuda":
        prepare_compiler()
    return device


def is_given(device: torch.device, commands: Reader) -> bool:
    """Wait until the device is this trial's, and take it; False if it never will be.

    Nothing that was edited has run so far: it could have taken the device of another.
    """
    if commands.receive() is None:
        return False
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.synchronize(device)
    return True


def run_trainer(
    settings: dict[str, Any], events: int, commands: Reader, inherited: list[int]
) -> None:
    """Wait for the device, import, rehearse, train, save."""
    device, seed = settle(settings), settings["seed"]
    if not is_given(device, commands):
        return
    module = load_module(Path(settings["module"]))
    rehearse(module, settings, device)
    kept_mib = left_allocated(device)
    T = settings["sequence_len"]
    memory = hand_out_view(inherited[0], T)
    compiled: int | None = None

    def ask(rows: int) -> tuple[np.ndarray, float] | None:
        nonlocal compiled
        if not 0 < rows <= hand_out_rows(T):
            raise ValueError(
                f"run.batches({rows}): expected 1 to {hand_out_rows(T):,} rows"
            )
        if compiled is None:
            answer(commands, events, {"event": "ready", "kept_mib": kept_mib})
            compiled = compilations()
        said = answer(commands, events, {"event": "ask", "rows": rows})
        if "over" in said:
            return None
        return memory[:rows].copy(), said["progress"]

    run = Training(
        device=device,
        seed=seed,
        ask=ask,
        report=lambda loss: write(events, {"event": "step", "loss_nats": loss}),
    )
    model = trained(module, run, seed)
    run.finish()
    write(
        events,
        {
            "event": "trained",
            "peak_mib": peak_mib(device),
            "compilations": compilations() - (compiled or 0),
        },
    )
    safetensors.torch.save_model(model, settings["weights"])
    # Its clock is read while it waits, so that it has one.
    answer(commands, events, {"event": "saved"})
    leave()


def leave() -> NoReturn:
    """End this process: to take an interpreter with torch apart lasts longer.

    Of what it would do at its exit nothing is wanted but the end of compile workers; what
    an edit has registered for it does not happen.
    """
    if compiler := sys.modules.get(WORKERS):
        compiler.shutdown_compile_workers()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def answer(commands: Reader, events: int, message: dict[str, Any]) -> dict[str, Any]:
    """Say *message* to the parent and return its answer."""
    write(events, message)
    said = commands.receive()
    if said is None:
        raise BrokenPipeError  # nobody wants it any more
    return said


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
    release(device)
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
        release(device)
    fits = what_fits(
        rows=rows, micro_batch=micro_batch, peaks=peaks, free_bytes=free_bytes
    )
    raise OutOfMemory(f"{message}; {fits}")


def left_allocated(device: torch.device) -> float:
    """Return the MiB that somebody holds, and count the peak anew.

    The rest stays at hand: to ask the driver for it again takes a part of a second.
    """
    gc.collect()
    if device.type != "cuda":
        return 0.0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / 2**20


def release(device: torch.device) -> None:
    """Give back to the GPU what nobody holds."""
    left_allocated(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()


def compilations() -> int:
    """Return how many graphs torch.compile has compiled in this process."""
    return counters["stats"]["unique_graphs"]


def peak_mib(device: torch.device) -> float | None:
    """Return the most memory that a GPU gave us, in MiB; None on a CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) / 2**20


@contextlib.contextmanager
def guarded(settings: dict[str, Any], events: int) -> Iterator[None]:
    """Say on *events* why what is done here failed, with the traceback in the log."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    try:
        yield
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


def main(
    settings: dict[str, Any], events: int, commands: Reader, inherited: list[int]
) -> None:
    """Be the trainer of a trial."""
    with guarded(settings, events):
        run_trainer(settings, events, commands, inherited)
