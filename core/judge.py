"""A trained model -> val_bpb, from logits, out of the mutant's reach.

Runs as ``python -m core.judge EVENTS_FD COMMANDS_FD SETTINGS ASKS ANSWERS MEMORY`` and
runs our own code alone.  It owns the validation rows and the byte table; the server gets
token ids and gives logits.  The probes that look for a leak of the future belong here.

    val_bpb = Σ nats / (ln 2 · Σ bytes)
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.channel import Reader, write
from core.memory import views
from core.training.data import open_rows
from core.training.entry import guarded
from core.training.tokenizer import Tokenizer

CHUNK_LOGITS = 2**26  # normalised at a time, in float32: 256 MiB


def count(
    logits: Tensor, targets: Tensor, token_bytes: Tensor
) -> tuple[float, int, int]:
    """Return nats, bytes and tokens of one answer.

    Special tokens have no bytes and count for nothing.  The loss of a token is that of
    the full softmax in float32, on a CPU and on a GPU.

    Args:
        logits: Shape (B, T, V), float32.
        targets: Shape (B, T), int64.
        token_bytes: Shape (V,), int64, bytes of each token itself; 0 for special tokens.
    """
    nats = torch.zeros((), dtype=torch.float64, device=logits.device)
    bytes_, tokens = torch.zeros((2,), dtype=torch.int64, device=logits.device)
    at_once = max(1, CHUNK_LOGITS // logits.size(2))
    for answered, asked in zip(
        logits.flatten(0, 1).split(at_once),
        targets.flatten().split(at_once),
        strict=True,
    ):
        # A copy: the server can write into what is shared while we normalise.
        losses = F.cross_entropy(answered.clone(), asked, reduction="none")  # (N,) nats
        counted = token_bytes[asked]  # (N,) bytes
        nats += losses.double()[counted > 0].sum()
        bytes_ += counted.sum()
        tokens += (counted > 0).sum()
    return nats.item(), int(bytes_), int(tokens)


def score(settings: dict[str, Any], events: int, asks: int, answers: Reader) -> None:
    """Ask for the logits of every scored row; say the sums on *events*."""
    B, T, V = settings["scored_rows"], settings["sequence_len"], settings["vocab_size"]
    device = torch.device(settings["device"])
    rows = open_rows(Path(settings["validation"]), T)  # (N, T + 1)
    rows = rows[: max(1, settings["scored_tokens"] // T)]
    tokenizer = Tokenizer.load(Path(settings["tokenizer"]))
    token_bytes = torch.from_numpy(tokenizer.token_bytes().astype(np.int64)).to(device)
    ids, in_memory = views(int(sys.argv[6]), B, T)
    logits, handle = torch.from_numpy(in_memory), None
    if device.type == "cuda":
        # Optional: a torch without CUDA comes without its bindings.
        from core.device_memory import allocate

        logits, handle = allocate((B, T, V))
    nats, bytes_, tokens = 0.0, 0, 0
    for start in range(0, len(rows), B):
        batch = rows[start : start + B]
        ids[: len(batch)] = batch[:, :-1]
        write(asks, {"rows": len(batch), "logits": handle})
        if answers.receive() is None:
            return  # the server has gone, and whoever watches it says why
        targets = torch.from_numpy(batch[:, 1:].astype(np.int64)).to(device)
        sums = count(logits[: len(batch)], targets, token_bytes)
        nats, bytes_, tokens = nats + sums[0], bytes_ + sums[1], tokens + sums[2]
        write(events, {"event": "alive"})
    write(events, {"event": "scored", "nats": nats, "bytes": bytes_, "tokens": tokens})


def run_judge(settings: dict[str, Any], events: int, commands: Reader) -> None:
    """Wait for the device, say that all is there, wait for the word, score."""
    torch.set_num_threads(settings["threads"])
    if commands.receive() is None:
        return
    if settings["device"] == "cuda":
        torch.cuda.init()
        torch.cuda.synchronize()
    write(events, {"event": "ready"})
    if commands.receive() is not None:
        score(settings, events, int(sys.argv[4]), Reader(int(sys.argv[5])))


if __name__ == "__main__":
    guarded(
        run_judge, json.loads(sys.argv[3]), int(sys.argv[1]), Reader(int(sys.argv[2]))
    )
