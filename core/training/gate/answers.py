"""Rows and purity: an answer depends on the row that is asked, and on nothing else."""

from collections.abc import Iterable
from functools import lru_cache

import attrs
import hypothesis.strategies as st
from torch import Tensor

from core.training.data.order import keyed
from core.training.entry import reset_random_state
from core.training.gate.finding import Broken, Change, change
from core.training.gate.handover import changed, state
from core.training.gate.search import search
from core.training.gate.subject import Subject

# Shares of the largest logit.  Honest float32 models on a CPU (attention, recurrence,
# convolution, routed experts, autocast to bfloat16; T of 128 and 2048; 1 and 2 threads)
# answer a row to the bit alike, whatever the other rows of a batch of this size hold ...
SAME_SIZE = 5e-4
# ... and to 5e-7 in a batch of another size or in another place of it.  There bfloat16,
# with a step of 4e-3, may round otherwise, and a router may choose otherwise at a tie.
OTHER_SIZE = 2e-2
TIES = 3  # rows that must all answer otherwise before that is no tie

COMPANY_TOKENS = 512  # that are asked at a time; at least two rows
MORE_EXAMPLES = 3  # beside the simplest one, where rows are short
LONG = 512  # tokens of a row, from which only the simplest one is tried, in one way


@attrs.frozen(kw_only=True)
class Company:
    """A row among others: how many there are, which it is, what they hold."""

    rows: int
    place: int
    drawn: int


def companies(most_rows: int) -> st.SearchStrategy[Company]:
    """Return batches of two to *most_rows* rows."""
    return st.builds(
        lambda rows, place, drawn: Company(rows=rows, place=place % rows, drawn=drawn),
        st.integers(2, most_rows),
        st.integers(0, most_rows - 1),
        st.integers(0, 2**16),
    )


def check_rows(
    subject: Subject, *, ways: Iterable[str], ends_at: float, seconds: float
) -> None:
    """Check that a row is answered alike in other company.

    Args:
        subject: With the weights that are to be looked at.
        ways: Of `WAYS`, how the company changes; where rows are long, the first alone.
        ends_at: On the monotonic clock.
        seconds: That a smaller example may be looked for.

    Raises:
        Broken: It is not.
    """
    T = subject.sequence_len

    @lru_cache(maxsize=TIES)
    def batch(company: Company) -> tuple[Tensor, Tensor]:
        ids = subject.rows(company.rows, f"company {company.drawn}")
        return ids, subject.ask(ids)

    def answer(company: Company, way: str) -> Change | None:
        ids, logits = batch(company)
        fresh = subject.rows(company.rows, f"other company {company.drawn}")
        others, place = WAYS[way](ids, fresh, company.place)
        subject.examples["rows"] += 1
        tolerance = SAME_SIZE if way == REPLACED else OTHER_SIZE
        return change(logits[company.place], subject.ask(others)[place], tolerance)

    def judged(company: Company, way: str) -> str | None:
        found = answer(company, way)
        if found is None:
            return None
        if way != REPLACED:
            again = (attrs.evolve(company, drawn=-tie) for tie in range(1, TIES))
            if not all(answer(other, way) for other in again):
                return None
        with_random = " and random parameters" if subject.draw is not None else ""
        return (
            f"with {way.format(rows=company.rows)}{with_random}, the logits of row "
            f"{company.place} at position {found.position} change by {found.size:.2g} "
            f"({found.moved}). A row may only see itself."
        )

    for way in ways if T < LONG else [REPLACED]:
        search(
            companies(max(2, COMPANY_TOKENS // T)),
            lambda company, way=way: judged(company, way),
            check="rows",
            seed=keyed(subject.seed, f"rows {way} {subject.draw}"),
            most=1 if T >= LONG else 1 + MORE_EXAMPLES,
            ends_at=ends_at,
            shrink_seconds=seconds,
        )


def _replaced(ids: Tensor, fresh: Tensor, place: int) -> tuple[Tensor, int]:
    fresh[place] = ids[place]
    return fresh, place


def _alone(ids: Tensor, fresh: Tensor, place: int) -> tuple[Tensor, int]:
    return ids[place : place + 1], 0


def _moved(ids: Tensor, fresh: Tensor, place: int) -> tuple[Tensor, int]:
    return ids.roll(1, 0), (place + 1) % len(ids)


# How the company of a row changes: the ids of a batch, others, and the place of the row
# -> what is asked instead, and where the row is in that.
REPLACED = "other rows in the rest of a batch of {rows}"
WAYS = {
    REPLACED: _replaced,
    "the {rows} rows of the batch in another order": _moved,
    "no other row instead of a batch of {rows}": _alone,
}


def check_purity(subject: Subject) -> None:
    """Check that answers do not depend on what was asked before, nor on chance.

    Raises:
        Broken: The same rows are answered otherwise, or a parameter or buffer changes.
    """
    rows = max(1, COMPANY_TOKENS // subject.sequence_len)
    asked, others = subject.rows(2 * rows, "purity").split(rows)
    before = state(subject.model)

    def answer(chance: int) -> Tensor:
        reset_random_state(chance)
        return subject.ask(asked)

    first = answer(1)
    subject.ask(others)
    again = answer(2)
    subject.examples["purity"] += rows
    found = _first_change(first, again)
    if found is not None:
        is_chance = not _first_change(answer(1), answer(1)) and _first_change(
            answer(1), answer(2)
        )
        how = "from another random state of torch" if is_chance else "after others"
        raise Broken("purity", _otherwise(f"asked again {how}", subject, *found))
    for name in changed(before, state(subject.model)):
        raise Broken(
            "purity",
            f"questions change {name} of the model. In evaluation mode it may neither "
            "learn nor remember.",
        )


def check_same(subject: Subject, asked: Tensor, logits: Tensor) -> None:
    """Check that the model of a fresh process answers alike after others were trained.

    Args:
        subject: With the weights that it was built with.
        asked: Rows (B, T) that it was asked before.
        logits: What it answered then.

    Raises:
        Broken: It answers otherwise: something outside of the model decides.
    """
    found = _first_change(logits, subject.ask(asked))
    subject.examples["purity"] += len(asked)
    if found is not None:
        how = "asked again after train(run) has trained another model"
        raise Broken("purity", _otherwise(how, subject, *found))


def _otherwise(how: str, subject: Subject, row: int, found: Change) -> str:
    with_random = " with random parameters" if subject.draw is not None else ""
    return (
        f"{how}, the model{with_random} answers the same rows otherwise: the logits of "
        f"row {row} at position {found.position} change by {found.size:.2g} "
        f"({found.moved}). In evaluation mode only the row itself may decide."
    )


def _first_change(before: Tensor, after: Tensor) -> tuple[int, Change] | None:
    for row, (first, again) in enumerate(zip(before, after, strict=True)):
        if found := change(first, again, SAME_SIZE):
            return row, found
    return None
