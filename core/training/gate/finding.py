"""What a gate finds, in the words that a user reads."""

import math
import traceback
from types import ModuleType

import attrs
import torch
from torch import Tensor

MOST_CHARACTERS = 600
# Logits that are zero but for rounding differ by no share of themselves.
LEAST_NATS = 1e-6
# Whatever a module raises, but not what stops it: an interrupt, or `Broken`.
RAISES = (Exception, SystemExit)


def printable(text: str) -> str:
    """Return *text* in one line, without what a terminal would obey."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return shown[:MOST_CHARACTERS]


@attrs.frozen
class Breach:
    """The first way in which a module breaks the contract.

    Attributes:
        check: ``training``, ``gradients``, ``causality``, ``rows``, ``purity`` or
            ``shape``.
        message: What was seen, with the shrunk example; it starts with the check.
    """

    check: str
    message: str = attrs.field(converter=printable)


class Broken(BaseException):
    """Carry a breach past every ``except Exception`` of the module."""

    def __init__(self, check: str, message: str) -> None:
        self.breach = Breach(check, f"{check}: {message}")
        super().__init__(self.breach.message)


def raised(error: BaseException, module: ModuleType) -> str:
    """Return what *error* says and which line of *module* it came through."""
    text = str(error).strip() or "no message"
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == module.__file__
    ]
    place = f" (line {lines[-1]} of the mutated module)" if lines else ""
    return f"{type(error).__name__}: {text.splitlines()[0]}{place}"


@attrs.frozen(kw_only=True)
class Change:
    """Two answers for one row that should be the same: where they differ most.

    Attributes:
        position: In the row.
        token: Whose logit it is.
        before: That logit in the first answer.
        after: And in the second.
    """

    position: int
    token: int
    before: float
    after: float

    @property
    def size(self) -> float:
        """How far the logit has moved."""
        return abs(self.after - self.before)

    @property
    def moved(self) -> str:
        """The logit before and after, with the decimals that tell them apart."""
        decimals = 2
        if 0 < self.size < math.inf:
            decimals = max(decimals, 1 - math.floor(math.log10(self.size)))
        shown = f"{self.before:.{decimals}f} -> {self.after:.{decimals}f}"
        return f"token {self.token}: {shown}"


def change(before: Tensor, after: Tensor, tolerance: float) -> Change | None:
    """Return how the logits of a row, both (T, V), differ, if they do.

    Args:
        before: The first answer.
        after: The second one.
        tolerance: Share of the largest logit that rounding may move.
    """
    if torch.equal(before, after):
        return None
    is_same = (before == after) | (before.isnan() & after.isnan())
    differences = (after - before).abs().nan_to_num(nan=math.inf)
    differences = differences.masked_fill(is_same, 0.0)
    largest = before.abs().nan_to_num(posinf=0.0).max().item()
    if differences.max().item() <= LEAST_NATS + tolerance * largest:
        return None
    position, token = divmod(int(differences.argmax()), before.size(1))
    return Change(
        position=position,
        token=token,
        before=before[position, token].item(),
        after=after[position, token].item(),
    )
