"""Call ``train(run)`` with a few batches, and look at what its optimizers are given."""

import math
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from core.training.entry import crash_of, reset_random_state
from core.training.gate.alarm import alarm, ring
from core.training.gate.finding import RAISES, Broken, raised
from core.training.run import Run

HAND_OUTS = 3
# Looked at when a parameter got no gradient in the first ones: a block may be left out by
# chance, or an expert not be chosen.
MORE_HAND_OUTS = 16
MORE_LONG_HAND_OUTS = 5  # where a row is LONG
LONG = 512  # tokens
MOST_ASKS = 16  # for batches, after the end: one for each size that is gone through
MOST_TOKENS = 2**24  # in a batch; ten times this would not fit a GPU either


class HandOuts(Run):
    """A run of a few batches of random tokens that notices who does not stop.

    Args:
        seed: Keys everything random.
        steps: Batches that are handed out in all.
        sequence_len: Tokens a row, without the last target.
        vocab_size: Tokens are below it.
        patience_seconds: How long ``train(run)`` may go on after the end.

    Attributes:
        steps: As given.
        patience_seconds: As given.
        taken: Batches that were handed out.
        losses: What was logged.
    """

    def __init__(
        self,
        *,
        seed: int,
        steps: int,
        sequence_len: int,
        vocab_size: int,
        patience_seconds: float,
    ) -> None:
        super().__init__(device=torch.device("cpu"), seed=seed)
        self.steps = steps
        self.patience_seconds = patience_seconds
        self.taken = 0
        self.losses: list[float] = []
        self._sequence_len = sequence_len
        self._vocab_size = vocab_size
        self._asked_after = 0
        self._draws = self.generator("rehearsal")

    def batches(self, rows: int) -> Iterator[Tensor]:
        """Yield random token ids, int64 of shape (rows, T + 1), until the end."""
        if not isinstance(rows, int) or rows < 1:
            raise Broken(
                "training",
                f"train(run) asked for batches of {rows!r} rows. Expected a whole "
                "number, 1 or more.",
            )
        if rows * self._sequence_len > MOST_TOKENS:
            raise Broken(
                "training",
                f"train(run) asked for batches of {rows} rows of {self._sequence_len} "
                f"tokens. Expected at most {MOST_TOKENS} tokens.",
            )
        return _Batches(self, rows)

    def next_batch(self, rows: int) -> Tensor:
        """Return a batch.

        Raises:
            StopIteration: The run has ended.
            Broken: It had ended long ago.
        """
        if self.taken == self.steps:
            self._asked_after += 1
            if self._asked_after == 1:
                ring(self.patience_seconds)
            if self._asked_after > MOST_ASKS:
                raise Broken(
                    "training",
                    f"train(run) asked for a batch {self._asked_after} times after the "
                    "run had ended. Its loop must end where run.batches(rows) does.",
                )
            raise StopIteration
        self.progress = self.taken / self.steps
        self.taken += 1
        shape = (rows, self._sequence_len + 1)
        return torch.randint(self._vocab_size, shape, generator=self._draws)

    def log(self, loss: Tensor) -> None:
        """Note a step's mean training loss in nats, a scalar."""
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
            raise Broken(
                "training",
                f"run.log(loss) got {type(loss).__name__}{shape}. Expected a tensor "
                "with one number.",
            )
        self.losses.append(loss.detach().float().item())


@attrs.define
class _Batches:
    """An iterator and no generator: one that has ended would not notice who asks on."""

    run: HandOuts
    rows: int

    def __iter__(self) -> "_Batches":
        return self

    def __next__(self) -> Tensor:
        return self.run.next_batch(self.rows)


def trained(module: ModuleType, run: HandOuts, seed: int) -> nn.Module:
    """Call ``train(run)`` as a trial does; return its model.

    Raises:
        Broken: It raises, does not end, or returns something else.
    """
    when = "" if run.taken < run.steps else " without a batch"

    def goes_on(line: str) -> str:
        return (
            f"{run.patience_seconds:.1f} s after the run had ended, train(run) goes on"
            f"{line}. Its loop must end where run.batches(rows) does."
        )

    try:
        with alarm(module, "training", goes_on):
            reset_random_state(seed)
            model = module.train(run)
    except RAISES as error:
        if crash_of(error) == "oom":
            raise
        raise Broken(
            "training", f"train(run){when} raises {raised(error, module)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise Broken(
            "training",
            f"train(run){when} returns {type(model).__name__}. Expected the model, an "
            "nn.Module.",
        )
    return model


def check_losses(run: HandOuts) -> None:
    """Check that each batch was followed by a loss.

    Raises:
        Broken: There is no batch, or not as many losses.
    """
    if not run.taken:
        raise Broken(
            "training",
            "train(run) took no batch. Expected a step for each of run.batches(rows).",
        )
    if len(run.losses) != run.taken:
        raise Broken(
            "training",
            f"train(run) took {run.taken} batches and logged {len(run.losses)} losses. "
            "run.log(loss) belongs after each batch of run.batches(rows).",
        )


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
            f"steps{more}. Use it in the loss, or leave it out.",
        )


def _has_closure(args: tuple, kwargs: dict) -> bool:
    """Say whether a step computes its own gradients; args[0] is the optimizer."""
    return any(map(callable, (*args[1:], *kwargs.values())))


def _weights(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _name(weight: Tensor, names: dict[int, str]) -> str:
    return names.get(id(weight), f"a parameter of shape {tuple(weight.shape)}")
