"""The server's main: a fresh copy of the model that answers the judge with logits.

Two of them serve a trial: one is scored and the other audits it, and neither can tell
which it is.  It never sees a target or a byte count: the ids of a question lie in host
memory, the logits of its answer go behind them, or into memory of the judge on the GPU.
"""

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from core.channel import Reader, write
from core.memory import question_views
from core.training.entry import guarded, is_given, release, settle, trained
from core.training.module import load_module
from core.training.run import Run


class NonFiniteWeights(ArithmeticError):
    """A trained weight is not a finite number."""


def run_server(
    settings: dict[str, Any], events: int, commands: Reader, inherited: list[int]
) -> None:
    """Build the architecture, load the weights, answer until nobody asks."""
    device, seed = settle(settings), settings["seed"]
    if not is_given(device, commands):
        return
    module = load_module(Path(settings["module"]))
    model = trained(module, Run(device=device, seed=seed), seed)
    model.eval()
    fill = torch.compile(filled, dynamic=False) if device.type == "cuda" else filled
    if device.type == "cuda":
        warm_up(fill, model, settings, device)
    write(events, {"event": "ready"})
    if commands.receive() is None:
        return
    load_weights(model, settings["weights"], device)
    model.eval()
    write(events, {"event": "serving"})
    asks, answers, memory_fd = inherited
    answer(fill, model, settings, Reader(asks), answers, memory_fd, device)


def filled(logits: Tensor, model: nn.Module, ids: Tensor) -> None:
    """Put the model's answer (B, T, V) to *ids* (B, T) into float32 *logits*.

    Raises:
        ValueError: It has another shape.
    """
    answered = model(ids)
    if answered.shape != logits.shape:
        raise ValueError(
            f"the model maps ids of shape {tuple(ids.shape)} to logits of shape "
            f"{tuple(answered.shape)}: expected {tuple(logits.shape)}"
        )
    logits.copy_(answered)


@torch.no_grad()
def warm_up(
    fill: Any, model: nn.Module, settings: dict[str, Any], device: torch.device
) -> None:
    """Answer once, so that all is compiled before anybody waits for it."""
    B, T, V = settings["scored_rows"], settings["sequence_len"], settings["vocab_size"]
    ids = torch.zeros((B, T), dtype=torch.int64, device=device)
    fill(torch.empty((B, T, V), device=device), model, ids)
    del ids
    release(device)


def load_weights(model: nn.Module, path: str, device: torch.device) -> None:
    """Load the safetensors file *path* into *model*; every name must fit."""
    safetensors.torch.load_model(model, path, device=str(device))
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            raise NonFiniteWeights(f"the weight {name} is not finite")


@torch.no_grad()
def answer(
    fill: Any,
    model: nn.Module,
    settings: dict[str, Any],
    asks: Reader,
    answers: int,
    memory_fd: int,
    device: torch.device,
) -> None:
    """Answer questions: ids (B, T) in host memory, logits (B, T, V) where they are read."""
    B, T, V = settings["scored_rows"], settings["sequence_len"], settings["vocab_size"]
    ids, in_memory = question_views(memory_fd, B, T)
    shared: dict[str, Tensor] = {}
    while (question := asks.receive()) is not None:
        if device.type == "cpu":
            logits = torch.from_numpy(in_memory)
        else:
            handle = question["logits"]
            if handle not in shared:
                shared[handle] = shared_logits(handle, (B, T, V))
            logits = shared[handle]
        x = torch.from_numpy(ids.astype(np.int64)).to(device)  # (B, T)
        fill(logits, model, x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # it is read as soon as we say so
        write(answers, {})


def shared_logits(handle: str, shape: tuple[int, ...]) -> Tensor:
    """Return the judge's memory, float32 of *shape*, by its handle."""
    # Optional: a torch without CUDA comes without its bindings.
    from core.device_memory import opened

    return opened(handle, shape)


def main(
    settings: dict[str, Any], events: int, commands: Reader, inherited: list[int]
) -> None:
    """Be a server of a trial."""
    with guarded(settings, events):
        run_server(settings, events, commands, inherited)
