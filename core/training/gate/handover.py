"""Between training and the first question: weights go out, come in, the mode changes.

None of it is on a clock, so none of it may do anything else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor, nn

from core.training.gate.alarm import alarm, ring
from core.training.gate.finding import RAISES, Broken, raised

PATIENCE_SECONDS = 2.0  # of CPU time, for what takes next to none


def state(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers, by what a user calls them."""
    parameters = {f"the parameter {n}": w for n, w in model.named_parameters()}
    buffers = {f"the buffer {n}": values for n, values in model.named_buffers()}
    return {n: v.detach().clone() for n, v in (parameters | buffers).items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Return the names of tensors that are new, or hold other bits."""
    return [
        name
        for name, values in after.items()
        if name not in before or not _is_same(values, before[name])
    ]


def _is_same(first: Tensor, second: Tensor) -> bool:
    """Say whether two tensors hold the same bits; a NaN is like itself then."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return torch.equal(_bits(first), _bits(second))


def _bits(values: Tensor) -> Tensor:
    return values.detach().contiguous().flatten().view(torch.uint8)


def evaluate(module: ModuleType, model: nn.Module) -> None:
    """Put *model* into evaluation mode, as the server does.

    Raises:
        Broken: It raises, takes long, or changes a parameter or a buffer.
    """
    model.train()
    before = state(model)
    with _timed(module, "model.eval()", "choose the mode"):
        model.eval()
    _check_same("model.eval()", "choose the mode", changed(before, state(model)))


def hand_over(module: ModuleType, trained: nn.Module, fresh: nn.Module) -> None:
    """Load the weights of *trained* into *fresh*, as trainer and server do.

    Raises:
        Broken: They don't fit, or what hands them over does something else.
    """
    before = state(trained)
    with _timed(module, "model.state_dict()", "hand out the weights"):
        weights = {n: w.detach().clone() for n, w in trained.state_dict().items()}
    found = changed(before, state(trained))
    _check_same("model.state_dict()", "hand out the weights", found)
    _check_fit(fresh.state_dict(), weights)
    with _timed(module, "model.load_state_dict()", "take the weights"):
        fresh.load_state_dict(weights)
    found = [f"the weight {n}" for n in changed(weights, fresh.state_dict())]
    _check_same("model.load_state_dict()", "take the weights", found)


@contextmanager
def _timed(module: ModuleType, call: str, duty: str) -> Iterator[None]:
    def goes_on(line: str) -> str:
        return (
            f"{call} has not ended after {PATIENCE_SECONDS:.1f} s of CPU time{line}. It "
            f"may do nothing but {duty}."
        )

    try:
        with alarm(module, "purity", goes_on):
            ring(PATIENCE_SECONDS)
            yield
    except RAISES as error:
        raise Broken("purity", f"{call} raises {raised(error, module)}") from error


def _check_same(call: str, duty: str, found: list[str]) -> None:
    if found:
        raise Broken(
            "purity", f"{call} changes {found[0]}. It may do nothing but {duty}."
        )


def _check_fit(fresh: dict[str, Tensor], trained: dict[str, Tensor]) -> None:
    only = sorted(fresh.keys() ^ trained.keys())
    if only:
        name = only[0]
        has, lacks = ("trained", "fresh") if name in trained else ("fresh", "trained")
        raise Broken(
            "training",
            f"the {has} model has a weight {name} and the {lacks} one has not. What is "
            "scored is a fresh model, of train(run) without a batch, with the trained "
            "weights.",
        )
    for name, weight in fresh.items():
        if weight.shape != trained[name].shape:
            raise Broken(
                "training",
                f"{name} has the shape {tuple(trained[name].shape)} in the trained "
                f"model and {tuple(weight.shape)} in a fresh one. What is scored is a "
                "fresh one with the trained weights.",
            )
