"""Look at what an edited module does, tiny and on a CPU, before any trial.

It is no barrier: who means to, can tell an examination from a trial.  It finds mistakes
in seconds, and shows them in the smallest example; the judge looks at every model.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType

import attrs
from torch import nn

from core.training.gate.answers import (
    REPLACED,
    WAYS,
    check_purity,
    check_rows,
    check_same,
)
from core.training.gate.causality import SUFFIX, TOKEN, check_causality, check_forecast
from core.training.gate.finding import Breach, Broken
from core.training.gate.handover import evaluate
from core.training.gate.rehearse import (
    HandOuts,
    check_losses,
    hand_outs,
    trained,
)
from core.training.gate.steps import Steps, check_use
from core.training.gate.subject import Subject

__all__ = ["CHECKS", "Breach", "Examination", "examine"]

CHECKS = ("shape", "training", "gradients", "purity", "rows", "causality")  # in order
DRAWS = (0, 1)  # of random parameters, opposite ones, tried whatever it takes
MORE_DRAWS = 2  # while there is time
MORE_EXAMPLES = 2  # of causality, for each span of each draw
SHRINKING = 0.2  # share of the time in which a smaller example is looked for


@attrs.frozen(kw_only=True)
class Examination:
    """What an examination has found, and how much it has tried.

    Attributes:
        breach: The first that was found, if any.
        examples: Answers that each check has compared; steps of optimizers for
            ``gradients``, batches for ``training``.
        without_random: Whether no random parameters left the model sane: then a gate
            that training had not opened yet stayed closed.
        cut_short: Whether time ended it after the least that it tries.
    """

    breach: Breach | None
    examples: Mapping[str, int]
    without_random: bool
    cut_short: bool


def examine(
    module: ModuleType,
    *,
    seed: int,
    sequence_len: int,
    vocab_size: int,
    seconds: float,
    began: Callable[[str], None] = lambda check: None,
) -> Examination:
    """Return the first breach of the contract by *module*, the cheapest to find first.

    The same seed tries the same examples in the same order; time decides how many, from
    a least number on.  A ``train(run)`` that goes on after its end is stopped by a
    signal, in the main thread; one that never gets there, or hides in an extension, is
    the caller's to end.

    What it leaves behind in the process (threads, replaced functions, memory) stays:
    run it in a process of its own, confined as a trial is.

    Args:
        module: The training module, imported, in sizes for a CPU.
        seed: Keys everything random.
        sequence_len: T of every row.
        vocab_size: Tokens are below it.
        seconds: After which no more examples are begun.
        began: Told of each check before it begins, for whoever must say what hangs.

    Raises:
        MemoryError, RuntimeError: There is no memory left.
    """
    examination = _Examination(
        module=module,
        seed=seed,
        sequence_len=sequence_len,
        vocab_size=vocab_size,
        seconds=seconds,
        began=began,
    )
    breach = None
    try:
        examination.go()
    except Broken as broken:
        breach = broken.breach
    return Examination(
        breach=breach,
        examples=dict(examination.examples),
        without_random=examination.without_random,
        cut_short=examination.cut_short,
    )


class _Examination:
    """An examination that is under way."""

    def __init__(
        self,
        *,
        module: ModuleType,
        seed: int,
        sequence_len: int,
        vocab_size: int,
        seconds: float,
        began: Callable[[str], None],
    ) -> None:
        self.examples = Counter(dict.fromkeys(CHECKS, 0))
        self.without_random = False
        self.cut_short = False
        self._module = module
        self._sizes = {
            "seed": seed,
            "sequence_len": sequence_len,
            "vocab_size": vocab_size,
        }
        self._seed = seed
        self._seconds = seconds
        self._ends_at = time.monotonic() + seconds
        self._began = began

    def go(self) -> None:
        """Try everything, in order.

        Raises:
            Broken: Something fails.
        """
        fresh = self._train(self._run(steps=0))
        subject = Subject(self._module, fresh, **self._sizes, examples=self.examples)
        self._began("purity")
        evaluate(self._module, subject.model)
        self._began("shape")
        asked = subject.rows(1, "shape")
        logits = subject.check_shape(asked)
        self._began("purity")
        check_purity(subject)
        first, more = hand_outs(self._sizes["sequence_len"])
        model, unused = self._rehearse(first)
        if unused:
            _, still = self._rehearse(more)
            check_use([name for name in unused if name in still], first + more)
        self._began("purity")
        check_same(subject, asked, logits)
        subject.load(model)
        evaluate(self._module, subject.model)
        self._began("shape")
        subject.check_shape(subject.rows(1, "trained"))
        self._ask(subject, number=0, ways=WAYS, most=1)
        check_forecast(subject)
        for draw in DRAWS:
            if subject.use_random(draw):
                self._ask(subject, number=1 + draw, ways=[REPLACED], most=1)
            else:
                self.without_random = True
        for draw in range(len(DRAWS), len(DRAWS) + MORE_DRAWS):
            if time.monotonic() >= self._ends_at:
                self.cut_short = True
                return
            if subject.use_random(draw):
                self._ask(subject, number=1 + draw, ways=[], most=MORE_EXAMPLES)

    def _run(self, steps: int) -> HandOuts:
        return HandOuts(**self._sizes, steps=steps)

    def _train(self, run: HandOuts) -> nn.Module:
        self._began("training")
        try:
            return trained(self._module, run, self._seed)
        finally:
            self.examples["training"] += run.taken

    def _rehearse(self, steps: int) -> tuple[nn.Module, list[str]]:
        """Return the model after so many steps, and what got no gradient in any."""
        run = self._run(steps)
        with Steps(run, self.examples) as watched:
            model = self._train(run)
        watched.check_end()
        check_losses(run)
        self._began("gradients")
        watched.check(model)
        return model, watched.without_gradient(model)

    def _ask(
        self, subject: Subject, *, number: int, ways: Iterable[str], most: int
    ) -> None:
        """Ask the model with the weights that it has now."""
        limits = {"ends_at": self._ends_at, "seconds": SHRINKING * self._seconds}
        if ways:
            if subject.draw is not None:
                self._began("purity")
                check_purity(subject)
            self._began("rows")
            check_rows(subject, ways=ways, **limits)
        self._began("causality")
        for span in (TOKEN, SUFFIX):
            check_causality(subject, span=span, number=number, most=most, **limits)
