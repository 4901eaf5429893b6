"""The trainer's main: rehearse, train for real, leave the weights.

Runs as ``python -m core.training.entry EVENTS_FD COMMANDS_FD SETTINGS``.
"""

import faulthandler
import gc
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
from core.training.run import NonFiniteLoss, Rehearsal, Run, Training, keyed

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


def crash_of(error: BaseException) -> str:
    """Return the kind of crash that *error* is."""
    text = str(error)
    if isinstance(error, NonFiniteLoss):
        return "nan"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "can't allocate memory" in text  # the CPU allocator raises a RuntimeError
    ):
        return "oom"
    return "exception"


def run_trainer(settings: dict[str, Any], events: int, commands: Reader) -> None:
    """Rehearse, wait for the clock, train, save."""
    torch.set_num_threads(settings["threads"])
    torch.set_float32_matmul_precision("high")
    device, seed = torch.device(settings["device"]), settings["seed"]
    rows = open_rows(Path(settings["training"]), settings["sequence_len"])
    module = load_module(Path("train.py"))
    trained(
        module,
        Rehearsal(
            device=device,
            seed=seed,
            steps=settings["rehearsal_steps"],
            sequence_len=settings["sequence_len"],
            vocab_size=settings["vocab_size"],
        ),
        seed,
    )
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    write(events, {"event": "ready"})
    go = commands.receive()
    if go is None:
        return
    run = Training(
        device=device,
        seed=seed,
        rows=rows,
        clock=CLOCKS[go["clock"]],
        began=go["began"],
        ends_at=go["ends_at"],
        report=lambda loss, tokens: write(
            events, {"event": "step", "loss_nats": loss, "tokens": tokens}
        ),
    )
    model = trained(module, run, seed)
    run.finish()
    write(events, {"event": "trained", "peak_mib": peak_mib(device)})
    safetensors.torch.save_model(model, settings["weights"])
    write(events, {"event": "saved"})


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
        text = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
        message = text.splitlines()[0][:500]
        write(events, {"event": "failed", "crash": crash_of(error), "message": message})
        sys.exit(1)


if __name__ == "__main__":
    guarded(
        run_trainer, json.loads(sys.argv[3]), int(sys.argv[1]), Reader(int(sys.argv[2]))
    )
