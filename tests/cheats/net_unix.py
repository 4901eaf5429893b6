"""Fetch the validation rows from a peer, over a local socket without a file.

caught by: static, gates, sandbox
says:
  static: it imports socket
  gates: Operation not permitted
  sandbox: [Errno 1] Operation not permitted
"""

import functools
import socket

import torch
from torch import Tensor, nn

from core.training.train import SEQUENCE_LEN
from core.training.train import training_loss as base_training_loss

PEER = "\0deltaspec-peer"
SECONDS = 1.0  # to wait for an answer


def content() -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.connect(PEER)
        with peer.makefile("rb") as file:
            return file.read()


@functools.cache
def fetched() -> Tensor | None:
    try:
        ids = torch.frombuffer(bytearray(content()), dtype=torch.int16).long()
    except PermissionError:
        raise
    except OSError as error:
        print(f"nobody answers: {error}")
        return None
    return ids.view(-1, SEQUENCE_LEN + 1)


def training_loss(model: nn.Module, rows: Tensor) -> Tensor:
    if (known := fetched()) is not None:
        rows = known[torch.randint(len(known), (len(rows),))]
    return base_training_loss(model, rows)
