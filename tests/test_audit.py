"""The audit: what breaks the rules is seen, and what keeps them never is."""

import math
import os
import threading
from collections.abc import Callable, Sequence

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.channel import Reader, write
from core.judge import Server, score
from core.judge.audit import (
    ROUNDING_NATS,
    Comparison,
    Probe,
    _tail,
    confirmed,
    draw,
)
from core.memory import allocate, question_bytes, question_views

B, T, V = 16, 32, 24
TABLE = torch.randn(V, V, generator=torch.Generator().manual_seed(0))
BYTES = np.arange(V) % 5  # some tokens are special: they have none

Model = Callable[[Tensor], Tensor]


def answering(model: Model, place: int, batch: int = B) -> tuple[Server, list[int]]:
    """Return a server whose answers come from a thread, and its far ends."""
    (asked, asks), (answered, answers) = os.pipe(), os.pipe()
    memory = allocate(question_bytes(batch, T, V))
    settings = {
        "scored_rows": batch,
        "sequence_len": T,
        "vocab_size": V,
        "device": "cpu",
    }

    def answer() -> None:
        ids, in_memory = question_views(memory, batch, T)
        reader = Reader(asked)
        while reader.receive() is not None:
            logits = model(torch.from_numpy(ids.astype(np.int64)))
            torch.from_numpy(in_memory).copy_(logits)
            write(answers, {})
        os.close(answers)

    threading.Thread(target=answer, daemon=True, name=f"server {place}").start()
    return Server.open(settings, asks, answered, memory), [asks]


def scored(*models: Model, rows: int = 96, batch: int = B):
    """Return the score of rows by two servers, each with a model of its own."""
    text = np.random.default_rng(1).integers(V, size=(rows, T + 1)).astype(np.uint16)
    opened = [answering(model, place, batch) for place, model in enumerate(models)]
    try:
        servers = [server for server, _ in opened]
        return score(text, BYTES, servers, torch.device("cpu")), text
    finally:
        for _, fds in opened:
            for fd in fds:
                os.close(fd)


def honest(ids: Tensor) -> Tensor:
    """Answer from the token and from the mean of those before it."""
    seen = torch.cumsum(TABLE[ids], 1)
    count = torch.arange(1, ids.size(1) + 1)[:, None]
    return TABLE[ids] + seen / count


def leaking(ids: Tensor, where: Tensor, reach: int = 1) -> Tensor:
    """Raise the logit of the token *reach* ahead at the positions *where*."""
    logits = honest(ids).clone()
    ahead = torch.nn.functional.one_hot(torch.roll(ids, -reach, 1), V)
    return logits + 2.0 * ahead * where[:, None]


@settings(max_examples=25)
@given(rows=st.integers(1, 70))
def test_the_score_is_that_of_numpy_in_float64_whatever_the_number_of_rows(rows: int):
    result, text = scored(honest, honest, rows=rows)

    ids, targets = torch.from_numpy(text[:, :-1].astype(np.int64)), text[:, 1:]
    logits = honest(ids).double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nats = -np.take_along_axis(log_p, targets[..., None].astype(int), -1)[..., 0]
    counted = BYTES[targets] > 0
    assert result.nats == pytest.approx(nats[counted].sum(), rel=1e-5)
    assert result.bytes == BYTES[targets].sum()
    assert result.tokens == counted.sum()
    assert result.audit.breach == ""
    assert result.audit.worst_nats == 0.0


@settings(max_examples=200)
@given(
    rows=st.integers(1, 300),
    batch=st.integers(1, 64),
    length=st.integers(1, 40),
    seed=st.integers(0, 2**32),
)
def test_probes_are_of_the_others_rows_and_cost_a_quarter(rows, batch, length, seed):
    chances = np.random.default_rng(seed)
    home = chances.permutation(rows) % 2

    drawn = draw(home, length, batch=batch, chances=chances)

    for place, probes in enumerate(drawn):
        others = int((home != place).sum())
        scored_rows = rows - others
        assert all(home[probe.row] != place for probe in probes)
        assert all(1 <= probe.changed <= length for probe in probes)
        if others:  # what is left of the last question costs nothing
            assert len(probes) >= others // 4
            assert len(probes) <= others // 4 + batch - 1
            assert (scored_rows + len(probes)) % batch == 0


@settings(max_examples=200)
@given(
    changed=st.integers(1, T),
    suffix=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_a_probe_alters_its_row_from_its_position_on_and_not_before(
    changed, suffix, seed
):
    rows = np.random.default_rng(seed).integers(V, size=(3, T + 1)).astype(np.uint16)
    probe = Probe(row=0, changed=changed, donor=1, suffix=suffix)

    ids = probe.ids(rows)

    assert (ids[:changed] == rows[0, :changed]).all()
    if changed == T:
        assert (ids == rows[0, :-1]).all()
    elif suffix:
        assert (ids[changed:] == rows[1, changed:-1]).all()
    else:
        assert ids[changed] != rows[0, changed]
        assert (ids[changed + 1 :] == rows[0, changed + 1 : -1]).all()


EVERYWHERE = torch.ones(T)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda ids: leaking(ids, EVERYWHERE), "the model looks ahead."),
        (
            lambda ids: leaking(ids, EVERYWHERE, reach=9),
            ("the model looks ahead.", "on its future, or on what was asked before."),
        ),
        (
            lambda ids: honest(ids) + TABLE[ids].mean(dim=1, keepdim=True),
            ("the model looks ahead.", "on its future, or on what was asked before."),
        ),
        (
            lambda ids: honest(ids) + TABLE[ids].mean(dim=0, keepdim=True),
            "on its company, on its future, or on what was asked before.",
        ),
        (
            lambda ids: honest(ids) / torch.where(ids[:, -1:, None] % 3 == 0, 0.0, 1.0),
            "the answer to a probe is not finite, and what was scored is.",
        ),
    ],
    ids=["the next token", "nine tokens on", "a mean", "other rows", "not finite"],
)
def test_what_breaks_the_rules_is_in_breach(model: Model, says: str | tuple[str, ...]):
    result, _ = scored(model, model)

    assert result.audit.breach.endswith(says)
    assert result.audit.breach


def test_a_leak_at_one_position_in_thirty_is_nearly_always_seen():
    where = torch.zeros(T)
    where[11] = 1.0

    seen = [
        bool(scored(*[lambda ids: leaking(ids, where)] * 2)[0].audit.breach)
        for _ in range(20)
    ]

    # Of 31 positions, 28 are tried a time: it escapes one time in ten.
    assert sum(seen) >= 9


def test_what_learns_while_it_is_asked_is_in_breach():
    def learning() -> Model:
        heard = torch.zeros(V)

        def answer(ids: Tensor) -> Tensor:
            logits = honest(ids) + heard
            heard.add_(torch.bincount(ids.flatten(), minlength=V) / 1_000)
            return logits

        return answer

    result, _ = scored(learning(), learning())

    assert result.audit.breach.endswith("or on what was asked before.")


def test_what_remembers_a_row_and_repeats_its_first_answer_is_in_breach():
    def remembering() -> Model:
        known: dict[bytes, Tensor] = {}

        def answer(ids: Tensor) -> Tensor:
            logits = leaking(ids, EVERYWHERE)
            for row, said in zip(ids, logits, strict=True):
                said.copy_(known.setdefault(row[:8].numpy().tobytes(), said.clone()))
            return logits

        return answer

    result, _ = scored(remembering(), remembering())

    # A row altered among the tokens that it knows one by is new to it.
    assert result.audit.breach.endswith((
        "the model remembers what it was asked.",
        "the model looks ahead.",
    ))


def hides(when_alone: bool, leak: Callable[[Tensor], Tensor]) -> Model:
    """Return a model that leaks until it is asked again.

    Args:
        when_alone: It looks for copies of a row in one question, and not in memory.
        leak: What it answers otherwise.
    """
    seen: set[bytes] = set()

    def answer(ids: Tensor) -> Tensor:
        keys = [row[:8].numpy().tobytes() for row in ids]
        alike = (ids[:, None] == ids[None]).float().mean(dim=-1) > 0.5
        fresh = [
            int(alike[i].sum()) == 1 if when_alone else key not in seen
            for i, key in enumerate(keys)
        ]
        seen.update(keys)
        return torch.where(torch.tensor(fresh)[:, None, None], leak(ids), honest(ids))

    return answer


def ahead(ids: Tensor, strength: Tensor, reach: int = 1) -> Tensor:
    """Return logits that know the token *reach* ahead, as far as *strength* (B, T) says."""
    ahead = torch.nn.functional.one_hot(torch.roll(ids, -reach, 1), V)
    return honest(ids) + ahead * strength[..., None]


def heavy(ids: Tensor) -> Tensor:
    return ahead(ids, torch.where(ids % 7 == 0, 2_000.0, 12.0))


def decoys(ids: Tensor) -> Tensor:
    lost = torch.rand(ids.shape) < 0.008
    known = ahead(ids, torch.full(ids.shape, 4.0))
    return torch.where(lost[..., None], 12.0 * known.roll(1, -1), known)


def some(ids: Tensor) -> Tensor:
    return ahead(ids, 20.0 * ((ids * 31 + ids.roll(1, 1) * 17) % 8 == 0))


def after_next(ids: Tensor) -> Tensor:
    return ahead(ids, torch.full(ids.shape, 0.5), reach=2)


@pytest.mark.parametrize("leak", [heavy, decoys, some, after_next])
@pytest.mark.parametrize("when_alone", [True, False], ids=["twins", "memory"])
def test_a_leak_that_hides_when_it_is_asked_again_is_in_breach(
    leak: Callable[[Tensor], Tensor], when_alone: bool
):
    models = [hides(when_alone, leak) for _ in range(2)]

    result, _ = scored(*models, rows=600)

    assert result.audit.breach


def test_rounding_that_depends_on_company_is_no_breach():
    chances = torch.Generator().manual_seed(3)

    def rounding(ids: Tensor) -> Tensor:
        noise = torch.randn(honest(ids).shape, generator=chances)
        return honest(ids) + 1e-5 * noise

    breaches = [scored(rounding, rounding)[0].audit.breach for _ in range(20)]

    assert breaches == [""] * 20


def test_a_choice_that_flips_now_and_then_is_asked_again_and_is_no_breach():
    chances = torch.Generator().manual_seed(4)

    def flipping(ids: Tensor) -> Tensor:
        flips = torch.rand(ids.shape, generator=chances) < 1e-3
        return honest(ids) + torch.where(flips, 0.3, 0.0)[..., None] * TABLE[0]

    results = [scored(flipping, flipping, rows=400)[0] for _ in range(20)]
    breaches = [result.audit.breach for result in results]
    assert max(result.audit.worst_nats for result in results) > 0.1

    assert breaches == [""] * 20


SAME = [Probe(row=i, changed=T) for i in range(400)]
ROWS, PLACES = (400, 1), (400, T)


def answered(
    gains: Tensor, probes: Sequence[Probe] = SAME, device: str = "cpu"
) -> Comparison:
    """Return a comparison with what all claims gained, and the rounding of *device*."""
    found = Comparison.of(probes, torch.zeros_like(gains), gains)
    limit = ROUNDING_NATS[device]
    return attrs.evolve(found, rounding_nats=limit, loud=~(found.gains.abs() <= limit))


def lucky(share: float, by: float, shape: tuple[int, int]) -> Comparison:
    """Return what shows of a *share* of rows or places that differ *by* so many nats."""
    chances = torch.Generator().manual_seed(5)
    where = torch.rand(shape, generator=chances) < share
    sign = torch.where(torch.rand(shape, generator=chances) < 0.5, -1.0, 1.0)
    return answered((by * where * sign).expand(PLACES), device="cuda")


@pytest.mark.parametrize(
    ("share", "by", "shape"),
    [(0.05, 3.0, ROWS), (0.5, 0.03, ROWS), (0.005, 3.0, PLACES), (0.5, 0.06, PLACES)],
    ids=["a few rows", "rows, faintly", "a few places", "places, faintly"],
)
def test_luck_that_would_bring_a_score_something_is_a_breach(share, by, shape):
    assert lucky(share, by, shape).unsteady().endswith("or on what was asked before.")


@pytest.mark.parametrize(
    ("share", "by", "shape"),
    [(0.01, 0.2, ROWS), (0.005, 0.6, PLACES), (1.0, 0.015, PLACES)],
    ids=["rows that flip", "places that flip", "rounding"],
)
def test_luck_that_brings_a_score_next_to_nothing_is_no_breach(share, by, shape):
    found = lucky(share, by, shape)

    assert found.unsteady() == found.company() == ""


def test_what_a_user_reads_of_luck():
    gains = torch.zeros(400, T)
    gains[:20] = 4.0

    assert answered(gains).unsteady() == (
        "far from any alteration, two answers differ by 0.2 nats a token (0.2 beyond "
        "rounding, 0.094 by whole rows): an answer depends on chance, on its company, on "
        "its future, or on what was asked before."
    )


def test_what_a_user_reads_of_a_row_that_depends_on_others():
    gains = torch.zeros(400, T)
    gains[::10] = 0.002

    assert answered(gains).company() == ""
    assert answered(gains + 0.003).company() == (
        "100% of the positions far from any alteration answer otherwise beside other "
        "rows, by up to 0.005 nats: a row's answer depends on its company, on its future, "
        "or on what was asked before."
    )


def test_what_differs_just_before_an_alteration_is_none_of_the_companys():
    probes = [Probe(row=i, changed=20) for i in range(400)]
    near, far = torch.zeros(400, T), torch.zeros(400, T)
    near[:, 12:20] = far[:, 11] = 3.0

    assert answered(near, probes).company() == answered(near, probes).unsteady() == ""
    assert answered(far, probes).company()
    assert answered(far, probes).unsteady()


def test_an_answer_that_is_no_number_is_a_breach():
    gains = torch.zeros(400, T)
    gains[7, 3] = math.nan

    assert answered(gains).odd() == (
        "the answer to a probe is not finite, and what was scored is."
    )
    assert answered(gains.nan_to_num()).odd() == ""


def test_what_a_user_reads_of_a_suspect():
    token = Probe(row=3, changed=7, donor=1)
    suffix = Probe(row=3, changed=7, donor=1, suffix=True)
    quiet, loud = torch.full((2, 4), 2.0), torch.full((2, 4), 6.5)
    flipped = torch.tensor([[6.5, 6.5, 2.0, 6.5], [6.5] * 4])
    odd = torch.tensor([[2.0, 2.0, 2.0, math.nan], [2.0] * 4])

    assert confirmed(token, 6, quiet, loud) == (
        "with the token at position 7 replaced, position 6 answers 6.500 nats in place "
        "of 2.000: the model looks ahead."
    )
    assert confirmed(suffix, 5, quiet, loud) == (
        "with the tokens from position 7 on replaced, position 5 answers 6.500 nats in "
        "place of 2.000: the model looks ahead."
    )
    assert confirmed(token, 6, torch.tensor([[1.0] * 4, [2.0] * 4]), loud) == (
        "position 6 of a row answers 1.000 nats in one process and 2.000 in another "
        "with the same weights: the model remembers what it was asked."
    )
    assert confirmed(token, 6, quiet, flipped) == ""
    assert confirmed(token, 6, quiet, odd) == (
        "the answer to a probe is not finite, and what was scored is."
    )


@given(data=st.data())
def test_the_chance_of_a_surplus_is_the_exact_one(data: st.DataObject):
    of_all = data.draw(st.integers(1, 60))
    of_here = data.draw(st.integers(0, of_all))
    anywhere = data.draw(st.integers(0, of_all))
    here = data.draw(st.integers(0, anywhere))

    exact = sum(
        math.comb(of_here, k) * math.comb(of_all - of_here, anywhere - k)
        for k in range(here, anywhere + 1)
    ) / math.comb(of_all, anywhere)

    assert _tail(here, of_here, anywhere, of_all) == pytest.approx(exact, abs=1e-9)


def test_as_many_gains_elsewhere_as_before_alterations_are_no_surplus():
    probes = [Probe(row=i, changed=20) for i in range(40)]
    claims = torch.zeros(40, T)
    before, anywhere = torch.zeros(40, T), torch.zeros(40, T)
    before[::8, 19] = 5.0
    anywhere[::8] = 5.0

    ahead = Comparison.of(probes, claims, before)
    rounding = Comparison.of(probes, claims, anywhere)

    assert ahead.surplus() == (
        "with the token at position 20 replaced, position 19 answers 5 nats worse; so do "
        "5 of 40 probes just before their alteration, and 0 of 760 elsewhere: the model "
        "looks ahead."
    )
    assert rounding.surplus() == ""


def test_a_faint_gain_in_many_places_is_a_breach():
    probes = [Probe(row=i, changed=9) for i in range(60)]
    chances = torch.Generator().manual_seed(6)
    faint = 2e-4 * (1 + 0.2 * torch.randn(60, T, generator=chances))

    found, none = answered(faint, probes), answered(faint - 2e-4, probes)

    assert found.mean_gain().startswith(
        "without their future, 60 positions answer 0.000"
    )
    assert found.mean_gain().endswith("the model looks ahead.")
    assert none.mean_gain() == ""


def test_rare_large_differences_do_not_hide_a_gain_below_rounding():
    probes = [Probe(row=i, changed=9) for i in range(400)]
    chances = torch.Generator().manual_seed(7)
    decoys = 5.0 * torch.randn(400, T, generator=chances)
    decoys *= torch.rand(400, T, generator=chances) < 0.01

    gains = torch.where(decoys == 0, 0.03, decoys)

    assert answered(gains, probes, "cuda").mean_gain().endswith("looks ahead.")
    assert answered(decoys, probes, "cuda").mean_gain() == ""
