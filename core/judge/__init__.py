"""A trained model -> val_bpb, from logits, out of the mutant's reach.

The judge runs our own code alone.  It owns the validation rows and the byte table; two
servers get token ids and give logits.  Each is scored on half of the rows and asked,
among these, altered and unaltered copies of rows of the other's half: what both answer
must agree (`core.judge.audit`).

    val_bpb = Σ nats / (ln 2 · Σ bytes)
"""

import contextlib
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.channel import Reader, write
from core.judge.audit import (
    COPIES,
    PROBES_A_ROW,
    Audit,
    Comparison,
    Probe,
    confirmed,
    draw,
)
from core.memory import question_views
from core.training.data import open_rows
from core.training.entry import guarded
from core.training.tokenizer import Tokenizer

CHUNK_LOGITS = 2**26  # normalised at a time, in float32: 256 MiB


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return nats a token, float32 (B, T), of the full softmax.

    Args:
        logits: Shape (B, T, V), float32.
        targets: Shape (B, T), int64.
    """
    at_once = max(1, CHUNK_LOGITS // logits.size(2))
    parts = [
        # A copy: the server can write into what is shared while we normalise.
        F.cross_entropy(answered.clone(), asked, reduction="none")
        for answered, asked in zip(
            logits.flatten(0, 1).split(at_once),
            targets.flatten().split(at_once),
            strict=True,
        )
    ]
    return torch.cat(parts).view_as(targets)


@attrs.define(eq=False)
class Server:
    """One of the two that answer, seen from here.

    Attributes:
        asks: Where questions are said.
        answers: Where it says that it has answered.
        ids: The question, uint16 (B, T), in shared host memory.
        logits: The answer, float32 (B, T, V), in shared memory.
        handle: Names that memory on a GPU; None on a CPU.
    """

    asks: int
    answers: Reader
    ids: np.ndarray
    logits: Tensor
    handle: str | None

    @classmethod
    def open(
        cls, settings: dict[str, Any], asks: int, answers: int, memory: int
    ) -> "Server":
        """Return a server behind three descriptors."""
        shape = tuple(
            settings[name] for name in ("scored_rows", "sequence_len", "vocab_size")
        )
        ids, in_memory = question_views(memory, *shape[:2])
        logits, handle = torch.from_numpy(in_memory), None
        if settings["device"] == "cuda":
            # Optional: a torch without CUDA comes without its bindings.
            from core.device_memory import allocate

            logits, handle = allocate(shape)
        return cls(asks, Reader(answers), ids, logits, handle)

    def ask(self, ids: np.ndarray) -> None:
        """Ask for the logits of *ids*, (B, T)."""
        self.ids[:] = ids
        write(self.asks, {"logits": self.handle})

    def has_answered(self) -> bool:
        """Wait for the answer; False if the server has gone."""
        return self.answers.receive() is not None


@attrs.frozen(kw_only=True)
class Scored:
    """What was measured.

    Attributes:
        nats: Sum over the scored tokens.
        bytes: Sum of their own bytes.
        tokens: How many were scored; special tokens count for neither sum.
        audit: Whether it can be believed.
    """

    nats: float
    bytes: int
    tokens: int
    audit: Audit


class Gone(Exception):
    """A server ended; whoever watches it says why."""


@attrs.define(eq=False)
class Bench:
    """The two servers, and what they are asked.

    Attributes:
        rows: Validation rows, uint16 (N, T + 1).
        servers: Two of them.
        device: Where the softmax is taken.
        chances: To draw from.
        said: Called after each answer with the server that gave it, and the one that is
            waited for next.
    """

    rows: np.ndarray
    servers: Sequence[Server]
    device: torch.device
    chances: np.random.Generator
    said: Callable[[int, int], None]

    def answers(self, asked: Sequence[Sequence[Probe]]) -> list[Tensor]:
        """Return what each server answers to its probes: nats, (probes, T) each.

        A server computes while we normalise what the other said.

        Raises:
            Gone: One has ended.
        """
        B, T = self.servers[0].ids.shape
        given = [torch.empty((len(probes), T), device=self.device) for probes in asked]
        starts = [iter(range(0, len(probes), B)) for probes in asked]
        waiting: deque[tuple[int, int]] = deque()

        def ask(place: int) -> None:
            start = next(starts[place], None)
            if start is None:
                return
            question = asked[place][start : start + B]
            ids = [probe.ids(self.rows) for probe in question]
            # The last question is as long as the others: nothing tells them apart.
            more = self.chances.integers(len(self.rows), size=B - len(question))
            self.servers[place].ask(np.stack([*ids, *self.rows[more, :-1]]))
            waiting.append((place, start))

        for place in range(len(asked)):
            ask(place)
        while waiting:
            place, start = waiting.popleft()
            server, question = self.servers[place], asked[place][start : start + B]
            if not server.has_answered():
                raise Gone
            targets = self.targets([probe.row for probe in question])
            given[place][start : start + B] = losses(
                server.logits[: len(question)], targets
            )
            if self.device.type == "cuda":  # it is overwritten as soon as we ask
                torch.cuda.synchronize()
            ask(place)
            self.said(place, waiting[0][0] if waiting else 0)
        return given

    def targets(self, rows: Sequence[int] | slice) -> Tensor:
        """Return the tokens that some rows predict, int64 (…, T)."""
        return torch.from_numpy(self.rows[rows, 1:].astype(np.int64)).to(self.device)

    def ask_again(self, found: Comparison, claims: Tensor) -> str:
        """Return what is wrong with the loudest probes; empty if it was chance."""
        B = len(self.servers[0].ids)
        copies = max(1, min(COPIES, B // 2))
        for index, position in found.suspects(max(1, B // (2 * copies))):
            probe = found.probes[index]
            T = claims.size(1)
            both = [Probe(row=probe.row, changed=T), probe]
            asked = [self.shuffled([p for p in both for _ in range(copies)])] * 2
            nats = torch.stack(self.answers(asked))[:, :, position]
            is_altered = [p is probe for p in asked[0]]
            is_unaltered = [p is not probe for p in asked[0]]
            breach = confirmed(
                probe, position, nats[:, is_unaltered], nats[:, is_altered]
            )
            if breach:
                return breach
        return ""

    def shuffled(self, probes: Sequence[Probe]) -> list[Probe]:
        """Return them in random order."""
        return [probes[index] for index in self.chances.permutation(len(probes))]


def score(
    rows: np.ndarray,
    token_bytes: np.ndarray,
    servers: Sequence[Server],
    device: torch.device,
    said: Callable[[int, int], None] = lambda place, after: None,
    probes_a_row: float = PROBES_A_ROW,
) -> Scored:
    """Return the score of what two servers answer.

    Args:
        rows: Validation rows, uint16 (N, T + 1).
        token_bytes: Bytes of each token itself, (V,); 0 for special tokens, which
            count for nothing.
        servers: Two of them.
        device: Where the softmax is taken.
        said: Called after each answer with the server that gave it, and the one that is
            waited for next.
        probes_a_row: For a benchmark; 0 for none at all.

    Raises:
        Gone: A server has ended.
    """
    seed = secrets.randbits(63)  # after training: nobody could prepare for it
    chances = np.random.default_rng(seed)
    bench = Bench(rows, servers, device, chances, said)
    B, T = servers[0].ids.shape
    home = chances.permutation(len(rows)) % len(servers)  # who is scored on a row
    probes = draw(home, T, batch=B, chances=chances, probes_a_row=probes_a_row)
    asked = [
        bench.shuffled([
            *(Probe(row=int(row), changed=T) for row in np.flatnonzero(home == place)),
            *others,
        ])
        for place, others in enumerate(probes)
    ]
    given = bench.answers(asked)
    claims = torch.empty((len(rows), T), device=device)
    compared: list[Probe] = []
    compared_nats: list[Tensor] = []
    for place, nats in enumerate(given):
        scored = np.array([home[p.row] == place for p in asked[place]], dtype=bool)
        where = [probe.row for probe in asked[place] if home[probe.row] == place]
        claims[where] = nats[np.flatnonzero(scored)]
        compared += [probe for probe in asked[place] if home[probe.row] != place]
        compared_nats.append(nats[np.flatnonzero(~scored)])
    found = Comparison.of(compared, claims, torch.cat(compared_nats))
    breach = (
        found.odd()
        or found.surplus()
        or found.company()
        or found.unsteady()
        or found.mean_gain()
        or bench.ask_again(found, claims)
    )
    sizes = torch.from_numpy(token_bytes.astype(np.int64)).to(device)
    counted = sizes[bench.targets(slice(None))]
    return Scored(
        nats=claims.double()[counted > 0].sum().item(),
        bytes=int(counted.sum()),
        tokens=int((counted > 0).sum()),
        audit=found.audited(seed, breach),
    )


def run_judge(
    settings: dict[str, Any], events: int, commands: Reader, inherited: list[int]
) -> None:
    """Wait for the device, say that all is there, wait for the word, score."""
    torch.set_num_threads(settings["threads"])
    if commands.receive() is None:
        return
    device = torch.device(settings["device"])
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.synchronize()
    write(events, {"event": "ready"})
    if commands.receive() is None:
        return
    T = settings["sequence_len"]
    rows = open_rows(Path(settings["validation"]), T)  # (N, T + 1)
    tokenizer = Tokenizer.load(Path(settings["tokenizer"]))
    servers = [
        Server.open(settings, *inherited[at : at + 3])
        for at in range(0, len(inherited), 3)
    ]
    with contextlib.suppress(Gone):
        scored = score(
            rows[: max(1, settings["scored_tokens"] // T)],
            tokenizer.token_bytes(),
            servers,
            device,
            said=lambda place, after: write(
                events, {"event": "alive", "answered": place, "waits_for": after}
            ),
        )
        write(events, {"event": "scored", **attrs.asdict(scored)})


def main(
    settings: dict[str, Any], events: int, commands: Reader, inherited: list[int]
) -> None:
    """Be the judge of a trial."""
    with guarded(settings, events):
        run_judge(settings, events, commands, inherited)
