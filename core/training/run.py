"""What a training module may ask for: batches, progress, random numbers, a place to log.

``train(run)`` is called three times in the life of a trial, each time with another kind
of run: a `Rehearsal` that compiles everything, the `Training` that counts, and, in the
fresh server process, a bare `Run` without a single batch, which yields the architecture
that the weights are loaded into.
"""

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from core.training.data.order import keyed

UNDER_WAY = 1  # steps at a hand-out: CUDA runs ahead, and must not outrun the clock


class NonFiniteLoss(ArithmeticError):
    """The training loss is no longer a finite number."""


class Run:
    """A run without a batch, and what every run offers.

    Attributes:
        device: Where model and batches live.
        progress: Share of the budget, 0 to 1, that had passed at the last hand-out.
    """

    def __init__(self, *, device: torch.device, seed: int) -> None:
        self.device = device
        self.progress = 0.0
        self._seed = seed

    def generator(self, name: str) -> torch.Generator:
        """Return a CPU generator for what is called *name*, keyed by the seed."""
        return torch.Generator().manual_seed(keyed(self._seed, name))

    def batches(self, rows: int) -> Iterator[Tensor]:
        """Yield token ids, int64 of shape (rows, T + 1), one hand-out an optimizer step.

        Ends when the budget does.
        """
        yield from ()

    def log(self, loss: Tensor) -> None:
        """Note the step's mean training loss in nats, a scalar; it is read later."""


class Rehearsal(Run):
    """A few steps on random tokens, so that all is compiled before the clock starts."""

    def __init__(
        self,
        *,
        device: torch.device,
        seed: int,
        steps: int,
        sequence_len: int,
        vocab_size: int,
    ) -> None:
        super().__init__(device=device, seed=seed)
        self._steps = steps
        self._sequence_len = sequence_len
        self._vocab_size = vocab_size

    def batches(self, rows: int) -> Iterator[Tensor]:
        """Yield random token ids, int64 of shape (rows, T + 1)."""
        generator = self.generator("rehearsal")
        for step in range(self._steps):
            self.progress = step / self._steps
            shape = (rows, self._sequence_len + 1)
            ids = torch.randint(self._vocab_size, shape, generator=generator)
            yield ids.to(self.device)


class Training(Run):
    """The run that counts: rows of the training map, for as long as they are handed out.

    Args:
        device: Where model and batches live.
        seed: Keys everything random.
        ask: Called with a number of rows; returns that many, uint16 of shape (rows,
            T + 1), with the share of the budget that has passed, or None when it is
            over.  The first call starts the clock.
        report: Called with the loss in nats, once for each step.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        seed: int,
        ask: Callable[[int], tuple[np.ndarray, float] | None],
        report: Callable[[float], None],
    ) -> None:
        super().__init__(device=device, seed=seed)
        self._ask = ask
        self._report = report
        self._losses: deque[Tensor] = deque()
        self._queued: deque[torch.cuda.Event] = deque()
        self._tokens = 0
        self._handed_out = 0
        self._logged = 0

    def batches(self, rows: int) -> Iterator[Tensor]:
        """Yield training rows, int64 of shape (rows, T + 1), until the budget is over.

        Who asks again, for another number of rows, goes on where it was.
        """
        while True:
            self._await_queue()
            self._read_losses(left=UNDER_WAY)
            handed_out = self._ask(rows)
            if handed_out is None:
                return
            chosen, self.progress = handed_out
            ids = torch.from_numpy(chosen.astype(np.int64))
            self._tokens += rows * (ids.shape[1] - 1)
            self._handed_out += 1
            yield ids.to(self.device, non_blocking=True)

    def log(self, loss: Tensor) -> None:
        """Note the step's mean training loss in nats, a scalar; it is read later."""
        self._losses.append(loss.detach().float())
        self._logged += 1

    def finish(self) -> None:
        """Wait for the device and report the last steps.

        Raises:
            RuntimeError: No batch was taken, or not each one was followed by a loss.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._read_losses(left=0)
        if not self._handed_out or self._logged != self._handed_out:
            raise RuntimeError(
                f"train(run) took {self._handed_out} batches and logged {self._logged} "
                "losses: run.log(loss) belongs after each batch of run.batches(rows)"
            )

    def _await_queue(self) -> None:
        """Wait for the step two before the one to come, whatever that has logged."""
        if self.device.type != "cuda":
            return
        if len(self._queued) == UNDER_WAY:
            self._queued.popleft().synchronize()
        event = torch.cuda.Event()
        event.record()
        self._queued.append(event)

    def _read_losses(self, left: int) -> None:
        """Report the losses of all but the latest *left* steps; this waits for them."""
        while len(self._losses) > left:
            value = self._losses.popleft().item()
            self._report(value)
            if not np.isfinite(value):
                raise NonFiniteLoss(
                    f"the training loss is {value} after {self._tokens} tokens"
                )
