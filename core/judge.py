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
from core.training.tokenizer import Tokenizer


def count(
    logits: Tensor, targets: Tensor, token_bytes: Tensor
) -> tuple[float, int, int]:
    """Return nats, bytes and tokens of one answer.

    Special tokens have no bytes and count for nothing.

    Args:
        logits: Shape (B, T, V), float32.
        targets: Shape (B, T), int64.
        token_bytes: Shape (V,), bytes of each token itself; 0 for special tokens.
    """
    losses = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none"
    )  # (B*T,) nats
    counted = token_bytes[targets.flatten()]  # (B*T,) bytes
    nats = losses.double()[counted > 0].sum()
    return nats.item(), int(counted.sum()), int((counted > 0).sum())


def score(settings: dict[str, Any], events: int, asks: int, answers: Reader) -> None:
    """Ask for the logits of every scored row; say the sums on *events*."""
    T = settings["sequence_len"]
    rows = open_rows(Path(settings["validation"]), T)  # (N, T + 1)
    rows = rows[: max(1, settings["scored_tokens"] // T)]
    tokenizer = Tokenizer.load(Path(settings["tokenizer"]))
    token_bytes = torch.from_numpy(tokenizer.token_bytes().astype(np.int64))
    ids, logits = views(
        int(sys.argv[6]), settings["scored_rows"], T, settings["vocab_size"]
    )
    nats, bytes_, tokens = 0.0, 0, 0
    for start in range(0, len(rows), settings["scored_rows"]):
        batch = rows[start : start + settings["scored_rows"]]
        B = len(batch)
        ids[:B] = batch[:, :-1]
        write(asks, {"rows": B})
        if answers.receive() is None:
            return  # the server has gone, and whoever watches it says why
        # A copy: the server can write into the shared memory while we normalise.
        answered = torch.from_numpy(logits[:B].copy())
        targets = torch.from_numpy(batch[:, 1:].astype(np.int64))
        sums = count(answered, targets, token_bytes)
        nats, bytes_, tokens = nats + sums[0], bytes_ + sums[1], tokens + sums[2]
        write(events, {"event": "alive"})
    write(events, {"event": "scored", "nats": nats, "bytes": bytes_, "tokens": tokens})


def main() -> None:
    """Say that all is imported, wait for the word, score."""
    settings = json.loads(sys.argv[3])
    events, commands = int(sys.argv[1]), Reader(int(sys.argv[2]))
    torch.set_num_threads(settings["threads"])
    write(events, {"event": "ready"})
    if commands.receive() is not None:
        score(settings, events, int(sys.argv[4]), Reader(int(sys.argv[5])))


if __name__ == "__main__":
    main()
