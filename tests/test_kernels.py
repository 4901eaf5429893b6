"""Each kernel gives the values and gradients of the plain expression, in float32."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from core.training.backend import attention_backend, frontend_version
from core.training.compiler import configure_compiler, prepare_compiler
from core.training.kernels import (
    attention,
    squared_relu_mlp,
    windowed_attention,
)

B, T, H, D = 2, 512, 4, 128
BFLOAT16_ERROR = 0.006  # of a norm; what the kernels of torch show is 0.0025


def attended(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float) -> Tensor:
    """Return what windowed_attention is defined as, (B, T, H, D)."""
    position = torch.arange(q.size(1), device=q.device)
    back = position[:, None] - position  # (T, T) query, key
    products = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    products = products.masked_fill((back < 0) | (back > window), -math.inf)
    return torch.einsum("bhqk,bkhd->bqhd", products.softmax(-1), v)


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let torch's own warnings fail no test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return *function* as a trial compiles it."""
    with quiet():
        torch._dynamo.reset()
        configure_compiler()
        prepare_compiler()
        return torch.compile(function, dynamic=False)


def differences(
    function: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    inputs: Sequence[Tensor],
) -> list[float]:
    """Return how far output and gradients are from those of *plain* in float32."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    exact = [x.detach().float().requires_grad_() for x in inputs]
    expected = plain(*exact)
    grad = torch.randn_like(expected)
    with quiet():
        expected.backward(grad)
        found = function(*inputs)
        found.backward(grad.to(found.dtype))
    pairs = [(found.detach(), expected.detach())]
    pairs += [(x.grad, e.grad) for x, e in zip(inputs, exact, strict=True)]
    return [difference(found, expected) for found, expected in pairs]


@given(
    tokens=st.integers(1, 12),
    window=st.integers(0, 14),
    scale=st.sampled_from([None, 0.3]),
)
def test_each_token_reads_from_itself_and_from_as_many_before_it_as_the_window_says(
    tokens, window, scale
):
    q, k, v = torch.randn(3, 2, tokens, 2, 8).unbind()

    found = windowed_attention(q, k, v, window, scale)

    expected = attended(q, k, v, window, 8**-0.5 if scale is None else scale)
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_mlp_on_a_cpu_is_the_plain_expression():
    x, up, down = torch.randn(3, 5, 8), torch.randn(32, 8), torch.randn(8, 32)

    assert torch.equal(
        squared_relu_mlp(x, up, down),
        F.linear(F.relu(F.linear(x, up)).square(), down),
    )


def test_a_cpu_attends_by_torch_whatever_is_installed(monkeypatch):
    monkeypatch.setattr("core.training.backend.frontend_version", lambda: "1.32.0")

    assert attention_backend("cpu") == "sdpa"


@pytest.mark.parametrize(
    ("installed", "backend"),
    [(None, "sdpa + flex"), ("1.32.0", "cudnn-frontend 1.32.0")],
)
def test_the_context_of_a_gpu_names_what_attends_there(monkeypatch, installed, backend):
    monkeypatch.setattr("core.training.backend.frontend_version", lambda: installed)

    assert attention_backend("cuda") == backend


def on_gpu(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("installed", "usable"),
    [("1.32.0", "1.32.0"), ("1.40.1", "1.40.1"), ("2.0", "2.0"), ("1.18.0", None)],
)
def test_a_frontend_that_is_too_old_is_not_used(monkeypatch, installed, usable):
    monkeypatch.setattr("core.training.backend.version", lambda name: installed)

    assert frontend_version() == usable


@pytest.mark.gpu
@pytest.mark.parametrize("has_frontend", [False, True])
@pytest.mark.parametrize("window", [0, 200, T - 1])
@pytest.mark.parametrize("is_packed", [False, True], ids=["apart", "of one product"])
def test_attention_on_a_gpu_has_the_values_and_gradients_of_the_definition(
    monkeypatch, has_frontend, window, is_packed
):
    if has_frontend and not attention.HAS_FRONTEND:
        pytest.skip("the extra fast is not installed")
    monkeypatch.setattr(attention, "HAS_FRONTEND", has_frontend)
    qkv = on_gpu(B, T, 3 * H, D).split(H, dim=2)
    if not is_packed:
        qkv = [x.contiguous() for x in qkv]
    attend = compiled(windowed_attention)

    found = differences(
        lambda q, k, v: attend(q, k, v, window),
        lambda q, k, v: attended(q, k, v, window, D**-0.5),
        qkv,
    )

    # A token that reads from itself alone has no gradient of q and k.
    found = [error for error in found if math.isfinite(error)]
    assert max(found) < BFLOAT16_ERROR
    assert len(found) == (2 if window == 0 else 4)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("rows", "channels", "hidden"), [(512, 512, 2048), (100, 640, 2560), (33, 72, 200)]
)
def test_the_mlp_on_a_gpu_has_the_values_and_gradients_of_the_plain_expression(
    rows, channels, hidden
):
    x = on_gpu(3, rows, channels)
    up = on_gpu(hidden, channels) * channels**-0.5
    down = on_gpu(channels, hidden) * hidden**-0.5

    found = differences(
        compiled(squared_relu_mlp),
        lambda x, up, down: F.linear(F.relu(F.linear(x, up)).square(), down),
        (x, up, down),
    )

    assert max(found) < BFLOAT16_ERROR


@pytest.mark.gpu
def test_tied_matrices_and_a_nan_pass_through_the_mlp_on_a_gpu():
    x, up = on_gpu(64, 128), on_gpu(512, 128) * 128**-0.5

    found = differences(
        compiled(lambda x, up: squared_relu_mlp(x, up, up.T)),
        lambda x, up: F.linear(F.relu(F.linear(x, up)).square(), up.T),
        (x, up),
    )
    up[3, 5] = math.nan

    assert max(found) < BFLOAT16_ERROR
    assert squared_relu_mlp(x, up, up.T).isnan().any()
