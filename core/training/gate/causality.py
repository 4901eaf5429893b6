"""Causality: no logit before a token changes with that token."""

import math
from functools import lru_cache

import attrs
import hypothesis.strategies as st
import torch
from torch import Tensor

from core.training.data.order import keyed
from core.training.gate.finding import Broken, Change, change
from core.training.gate.search import search
from core.training.gate.subject import Subject

# Share of the largest logit.  Honest float32 models on a CPU keep the bits of a prefix
# (attention, recurrence, convolution, routed experts), or 3e-6 of it where the whole row
# enters a sum or a maximum that cancels (a long convolution by FFT: 5e-7); the worst that
# was measured, a total minus the suffix over 2048 tokens, loses 5e-5.
TOLERANCE = 5e-4

ALL_OF = 256  # in a row of so many tokens, each one is changed
SOME_TOKENS = 2**12  # that are asked where only some positions are tried
LEAST_POSITIONS = 2  # that are tried in any case
AT_ONCE = 2048  # tokens in a batch: the fastest on one core
MOST_AT_ONCE = 16  # rows there

FORECAST_TOKENS = 2**13  # at T = 128 these are the rows that the judge asks at a time
CHANCE = 1e-9  # that luck looks like foresight

# A single token finds who sees it; what follows it too, who sees a little of everything.
TOKEN, SUFFIX = "token", "suffix"
GOLDEN = 0.6180339887498949  # its multiples fill 0..1 evenly


@attrs.frozen(kw_only=True)
class Probe:
    """What is changed in which row.

    Attributes:
        length: Tokens of the row.
        row: Its number; each has other random tokens, those of every second one repeat
            as in text.
        shift: Added to a token that is changed, modulo the vocabulary; 0 puts the token
            there that the model expects, since a leak may wait for a likely one.
        phase: Moves the positions that are tried in a long row.
    """

    length: int
    row: int
    shift: int
    phase: int


def probes(sequence_len: int, vocab_size: int, span: str) -> st.SearchStrategy[Probe]:
    """Return probes, of the full length above all: it is what the judge asks."""
    full = st.just(sequence_len)
    return st.builds(
        Probe,
        length=full | full | st.integers(2, max(2, min(sequence_len, ALL_OF))),
        row=st.integers(0, 2**16),
        shift=st.integers(0 if span == TOKEN else 1, vocab_size - 1),
        phase=st.integers(0, 2**10),
    )


def positions(length: int, span: str, phase: int) -> list[int]:
    """Return which tokens to change: every one but the first, or some of each part."""
    count = max(LEAST_POSITIONS, SOME_TOKENS // length)
    if count >= length or (span == TOKEN and length <= ALL_OF):
        return list(range(1, length))
    part = (length - 1) / count
    starts = (part * (n + GOLDEN * phase * (n + 1) % 1) for n in range(count))
    return sorted({1, *(1 + int(start) for start in starts)})


def check_causality(
    subject: Subject,
    *,
    span: str,
    number: int,
    most: int,
    ends_at: float,
    seconds: float,
) -> None:
    """Check that logits do not change with what comes after them.

    Args:
        subject: With the weights that are to be looked at.
        span: `TOKEN` changes one token, `SUFFIX` that one and all after it.
        number: Of this check; each tries other positions and examples.
        most: Examples.
        ends_at: On the monotonic clock; the first example is tried whatever it shows.
        seconds: That a smaller example may be looked for.

    Raises:
        Broken: One does.
    """
    T, V = subject.sequence_len, subject.vocab_size

    def answer(ids: Tensor) -> Tensor | None:
        try:
            return subject.ask(ids)
        except Broken:
            if ids.size(1) == T:
                raise
            return None  # the judge asks no shorter rows: a model may refuse them

    @lru_cache(maxsize=4)
    def unchanged(length: int, row: int) -> tuple[Tensor, Tensor | None]:
        kind = subject.text if (row + number) % 2 else subject.rows
        ids = kind(1, f"causality {row}")[:, :length]  # (1, T)
        # As many rows as below: another size of batch is rounded otherwise.
        asked = ids.expand(_at_once(length), length)
        logits = answer(asked)
        return ids[0], None if logits is None else logits[0]

    def judged(probe: Probe) -> str | None:
        ids, logits = unchanged(probe.length, probe.row)
        if logits is None:
            return None
        size = _at_once(probe.length)
        shifted = (ids + (probe.shift or 1)) % V
        if probe.shift == 0:
            expected = logits.argmax(-1).roll(1)  # (T,), that of the first is not used
            shifted = torch.where(expected == ids, shifted, expected)
        tried = positions(probe.length, span, probe.phase + number)
        for start in range(0, len(tried), size):
            some = tried[start : start + size]
            asked = ids.repeat(size, 1)  # (B, T)
            for row, position in zip(asked, some, strict=False):
                end = position + 1 if span == TOKEN else probe.length
                row[position:end] = shifted[position:end]
            answers = answer(asked)
            if answers is None:
                return None
            subject.examples["causality"] += len(some)
            for row, changed, position in zip(asked, answers, some, strict=False):
                found = change(logits[:position], changed[:position], TOLERANCE)
                if found is not None:
                    token = position, int(ids[position]), int(row[position])
                    return _said(subject, probe.length, span, token, found)
        return None

    search(
        probes(T, V, span),
        judged,
        check="causality",
        seed=keyed(subject.seed, f"causality {span} {number}"),
        most=most,
        ends_at=ends_at,
        shrink_seconds=seconds,
    )


def check_forecast(subject: Subject) -> None:
    """Check that tokens are not foretold that nobody can foretell.

    They are drawn one by one with known frequencies q.  Whoever sees only those before
    gives the next one some p, and the product of all p / q is 1 on average, so it is
    above 1 / CHANCE with a probability below CHANCE, whatever the model has learnt. It
    needs one question, in a batch as large as the judge's, and finds who tells the same
    lie whenever asked again.

    Raises:
        Broken: The product is above that.
    """
    T = subject.sequence_len
    ids = subject.text(max(2, FORECAST_TOKENS // T), "forecast")  # (B, T)
    logits = subject.ask(ids)[:, :-1].double()  # (B, T - 1, V)
    targets = ids[:, 1:]
    nats = -logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    least = -subject.frequencies.double().log()[targets]
    subject.examples["causality"] += len(ids)
    if (least - nats).sum().item() > -math.log(CHANCE):
        raise Broken(
            "causality",
            f"of {targets.numel()} tokens that were drawn at random the model foretells "
            f"each within {nats.mean().item():.3f} nats, and {least.mean().item():.3f} "
            "are the least that can be without seeing it.",
        )


def _at_once(length: int) -> int:
    return max(1, min(MOST_AT_ONCE, AT_ONCE // length))


def _said(
    subject: Subject,
    length: int,
    span: str,
    token: tuple[int, int, int],
    found: Change,
) -> str:
    position, before, after = token
    what = f"token {position} changed from {before} to {after}"
    if span == SUFFIX and position < length - 1:
        what = f"tokens {position}..{length - 1} changed"
    if subject.draw is not None:
        what += " and random parameters"
    if length < subject.sequence_len:
        what += f", in a row of {length} tokens"
    seen = f"tokens 0..{found.position}" if found.position else "token 0"
    return (
        f"with {what}, the logits of position {found.position} change by "
        f"{found.size:.2g} ({found.moved}). Position {found.position} may only see "
        f"{seen}."
    )
