"""Call ``train(run)`` with a few batches, and see that it keeps to them."""

import threading
from collections.abc import Iterator
from types import ModuleType

import attrs
import torch
from torch import Tensor, nn

from core.training.entry import crash_of, reset_random_state
from core.training.gate.alarm import alarm, ring
from core.training.gate.finding import RAISES, Broken, raised
from core.training.gate.handover import PATIENCE_SECONDS
from core.training.run import Run

HAND_OUTS = 12
LONG_HAND_OUTS = 3  # where rows are long
# If a parameter gets no gradient in these: a block may be left out by chance, an expert
# not be chosen.
MORE_HAND_OUTS = 16
MORE_LONG_HAND_OUTS = 5
LONG = 512  # tokens of a row
MOST_ASKS = 16  # for batches, after the end: one for each size that is gone through
MOST_TOKENS = 2**24  # in a batch; ten times this would not fit a GPU either


def hand_outs(sequence_len: int) -> tuple[int, int]:
    """Return how many batches are handed out, and how many more in doubt."""
    if sequence_len < LONG:
        return HAND_OUTS, MORE_HAND_OUTS
    return LONG_HAND_OUTS, MORE_LONG_HAND_OUTS


class HandOuts(Run):
    """A run of a few batches of random tokens that notices who does not stop.

    Args:
        seed: Keys everything random.
        steps: Batches that are handed out in all.
        sequence_len: Tokens a row, without the last target.
        vocab_size: Tokens are below it.

    Attributes:
        steps: As given.
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
    ) -> None:
        super().__init__(device=torch.device("cpu"), seed=seed)
        self.steps = steps
        self.taken = 0
        self.losses: list[float] = []
        self._sequence_len = sequence_len
        self._vocab_size = vocab_size
        self._asked_after = 0
        self._draws = self.generator("rehearsal")

    @property
    def has_ended(self) -> bool:
        """Whether somebody has been told that there are no more batches."""
        return self._asked_after > 0

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
                ring(PATIENCE_SECONDS)
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
    when = "" if run.steps else " without a batch"
    threads = set(threading.enumerate())

    def goes_on(line: str) -> str:
        return (
            f"{PATIENCE_SECONDS:.1f} s of CPU time after the run had ended, "
            f"train(run) goes on{line}. Its loop must end where run.batches(rows) does."
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
    left = [thread for thread in threading.enumerate() if thread not in threads]
    if left:
        raise Broken(
            "training",
            f"train(run){when} leaves a thread running, {left[0].name}. All that it does "
            "must end before it returns.",
        )
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
