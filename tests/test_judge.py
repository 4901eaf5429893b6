"""The arithmetic that grades a model."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core import judge
from core.training.entry import OutOfMemory, crash_of
from core.training.run import NonFiniteLoss

B, T, V = 3, 5, 7


def some(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        4 * torch.randn(B, T, V, generator=generator),
        torch.randint(V, (B, T), generator=generator),
        torch.randint(0, 4, (V,), generator=generator),
    )


def test_nats_bytes_and_tokens_are_those_of_a_sum_by_hand():
    logits, targets, token_bytes = some(0)
    nats, counted_bytes, tokens = 0.0, 0, 0
    for row in range(B):
        for position in range(T):
            target = int(targets[row, position])
            if token_bytes[target] == 0:  # special
                continue
            scores = logits[row, position].double()
            total = sum(math.exp(score) for score in scores.tolist())
            nats += math.log(total) - float(scores[target])
            counted_bytes += int(token_bytes[target])
            tokens += 1

    counted = judge.count(logits, targets, token_bytes)

    assert counted[0] == pytest.approx(nats, rel=1e-6)
    assert counted[1:] == (counted_bytes, tokens)


@given(seed=st.integers(0, 2**20), at_once=st.integers(1, 2 * B * T))
@settings(deadline=None)
def test_how_many_logits_are_normalised_at_a_time_changes_nothing(seed, at_once):
    answer = some(seed)
    whole = judge.count(*answer)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(judge, "CHUNK_LOGITS", at_once * V)
        in_parts = judge.count(*answer)

    assert in_parts[0] == pytest.approx(whole[0], rel=1e-12, abs=1e-12)
    assert in_parts[1:] == whole[1:]


def test_what_is_shared_is_not_written_to():
    logits, targets, token_bytes = some(1)
    before = logits.clone()

    judge.count(logits, targets, token_bytes)

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
