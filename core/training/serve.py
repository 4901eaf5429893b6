"""The server's main: a fresh copy of the model that answers the judge with logits.

Runs as ``python -m core.training.serve EVENTS_FD COMMANDS_FD SETTINGS ASKS ANSWERS
MEMORY``.  It never sees a target or a byte count: the ids of one question lie in host
memory, the logits of its answer go behind them, or into memory of the judge on the GPU.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from core.channel import Reader, write
from core.memory import views
from core.training.entry import guarded, released, settle, trained
from core.training.module import load_module
from core.training.run import Run


class NonFiniteWeights(ArithmeticError):
    """A trained weight is not a finite number."""


def run_server(settings: dict[str, Any], events: int, commands: Reader) -> None:
    """Build the architecture, load the weights, answer until nobody asks."""
    device, seed = settle(settings), settings["seed"]
    module = load_module(Path("train.py"))
    if commands.receive() is None:  # the device is free for us
        return
    model = trained(module, Run(device=device, seed=seed), seed)
    if device.type == "cuda":
        warm_up(model, settings["sequence_len"], device)
    write(events, {"event": "ready"})
    if commands.receive() is None:
        return
    load_weights(model, settings["weights"], device)
    model.eval()
    write(events, {"event": "serving"})
    asks, answers, memory_fd = (int(fd) for fd in sys.argv[4:7])
    answer(model, settings, Reader(asks), answers, memory_fd, device)


@torch.no_grad()
def warm_up(model: nn.Module, sequence_len: int, device: torch.device) -> None:
    """Answer for one row, so that kernels are loaded before anybody waits for them.

    For more, the trainer that rehearses meanwhile would lack the memory.
    """
    model.eval()
    model(torch.zeros((1, sequence_len), dtype=torch.int64, device=device))
    released(device)


def load_weights(model: nn.Module, path: str, device: torch.device) -> None:
    """Load the safetensors file *path* into *model*; every name must fit."""
    safetensors.torch.load_model(model, path, device=str(device))
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            raise NonFiniteWeights(f"the weight {name} is not finite")


@torch.no_grad()
def answer(
    model: nn.Module,
    settings: dict[str, Any],
    asks: Reader,
    answers: int,
    memory_fd: int,
    device: torch.device,
) -> None:
    """Answer questions: ids (B, T) in host memory, logits (B, T, V) where they are read."""
    T, V = settings["sequence_len"], settings["vocab_size"]
    ids, in_memory = views(memory_fd, settings["scored_rows"], T)
    logits = torch.from_numpy(in_memory) if device.type == "cpu" else None
    while (question := asks.receive()) is not None:
        B = question["rows"]
        if logits is None:
            shape = (settings["scored_rows"], T, V)
            logits = shared_logits(question["logits"], shape)
        x = torch.from_numpy(ids[:B].astype(np.int64)).to(device)  # (B, T)
        y = model(x)  # (B, T, V)
        if y.shape != (B, T, V):
            raise ValueError(
                f"the model maps ids of shape {(B, T)} to logits of shape "
                f"{tuple(y.shape)}: expected {(B, T, V)}"
            )
        logits[:B].copy_(y)  # float32, whatever y is
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # it is read as soon as we say so
        write(answers, {"rows": B})


def shared_logits(handle: str, shape: tuple[int, ...]) -> Tensor:
    """Return the judge's memory, float32 of *shape*, by its handle."""
    # Optional: a torch without CUDA comes without its bindings.
    from core.device_memory import opened

    return opened(handle, shape)


if __name__ == "__main__":
    guarded(
        run_server, json.loads(sys.argv[3]), int(sys.argv[1]), Reader(int(sys.argv[2]))
    )
