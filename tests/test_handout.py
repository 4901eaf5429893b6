"""The batches of a trial: in which order, how many, and who can see them."""

import ast
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.device import cpu
from core.launch import Crash, Status
from core.launch.compile_cache import CompileCache
from core.launch.handout import HandOut
from core.launch.local import LOG, LocalTrial
from core.memory import allocate, hand_out_bytes, hand_out_rows, hand_out_view
from core.process.child import Zygote
from core.training.data import Prepared, open_rows
from core.training.data.order import order
from tests import test_launch
from tests.test_launch import QUICK, SEQUENCE_LEN, Runner, module, trial_of

data, run = test_launch.data, test_launch.run  # fixtures

T, ROWS, VOCAB_SIZE = 4, 37, 1000
SEVERAL = st.lists(st.integers(1, 60), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a map of rows that all differ."""
    path = tmp_path_factory.mktemp("rows") / "training.bin"
    rows = np.arange(ROWS * (T + 1), dtype=np.uint16).reshape(ROWS, T + 1)
    path.write_bytes(rows.tobytes())
    return path


class Shared:
    """The two ends of a hand-out: ours, and the memory as the trainer sees it."""

    def __init__(self, training: Path, seed: int) -> None:
        self.fd = allocate(hand_out_bytes(T))
        self.given = HandOut.open(training, T, VOCAB_SIZE, seed=seed, fd=self.fd)
        self.seen = hand_out_view(self.fd, T)

    def batch(self, rows: int) -> np.ndarray:
        assert self.given.give(rows)
        return self.seen[:rows].copy()


@pytest.fixture
def shared(training: Path) -> Iterator[Shared]:
    opened = Shared(training, seed=3)
    yield opened
    os.close(opened.fd)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**31), sizes=SEVERAL)
def test_rows_come_in_the_order_of_the_seed_whatever_the_sizes_of_the_batches(
    training: Path, seed: int, sizes: list[int]
):
    shared = Shared(training, seed)

    batches = [shared.batch(size) for size in sizes]

    os.close(shared.fd)
    rows = np.array(open_rows(training, T))
    expected = rows[list(islice(order(seed, ROWS), sum(sizes)))]
    assert [len(batch) for batch in batches] == sizes
    assert np.array_equal(np.concatenate(batches), expected)


@settings(max_examples=60)
@given(sizes=SEVERAL)
def test_the_tokens_after_a_step_are_those_of_its_batches_and_of_no_more(
    training: Path, sizes: list[int]
):
    shared = Shared(training, seed=0)
    before = shared.given.tokens_after(1)

    for size in sizes:
        shared.given.give(size)

    os.close(shared.fd)
    assert before is None
    tokens = [shared.given.tokens_after(step + 1) for step in range(len(sizes) + 1)]
    assert tokens == [*(np.cumsum(sizes) * T).tolist(), None]


def test_every_row_comes_once_before_any_comes_again(shared: Shared):
    epoch = shared.batch(ROWS)
    again = shared.batch(ROWS)

    assert len(np.unique(epoch[:, 0])) == ROWS
    assert len(np.unique(again[:, 0])) == ROWS
    assert not np.array_equal(epoch, again)


@pytest.mark.parametrize("rows", [0, -1, hand_out_rows(T) + 1])
def test_a_batch_that_does_not_fit_is_not_given_and_takes_nothing(
    shared: Shared, training: Path, rows: int
):
    first = shared.batch(2)

    given = shared.given.give(rows)

    assert not given
    assert shared.given.tokens_after(2) is None
    assert np.array_equal(shared.seen[:2], first)
    expected = list(islice(order(3, ROWS), 2, 4))
    assert np.array_equal(shared.batch(2), open_rows(training, T)[expected])


@given(sequence_len=st.integers(1, 2**17))
def test_the_memory_holds_the_largest_batch_and_no_row_more(sequence_len: int):
    rows = hand_out_rows(sequence_len)

    assert hand_out_bytes(sequence_len) == 2 * rows * (sequence_len + 1)
    assert rows >= 1


def test_memory_of_a_batch_keeps_its_size(shared: Shared):
    for size in (0, 2 * hand_out_bytes(T)):
        with pytest.raises(PermissionError):
            os.ftruncate(shared.fd, size)

    assert os.fstat(shared.fd).st_size == hand_out_bytes(T)


# --- in a trial

REMEMBERS = """
if is_real:
    print("batch", rows.tolist())
"""


def test_a_trainer_gets_the_rows_of_the_map_and_none_when_its_clock_has_ended(
    run: Runner, data: Prepared, tmp_path: Path
):
    result = run(module(REMEMBERS).replace("is_real and step == 1", "True"))

    assert result.status is Status.FINISHED, (result.message, result.log_tail)
    log = (tmp_path / "run" / LOG).read_text()
    batches = [
        ast.literal_eval(line)
        for line in re.findall(r"^batch (.+)$", log, re.MULTILINE)
    ]
    rows = np.array(open_rows(data.training, SEQUENCE_LEN))
    expected = rows[list(islice(order(0, len(rows)), 8 * len(batches)))]
    assert np.array_equal(np.concatenate(batches), expected)
    assert len(batches) == len(result.curve)
    assert result.curve[-1].tokens == 8 * len(batches) * SEQUENCE_LEN
    # It asked in time for each: who asks later gets nothing.
    assert result.train_seconds is not None
    assert result.train_seconds >= QUICK.budget_seconds


INSISTS = """
    more = [len(list(run.batches(8))) for _ in range(5)]
    if type(run).__name__ == "Training":
        print("more", more)
    return model
"""


def test_a_trainer_that_asks_again_when_its_clock_has_ended_gets_nothing(
    run: Runner, tmp_path: Path
):
    source = module().replace("    return model\n", INSISTS)

    result = run(source)

    assert result.status is Status.FINISHED, (result.message, result.log_tail)
    assert "more [0, 0, 0, 0, 0]" in (tmp_path / "run" / LOG).read_text()


@pytest.mark.parametrize("rows", [0, hand_out_rows(SEQUENCE_LEN) + 1])
def test_a_batch_that_is_too_large_is_refused_with_what_would_fit(
    run: Runner, rows: int
):
    source = module().replace("run.batches(8)", f"run.batches({rows})")
    in_earnest = source.replace(
        "enumerate(run",
        "enumerate(run.batches(8) if type(run).__name__ != 'Training' else run",
    )

    result = run(in_earnest)

    assert (result.status, result.crash) == (Status.CRASHED, Crash.EXCEPTION)
    assert result.message == (
        f"ValueError: run.batches({rows}): expected 1 to 986,895 rows"
    )


LOOKS = """
try:
    open(PATH)
except PermissionError as error:
    print("refused", error.errno)
print("mapped", PATH in open("/proc/self/maps").read())
opened = ["/proc/self/fd/" + fd for fd in os.listdir("/proc/self/fd")]
print("open", PATH in [os.readlink(path) for path in opened if os.path.islink(path)])
"""


def test_a_trainer_has_no_way_to_the_training_map(
    run: Runner, data: Prepared, tmp_path: Path
):
    result = run(module(LOOKS.replace("PATH", repr(str(data.training)))))

    assert result.status is Status.FINISHED, (result.message, result.log_tail)
    log = (tmp_path / "run" / LOG).read_text()
    assert "refused 13" in log
    assert "mapped False" in log
    assert "open False" in log


def test_its_policy_names_neither_map(data: Prepared, tmp_path: Path, zygote: Zygote):
    stop, _keep = os.pipe()
    (tmp_path / "run").mkdir()
    started = LocalTrial.start(
        trial_of(module(), QUICK, data, cpu()),
        tmp_path / "run",
        zygote=zygote,
        compile_cache=CompileCache(tmp_path / "compile"),
        stop_fd=stop,
    )

    policy = started.policy(tmp_path / "run" / "trainer")
    started.abandon()

    allowed = [*policy.read, *policy.write, *policy.lists]
    assert policy.secret == str(data.validation)
    assert not [
        path
        for path in allowed
        for data_map in (data.training, data.validation)
        if data_map.is_relative_to(path)
    ]
