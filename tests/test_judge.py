"""The arithmetic that grades a model."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core import judge
from core.training.entry import OutOfMemory, crash_of
from core.training.run import NonFiniteLoss

B, T, V = 3, 5, 7


def some(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        4 * torch.randn(B, T, V, generator=generator),
        torch.randint(V, (B, T), generator=generator),
    )


def test_the_nats_of_a_token_are_those_of_the_full_softmax_by_hand():
    logits, targets = some(0)

    nats = judge.losses(logits, targets)

    for row in range(B):
        for position in range(T):
            scores = logits[row, position].tolist()
            target = scores[targets[row, position]]
            by_hand = math.log(sum(map(math.exp, scores))) - target
            assert nats[row, position] == pytest.approx(by_hand, rel=1e-5)


def test_logits_of_any_size_are_normalised_and_none_overflows():
    logits = torch.tensor([[[1e30, -1e30], [-1e30, -1e30]]])

    nats = judge.losses(logits, torch.tensor([[0, 1]]))

    assert nats.tolist() == [[0.0, pytest.approx(math.log(2))]]


@given(seed=st.integers(0, 2**20), at_once=st.integers(1, 2 * B * T))
def test_how_many_logits_are_normalised_at_a_time_changes_nothing(seed, at_once):
    answer = some(seed)
    whole = judge.losses(*answer)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(judge, "CHUNK_LOGITS", at_once * V)
        in_parts = judge.losses(*answer)

    assert torch.equal(in_parts, whole)


def test_what_is_shared_is_not_written_to():
    logits, targets = some(1)
    before = logits.clone()

    judge.losses(logits, targets)

    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("error", "crash"),
    [
        (NonFiniteLoss("nan"), "nan"),
        (OutOfMemory("64 rows"), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: ..."), "oom"),
        (RuntimeError("CUDA error: out of memory"), "oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "oom"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "exception"),
    ],
)
def test_each_way_to_run_out_of_memory_is_called_so(error, crash):
    assert crash_of(error) == crash
