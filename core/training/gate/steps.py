"""Look at what optimizers are given, and when they step."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import attrs
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from core.training.gate.finding import Broken
from core.training.gate.rehearse import HandOuts


@attrs.frozen(kw_only=True)
class _Odd:
    """A number that is not finite: of a parameter, at a step."""

    weight: Tensor
    what: str
    value: float
    step: int


class Steps:
    """Watch every optimizer: what it owns, and what it is given.

    Used as a context manager around ``train(run)``; counts steps in *examples*.
    """

    def __init__(self, run: HandOuts, examples: Counter[str]) -> None:
        self._examples = examples
        self._run = run
        self._owned: dict[int, Tensor] = {}  # by id; holding on to them keeps ids apart
        self._with_gradient: set[int] = set()
        # Steps of each optimizer: for each batch, and after the end.
        self._steps: dict[Optimizer, Counter[int]] = defaultdict(Counter)
        self._late: dict[Optimizer, int] = Counter()
        self._odd: _Odd | None = None

    def __enter__(self) -> "Steps":
        self._hooks = (
            register_optimizer_step_pre_hook(self._before),
            register_optimizer_step_post_hook(self._after),
        )
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # Before: an optimizer may fill in zeros where there is no gradient.
        if not _has_closure(args, kwargs):
            self._look(optimizer)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if _has_closure(args, kwargs):  # gradients came within the step
            self._look(optimizer)
        for weight in _weights(optimizer):
            self._note(weight, weight.detach(), "")
            # A step may fetch its gradients itself, from weights of less precision.
            if weight.grad is not None and weight.grad.any():
                self._with_gradient.add(id(weight))
        if self._run.has_ended:
            self._late[optimizer] += 1
        else:
            self._steps[optimizer][self._run.taken] += 1

    def _look(self, optimizer: Optimizer) -> None:
        self._examples["gradients"] += 1
        for weight in _weights(optimizer):
            if not weight.requires_grad:  # frozen, for now or for good
                continue
            self._owned[id(weight)] = weight
            if weight.grad is not None:
                self._with_gradient.add(id(weight))
                self._note(weight, weight.grad, "the gradient of ")

    def _note(self, weight: Tensor, values: Tensor, what: str) -> None:
        if values.is_sparse:
            values = values.coalesce().values()
        odd = values[~values.isfinite()]
        if self._odd is None and odd.numel():
            self._odd = _Odd(
                weight=weight, what=what, value=odd[0].item(), step=self._run.taken
            )

    def check(self, model: nn.Module) -> None:
        """Check losses, gradients and parameters, in the order of the steps.

        Raises:
            Broken: One is not finite.
        """
        names = {id(weight): name for name, weight in model.named_parameters()}
        odd_losses = [
            (step, loss)
            for step, loss in enumerate(self._run.losses, 1)
            if not math.isfinite(loss)
        ]
        odd = self._odd
        if odd_losses and (odd is None or odd_losses[0][0] <= odd.step):
            step, loss = odd_losses[0]
            raise Broken(
                "training",
                f"the loss of step {step} is {loss}. Expected a finite number.",
            )
        if odd is not None:
            raise Broken(
                "gradients",
                f"{odd.what}{_name(odd.weight, names)} is {odd.value} at step "
                f"{odd.step}. Expected finite numbers.",
            )

    def check_end(self) -> None:
        """Check that no step was taken off the clock.

        Who fetches a batch ahead of time takes the steps of the last one after the end.

        Raises:
            Broken: An optimizer has taken more than that.
        """
        for optimizer, late in self._late.items():
            usual = max(self._steps[optimizer].values(), default=0)
            if late > usual:
                raise Broken(
                    "training",
                    f"{type(optimizer).__name__} takes {_counted(late)} after the run had "
                    f"ended, and {_counted(usual)} for a batch. Each step needs a batch.",
                )

    def without_gradient(self, model: nn.Module) -> list[str]:
        """Return each parameter that an optimizer owns and that got no gradient."""
        names = {id(weight): name for name, weight in model.named_parameters()}
        return [
            _name(weight, names)
            for key, weight in self._owned.items()
            if key not in self._with_gradient
        ]


def check_use(names: list[str], steps: int) -> None:
    """Check that no parameter is left without a gradient.

    Args:
        names: Of those that are.
        steps: In which none of them got one.

    Raises:
        Broken: There are some.
    """
    if names:
        first, *others = names
        more = ""
        if others:
            is_one = len(others) == 1
            more = f", nor {'does 1 other' if is_one else f'do {len(others)} others'}"
        raise Broken(
            "gradients",
            f"an optimizer owns {first}, which gets no gradient in {steps} "
            f"steps{more}. Use it in the loss, or leave it out; what begins later has to "
            "begin by run.progress.",
        )


def _counted(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def _has_closure(args: tuple, kwargs: dict) -> bool:
    """Say whether a step computes its own gradients; args[0] is the optimizer."""
    return any(map(callable, (*args[1:], *kwargs.values())))


def _weights(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _name(weight: Tensor, names: dict[int, str]) -> str:
    return names.get(id(weight), f"a parameter of shape {tuple(weight.shape)}")
