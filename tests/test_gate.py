"""Modules that break the contract are shown to, and those that keep it pass."""

import ast
import re
import threading
from collections import Counter
from functools import partial
from itertools import count
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.training.gate import CHECKS, Breach, Examination, examine
from core.training.gate.causality import FORECAST_TOKENS, check_forecast
from core.training.gate.subject import Subject
from core.training.module import load_module
from tests.conftest import ROOT

T, V, C = 32, 40, 16
SEED = 5
NUMBER = r"-?\d+\.\d+(?:e-\d+)?"
MOVED = rf"\(token \d+: {NUMBER} -> {NUMBER}\)"
SIZE = r"\d+(?:\.\d+)?(?:e-\d+)?"


@pytest.fixture(autouse=True)
def one_thread():
    """Keep tiny products off a second core that somebody else may be using."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def before_it(x: Tensor) -> Tensor:
    """Return what a token can see (B, T, C): the mean of the tokens up to it."""
    return x.cumsum(1) / torch.arange(1, x.size(1) + 1)[:, None]


class Toy(nn.Module):
    """A model that mixes each token with those before it; edits override `mix`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, C)
        self.up = nn.Linear(C, C)
        self.head = nn.Linear(C, V)

    def mix(self, x: Tensor) -> Tensor:
        return before_it(x)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + F.silu(self.up(self.mix(x)))
        return self.head(F.rms_norm(x, (C,)))


def a_step(model: nn.Module, optimizer, rows: Tensor) -> Tensor:
    loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


def trains(build, optimizer=torch.optim.AdamW):
    """Return a ``train(run)`` that does what the shipped one does, for another model."""

    def train(run) -> nn.Module:
        model = build()
        adamw = optimizer([w for w in model.parameters() if w.requires_grad], lr=0.01)
        for rows in run.batches(4):
            run.log(a_step(model, adamw, rows))
        return model

    return train


def a_module(train) -> ModuleType:
    module = ModuleType("train")
    module.__file__ = __file__
    module.train = train
    return module


def examined(train, *, seed=SEED, seconds=0.0, vocab_size=V) -> Examination:
    """Return what the least number of examples shows."""
    return examine(
        a_module(train),
        seed=seed,
        sequence_len=T,
        vocab_size=vocab_size,
        seconds=seconds,
    )


def breach_of(train, check: str) -> str:
    found = examined(train, seconds=2.0).breach

    assert isinstance(found, Breach)
    assert found.check == check, found.message
    return found.message


def assert_says(pattern: str, message: str) -> None:
    assert re.fullmatch(pattern, message), message


# The shipped module


def shipped(tmp_path, *, edits: dict[str, str] | None = None, **constants):
    """Return the training module with other constants and edits of its text."""
    source = (ROOT / "core" / "training" / "train.py").read_text()
    for before, after in (edits or {}).items():
        assert source.count(before) == 1, before
        source = source.replace(before, after)
    tree = ast.parse(source)
    values = {"DEPTH": 2, "HEAD_DIM": 32, "ASPECT_RATIO": 32, "VOCAB_SIZE": 512}
    values |= constants
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and statement.targets[0].id in values:
            statement.value = ast.Constant(values.pop(statement.targets[0].id))
    assert not values
    path = tmp_path / "train.py"
    path.write_text(ast.unparse(ast.fix_missing_locations(tree)))
    return load_module(path)


def as_on_a_laptop(tmp_path, edits: dict[str, str] | None = None):
    return shipped(
        tmp_path,
        edits=edits,
        SEQUENCE_LEN=128,
        TOTAL_BATCH_TOKENS=512,
        MICRO_BATCH_ROWS=4,
    )


def test_the_shipped_module_passes_at_every_position(tmp_path):
    began = []

    found = examine(
        as_on_a_laptop(tmp_path),
        seed=0,
        sequence_len=128,
        vocab_size=512,
        seconds=0.0,
        began=began.append,
    )

    assert found.breach is None
    assert not found.without_random
    # Each token but the first, and some with all after them; under the trained parameters
    # and two draws of random ones.
    assert found.examples["causality"] >= (127 + 32) * 3
    assert set(began) == set(CHECKS)


@pytest.mark.slow
def test_long_rows_are_examined_at_some_positions_of_each_part(tmp_path):
    module = shipped(
        tmp_path, SEQUENCE_LEN=2048, TOTAL_BATCH_TOKENS=4096, MICRO_BATCH_ROWS=2
    )

    found = examine(module, seed=0, sequence_len=2048, vocab_size=512, seconds=0.0)

    assert found.breach is None
    assert found.cut_short
    assert all(found.examples[check] for check in CHECKS)


def test_a_mask_that_is_one_too_wide_is_shown_by_the_first_token_that_leaks(tmp_path):
    masked = """seen = torch.ones(q.size(1), q.size(1), dtype=torch.bool).tril(1)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2)"""
    module = as_on_a_laptop(
        tmp_path, {"return windowed_attention(q, k, v, window)": masked}
    )

    found = examine(module, seed=0, sequence_len=128, vocab_size=512, seconds=4.0)

    assert found.breach is not None
    assert_says(
        rf"causality: with token 1 changed from \d+ to \d+, the logits of position 0 "
        rf"change by {SIZE} {MOVED}\. Position 0 may only see token 0\.",
        found.breach.message,
    )


def test_what_is_left_without_use_is_named_with_its_number(tmp_path):
    attention = "x = x + self.attention(norm(x), value_embedding, cos, sin)\n        "
    module = as_on_a_laptop(tmp_path, {attention: ""})

    found = examine(module, seed=0, sequence_len=128, vocab_size=512, seconds=0.0)

    assert found.breach == Breach(
        "gradients",
        "gradients: an optimizer owns value_embeddings.1.weight, which gets no gradient "
        "in 28 steps, nor do 9 others. Use it in the loss, or leave it out; what begins "
        "later has to begin by run.progress.",
    )


# Causality


class NextToken(Toy):
    def mix(self, x):
        return x.roll(-1, 1)


class BlockMean(Toy):
    def mix(self, x):
        return x.unflatten(1, (-1, 8)).mean(2).repeat_interleave(8, 1)


class Spectral(Toy):
    """A low-pass filter of the row, which is a convolution with both sides."""

    def mix(self, x):
        spectrum = torch.fft.rfft(x, dim=1)
        spectrum[:, 4:] = 0
        return torch.fft.irfft(spectrum, x.size(1), dim=1)


class Centred(Toy):
    """A convolution that pads both sides."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv1d(C, C, 3, padding=1)

    def mix(self, x):
        return self.convolution(x.mT).mT


class ClosedGate(Toy):
    """Looks ahead once a gate is open to one side, which it is not at the start."""

    side = 1

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, tokens):
        ahead = F.relu(self.side * self.gate).detach() * self.embedding(
            tokens.roll(-1, 1)
        )
        return super().forward(tokens) + self.head(ahead) + 0 * self.gate


class GateToTheOtherSide(ClosedGate):
    side = -1


class InEvaluation(Toy):
    def mix(self, x):
        return before_it(x) if self.training else before_it(x) + x.roll(-1, 1)


class AtFullLength(Toy):
    def mix(self, x):
        return before_it(x) + (x.roll(-1, 1) if x.size(1) == T else 0)


class AtOnePosition(Toy):
    """Position 23 sees the token after it: one position of 32."""

    def mix(self, x):
        x = before_it(x) + 0
        seen = torch.zeros(x.size(1), 1)
        seen[23:24] = 1
        return x + seen * self.up(x).roll(-1, 1)


class WholeRow(Toy):
    """One token says little to a mean of all of them; the ones after it say more."""

    def mix(self, x):
        return before_it(x) + 0.005 * x.mean(1, keepdim=True)


@pytest.mark.parametrize(
    "leak",
    [
        NextToken,
        BlockMean,
        Spectral,
        Centred,
        ClosedGate,
        GateToTheOtherSide,
        InEvaluation,
        AtFullLength,
        AtOnePosition,
        WholeRow,
    ],
)
def test_a_model_that_looks_ahead_is_refused_with_an_example(leak):
    message = breach_of(trains(leak), "causality")

    changed = (
        r"(?:token (?P<first>\d+) changed from \d+ to \d+"
        r"|tokens (?P<start>\d+)\.\.\d+ changed)"
    )
    pattern = (
        rf"causality: with {changed}(?: and random parameters)?, the logits of position "
        rf"(?P<position>\d+) change by {SIZE} {MOVED}\. Position (?P=position) may only "
        r"see (?:token 0|tokens 0\.\.(?P=position))\."
    )
    assert_says(pattern, message)
    said = re.fullmatch(pattern, message).groupdict()
    assert int(said["position"]) < int(said["first"] or said["start"])


@pytest.mark.parametrize("leak", [ClosedGate, GateToTheOtherSide])
def test_a_gate_that_training_left_closed_is_opened(leak):
    message = breach_of(trains(leak), "causality")

    assert "and random parameters" in message


def test_a_leak_at_one_position_is_shown_there():
    message = breach_of(trains(AtOnePosition), "causality")

    assert message.startswith("causality: with token 24 changed from ")
    assert message.endswith(" Position 23 may only see tokens 0..23.")


def test_a_leak_of_short_rows_alone_says_how_long_they_are():
    class InShortRows(Toy):
        def mix(self, x):
            return before_it(x) + (x.roll(-1, 1) if x.size(1) < T else 0)

    message = breach_of(trains(InShortRows), "causality")

    assert_says(
        r"causality: with token 1 changed from \d+ to \d+ and random parameters, in a "
        r"row of 2 tokens, the logits of position 0 change by .*\. Position 0 may only "
        r"see token 0\.",
        message,
    )


class InText(Toy):
    """Looks ahead where tokens repeat."""

    def mix(self, x):
        different = (x[:, :, None] != x[:, None]).any(-1).float().mean((1, 2))  # (B,)
        return before_it(x) + (different < 0.95)[:, None, None] * x.roll(-1, 1)


class Expects(Toy):
    """Looks ahead where it finds the next token likely."""

    def forward(self, tokens):
        logits = super().forward(tokens)
        ahead = F.one_hot(tokens[:, 1:], V)
        likely = logits[:, :-1] >= logits[:, :-1].topk(3).values[..., -1:]
        return torch.cat([logits[:, :-1] + 9.0 * ahead * likely, logits[:, -1:]], 1)


@pytest.mark.parametrize("leak", [InText, Expects])
def test_a_leak_that_random_tokens_do_not_show_is_found(leak):
    assert "may only see" in breach_of(trains(leak), "causality")


class Replays(Toy):
    """Tells what followed a prefix when it was first asked, whoever asks again."""

    def __init__(self):
        super().__init__()
        self.first = {}

    def forward(self, tokens):
        logits = super().forward(tokens)
        if not self.training:
            for row, ids in enumerate(tokens.tolist()):
                for position in range(len(ids) - 1):
                    prefix = tuple(ids[: position + 1])
                    token = self.first.setdefault(prefix, ids[position + 1])
                    logits[row, position, token] += 20.0
        return logits


class InLargeBatches(Toy):
    def forward(self, tokens):
        logits = super().forward(tokens)
        if not self.training and len(tokens) >= 64:
            logits[:, :-1] += 9.0 * F.one_hot(tokens[:, 1:], V)
        return logits


@pytest.mark.parametrize("leak", [Replays, InLargeBatches])
def test_a_model_that_foretells_random_tokens_is_refused(leak):
    message = breach_of(trains(leak), "causality")

    pattern = (
        r"causality: of (\d+) tokens that were drawn at random the model foretells each "
        r"within (\d\.\d{3}) nats, and (\d\.\d{3}) are the least that can be without "
        r"seeing it\."
    )
    assert_says(pattern, message)
    tokens, told, least = re.fullmatch(pattern, message).groups()
    assert int(tokens) % (T - 1) == 0
    assert float(told) < float(least) - 1


class Knows(nn.Module):
    """Knows the frequencies of tokens, and nothing else."""

    def __init__(self, frequencies):
        super().__init__()
        self.logits = frequencies.log()

    def forward(self, tokens):
        return self.logits.expand(*tokens.shape, -1).clone()


@pytest.mark.parametrize("vocab_size", [7, V, 512])
def test_who_knows_how_often_tokens_come_foretells_nothing(vocab_size):
    subject = Subject(
        a_module(None),
        nn.Identity(),
        seed=SEED,
        sequence_len=T,
        vocab_size=vocab_size,
        examples=Counter(),
    )
    subject.model = Knows(subject.frequencies)

    check_forecast(subject)

    assert subject.examples["causality"] == FORECAST_TOKENS // T


# Rows


class BatchMean(Toy):
    def mix(self, x):
        return before_it(x) + x.mean(0, keepdim=True)


class OtherAnswersAlone(Toy):
    def forward(self, tokens):
        return super().forward(tokens) * (2 if len(tokens) == 1 else 1)


class ByPlace(Toy):
    def forward(self, tokens):
        return super().forward(tokens) * (1 + torch.arange(len(tokens))[:, None, None])


@pytest.mark.parametrize(
    ("leak", "what"),
    [
        (BatchMean, "other rows in the rest of a batch of 2"),
        (OtherAnswersAlone, "no other row instead of a batch of 2"),
        (ByPlace, "the 2 rows of the batch in another order"),
    ],
)
def test_a_row_that_depends_on_its_company_is_refused(leak, what):
    message = breach_of(trains(leak), "rows")

    assert_says(
        rf"rows: with {what}, the logits of row 0 at position \d+ change by {SIZE} "
        rf"{MOVED}\. A row may only see itself\.",
        message,
    )


# Purity


class Remembers(Toy):
    """Answers a row that it has seen with what followed."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def forward(self, tokens):
        logits = super().forward(tokens)
        if not self.training:
            for row, ids in enumerate(tokens):
                if (key := tuple(ids.tolist())) in self.seen:
                    logits[row, :-1] += 9.0 * F.one_hot(ids[1:], V)
                self.seen.add(key)
        return logits


class Learns(Toy):
    def forward(self, tokens):
        if not self.training:
            self.head.bias.data.add_(1e-5 * torch.bincount(tokens.flatten(), None, V))
        return super().forward(tokens)


class Counts(Toy):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, tokens):
        self.calls += 1
        return super().forward(tokens)


class DropsOut(Toy):
    def mix(self, x):
        return F.dropout(before_it(x))


ANSWER_CHANGES = (
    rf"the logits of row 0 at position \d+ change by {SIZE} {MOVED}\. In evaluation "
    r"mode only the row itself may decide\."
)


def test_a_model_that_remembers_rows_is_refused():
    assert_says(
        rf"purity: asked again after others, the model answers the same rows otherwise: "
        rf"{ANSWER_CHANGES}",
        breach_of(trains(Remembers), "purity"),
    )


def test_a_model_that_draws_random_numbers_in_evaluation_is_refused():
    assert_says(
        rf"purity: asked again from another random state of torch, the model answers "
        rf"the same rows otherwise: {ANSWER_CHANGES}",
        breach_of(trains(DropsOut), "purity"),
    )


@pytest.mark.parametrize(
    ("model", "what"),
    [(Learns, "the parameter head.bias"), (Counts, "the buffer calls")],
)
def test_a_model_that_questions_change_is_refused(model, what):
    assert breach_of(trains(model), "purity") == (
        f"purity: questions change {what} of the model. In evaluation mode it may "
        "neither learn nor remember."
    )


def test_a_model_that_training_another_one_changes_is_refused():
    scale = [1.0]

    class Scaled(Toy):
        def forward(self, tokens):
            scale[0] += 0.1 * self.training
            return super().forward(tokens) * scale[0]

    assert_says(
        rf"purity: asked again after train\(run\) has trained another model, the model "
        rf"answers the same rows otherwise: {ANSWER_CHANGES}",
        breach_of(trains(Scaled), "purity"),
    )


class TrainsWhenEvaluated(Toy):
    def train(self, mode=True):
        if not mode:
            self.head.bias.data.add_(0.1)
        return super().train(mode)


class WaitsWhenEvaluated(Toy):
    def train(self, mode=True):
        while not mode:
            pass
        return super().train(mode)


class RaisesWhenEvaluated(Toy):
    def train(self, mode=True):
        if not mode:
            raise RuntimeError("no")
        return super().train(mode)


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (
            TrainsWhenEvaluated,
            r"changes the parameter head\.bias\. It may do nothing but choose the mode\.",
        ),
        (
            WaitsWhenEvaluated,
            r"has not ended after 2\.0 s of CPU time in line \d+ of the mutated module\. It may do "
            r"nothing but choose the mode\.",
        ),
        (
            RaisesWhenEvaluated,
            r"raises RuntimeError: no \(line \d+ of the mutated module\)",
        ),
    ],
)
def test_evaluation_mode_is_nothing_but_a_mode(model, what):
    assert_says(rf"purity: model\.eval\(\) {what}", breach_of(trains(model), "purity"))


class TrainsWhenLoaded(Toy):
    def load_state_dict(self, *args, **options):
        found = super().load_state_dict(*args, **options)
        self.head.bias.data.add_(0.1)
        return found


class TrainsWhenSaved(Toy):
    def state_dict(self, *args, **options):
        self.head.bias.data.add_(0.1)
        return super().state_dict(*args, **options)


class WaitsWhenSaved(Toy):
    def state_dict(self, *args, **options):
        while True:
            pass


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            TrainsWhenLoaded,
            r"model\.load_state_dict\(\) changes the weight head\.bias\. It may do "
            r"nothing but take the weights\.",
        ),
        (
            TrainsWhenSaved,
            r"model\.state_dict\(\) changes the parameter head\.bias\. It may do "
            r"nothing but hand out the weights\.",
        ),
        (
            WaitsWhenSaved,
            r"model\.state_dict\(\) has not ended after 2\.0 s of CPU time in line \d+ of the "
            r"mutated module\. It may do nothing but hand out the weights\.",
        ),
    ],
)
def test_weights_are_handed_over_as_they_are(model, message):
    assert_says(f"purity: {message}", breach_of(trains(model), "purity"))


# Training


def train_that(loop):
    """Return a ``train(run)`` whose steps are those of *loop*."""

    def train(run):
        model = Toy()
        loop(run, partial(a_step, model, torch.optim.AdamW(model.parameters())))
        return model

    return train


def forgets_a_loss(run, step):
    for number, rows in enumerate(run.batches(4)):
        loss = step(rows)
        if number:
            run.log(loss)


def asks_for_ever(run, step):
    while True:
        for rows in run.batches(4):
            run.log(step(rows))


def never_asks_again(run, step):
    for rows in run.batches(4):
        run.log(step(rows))
    for _ in count():
        pass


def steps_on(run, step):
    seen = []
    for rows in run.batches(4):
        run.log(step(rows))
        seen.append(rows)
    for rows in seen[-2:]:
        step(rows)


def steps_anew(run, step):
    for rows in run.batches(4):
        run.log(step(rows))
        kept = rows
    if run.progress:
        a_step(model := Toy(), torch.optim.SGD(model.parameters(), lr=0.1), kept)


def logs_a_number(run, step):
    for rows in run.batches(4):
        run.log(step(rows).item())


def logs_one_a_row(run, step):
    for rows in run.batches(4):
        run.log(step(rows).expand(4))


def logs_nan(run, step):
    for rows in run.batches(4):
        run.log(step(rows) * float("nan"))


def divides(run, step):
    next(run.batches(8 / 2))


def asks_for_nothing(run, step):
    next(run.batches(0))


def asks_for_much(run, step):
    next(run.batches(2**20))


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        (
            lambda run, step: None,
            "train(run) took no batch. Expected a step for each of run.batches(rows).",
        ),
        (
            forgets_a_loss,
            "train(run) took 12 batches and logged 11 losses. run.log(loss) belongs after each batch of run.batches(rows).",
        ),
        (
            asks_for_ever,
            "train(run) asked for a batch 17 times after the run had ended. Its loop must end where run.batches(rows) does.",
        ),
        (
            steps_on,
            "AdamW takes 2 steps after the run had ended, and 1 step for a batch. Each step needs a batch.",
        ),
        (
            steps_anew,
            "SGD takes 1 step after the run had ended, and 0 steps for a batch. Each step needs a batch.",
        ),
        (logs_a_number, "run.log(loss) got float. Expected a tensor with one number."),
        (
            logs_one_a_row,
            "run.log(loss) got Tensor of shape (4,). Expected a tensor with one number.",
        ),
        (logs_nan, "the loss of step 1 is nan. Expected a finite number."),
        (
            divides,
            "train(run) asked for batches of 4.0 rows. Expected a whole number, 1 or more.",
        ),
        (
            asks_for_nothing,
            "train(run) asked for batches of 0 rows. Expected a whole number, 1 or more.",
        ),
        (
            asks_for_much,
            "train(run) asked for batches of 1048576 rows of 32 tokens. Expected at most 16777216 tokens.",
        ),
    ],
)
def test_a_loop_that_breaks_the_contract_is_told_how(loop, message):
    assert breach_of(train_that(loop), "training") == f"training: {message}"


def test_a_loop_that_does_not_end_is_ended_and_its_line_named():
    found = examined(train_that(never_asks_again)).breach

    assert found is not None
    assert_says(
        r"training: 2\.0 s of CPU time after the run had ended, train\(run\) goes on in line \d+ of "
        r"the mutated module\. Its loop must end where run\.batches\(rows\) does\.",
        found.message,
    )


def test_a_thread_that_is_left_behind_is_named():
    ended = threading.Event()

    def train(run):
        model = trains(Toy)(run)
        if run.progress:
            threading.Thread(target=ended.wait, name="trains-on").start()
        return model

    try:
        message = breach_of(train, "training")
    finally:
        ended.set()

    assert message == (
        "training: train(run) leaves a thread running, trains-on. All that it does must "
        "end before it returns."
    )


def test_a_module_that_exits_is_heard():
    def train(run):
        raise SystemExit(3)

    assert_says(
        r"training: train\(run\) without a batch raises SystemExit: 3 \(line \d+ of the "
        r"mutated module\)",
        breach_of(train, "training"),
    )


def test_an_error_is_shown_with_its_line():
    def train(run):
        return Toy()(torch.zeros(1, 4))

    assert_says(
        r"training: train\(run\) without a batch raises RuntimeError: Expected tensor "
        r"for argument #1 'indices' .* \(line \d+ of the mutated module\)",
        breach_of(train, "training"),
    )


def test_what_is_returned_must_be_a_model():
    assert breach_of(lambda run: None, "training") == (
        "training: train(run) without a batch returns NoneType. Expected the model, an "
        "nn.Module."
    )


def test_what_training_adds_to_a_model_would_be_lost():
    def train(run):
        model = trains(Toy)(run)
        if run.progress:
            model.bias = nn.Parameter(torch.zeros(V))
        return model

    assert breach_of(train, "training") == (
        "training: the trained model has a weight bias and the fresh one has not. What "
        "is scored is a fresh model, of train(run) without a batch, with the trained "
        "weights."
    )


def test_a_weight_that_training_resizes_would_not_fit():
    def train(run):
        model = trains(Toy)(run)
        if run.progress:
            model.head.bias = nn.Parameter(torch.zeros(1))
        return model

    assert breach_of(train, "training") == (
        "training: head.bias has the shape (1,) in the trained model and (40,) in a "
        "fresh one. What is scored is a fresh one with the trained weights."
    )


# Gradients


def test_a_parameter_without_use_is_named():
    class Unused(Toy):
        def __init__(self):
            super().__init__()
            self.spare = nn.Parameter(torch.zeros(3))

    assert breach_of(trains(Unused), "gradients") == (
        "gradients: an optimizer owns spare, which gets no gradient in 28 steps. Use it "
        "in the loss, or leave it out; what begins later has to begin by run.progress."
    )


def test_what_chance_leaves_out_at_first_is_in_use():
    class Skips(Toy):
        steps = count()

        def mix(self, x):
            if self.training and next(self.steps) % 20:
                return before_it(x)
            return self.up(x)

        def forward(self, tokens):
            x = self.embedding(tokens)
            return self.head(F.rms_norm(x + self.mix(x), (C,)))

    next(Skips.steps)

    assert examined(trains(Skips)).breach is None


def test_a_gradient_that_is_not_finite_is_named():
    class Root(Toy):
        """A root has no slope at zero, which the loss does not show at first."""

        def __init__(self):
            super().__init__()
            self.offset = nn.Parameter(torch.zeros(()))

        def mix(self, x):
            return before_it(x) + self.offset.square().sqrt()

    assert breach_of(trains(Root), "gradients") == (
        "gradients: the gradient of offset is nan at step 1. Expected finite numbers."
    )


def test_a_parameter_that_an_optimizer_makes_infinite_is_named():
    class Leaps(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            with torch.no_grad():
                self.param_groups[0]["params"][0].mul_(float("inf"))

    found = breach_of(trains(Toy, Leaps), "gradients")

    assert_says(
        r"gradients: embedding\.weight is -?inf at step 1\. Expected finite numbers\.",
        found,
    )


# Shape


class Logits(Tensor):
    pass


def answers_with(change) -> type[Toy]:
    class Other(Toy):
        def forward(self, tokens):
            logits = super().forward(tokens)
            return logits if self.training else change(logits)

    return Other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda y: y[:, -1],
            "the model maps ids of shape (1, 32) to logits of shape (1, 40). Expected (1, 32, 40).",
        ),
        (
            lambda y: (y, None),
            "the model maps ids of shape (1, 32) to tuple. Expected a tensor of logits (1, 32, 40).",
        ),
        (
            lambda y: y.as_subclass(Logits),
            "the model maps ids of shape (1, 32) to Logits. Expected a tensor of logits (1, 32, 40).",
        ),
        (
            lambda y: y.long(),
            "the logits are torch.int64. Expected floating-point numbers.",
        ),
        (
            lambda y: y / 0 * 0,
            "the logit of token 0 at position 0 is nan. Expected finite numbers.",
        ),
    ],
)
def test_answers_that_are_no_logits_are_refused(change, message):
    assert breach_of(trains(answers_with(change)), "shape") == f"shape: {message}"


def test_a_model_that_takes_one_number_of_rows_only_is_refused():
    class FourRows(Toy):
        def forward(self, tokens):
            return super().forward(tokens.view(4, T))

    assert_says(
        r"shape: for ids of shape \(1, 32\) the model raises RuntimeError: shape "
        r"'\[4, 32\]' is invalid for input of size 32 \(line \d+ of the mutated module\)",
        breach_of(trains(FourRows), "shape"),
    )


def test_what_a_module_says_cannot_reach_the_terminal():
    def train(run):
        raise ValueError("\x1b[31mred\u202e")

    message = breach_of(train, "training")

    assert message.startswith(
        "training: train(run) without a batch raises ValueError: \ufffd[31mred\ufffd"
    )


# What must pass


class Windowed(Toy):
    def mix(self, x):
        return sum(F.pad(x, (0, 0, back, 0))[:, : x.size(1)] for back in range(5)) / 5


class Dropout(Toy):
    def mix(self, x):
        return F.dropout(before_it(x), training=self.training)


class Tied(Toy):
    def __init__(self):
        super().__init__()
        self.head.weight = self.embedding.weight


class Shifted(Toy):
    """Token shift to the past."""

    def mix(self, x):
        return torch.cat([x[..., : C // 2], F.pad(x, (0, 0, 1, -1))[..., C // 2 :]], -1)


class BatchNorm(Toy):
    """Normalises by what training has seen, in evaluation."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(C)

    def mix(self, x):
        return self.norm(before_it(x).mT).mT


class LongConvolution(Toy):
    """A causal convolution over the whole row, through the spectrum."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(T, C) / T)

    def mix(self, x):
        length = x.size(1)
        spectrum = partial(torch.fft.rfft, n=2 * T)
        both = spectrum(x, dim=1) * spectrum(self.kernel[:length], dim=0)
        return torch.fft.irfft(both, n=2 * T, dim=1)[:, :length]


class Recurrent(Toy):
    def __init__(self):
        super().__init__()
        self.recurrence = nn.GRU(C, C, batch_first=True)

    def mix(self, x):
        return self.recurrence(x)[0]


class Routed(Toy):
    """Each token goes through the expert that it scores highest."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(C, 3)
        self.experts = nn.ModuleList(nn.Linear(C, C) for _ in range(3))

    def mix(self, x):
        x = before_it(x)
        weights = self.router(x).softmax(-1)
        chosen = weights.argmax(-1)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            here = chosen == number
            y[here] = expert(x[here]) * weights[here][:, number, None]
        return y


class MaskedByAParameter(Toy):
    def __init__(self):
        super().__init__()
        mask = torch.ones(T, T).tril() / T
        self.mask = nn.Parameter(mask, requires_grad=False)

    def mix(self, x):
        return self.mask[: x.size(1), : x.size(1)] @ x


class OneLength(Toy):
    def mix(self, x):
        assert x.size(1) == T
        return before_it(x)


class HalfPrecision(Toy):
    def forward(self, tokens):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(tokens)


class Attentive(Toy):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(C, 4, batch_first=True)

    def mix(self, x):
        ahead = nn.Transformer.generate_square_subsequent_mask(x.size(1))
        return self.attention(x, x, x, attn_mask=ahead, is_causal=True)[0]


class KeepsTables(Toy):
    """Makes what it needs at the first question."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", None, persistent=False)

    def mix(self, x):
        if self.table is None:
            self.table = torch.linspace(1, 2, T)[:, None]
        return before_it(x) * self.table[: x.size(1)]


class Frozen(Toy):
    def __init__(self):
        super().__init__()
        self.spare = nn.Parameter(torch.zeros(3))
        self.up.weight.requires_grad_(False)


HONEST = [
    Toy,
    Windowed,
    Dropout,
    Tied,
    Shifted,
    BatchNorm,
    LongConvolution,
    Recurrent,
    Routed,
    MaskedByAParameter,
    OneLength,
    HalfPrecision,
    Attentive,
    KeepsTables,
]


@pytest.mark.parametrize("model", HONEST)
def test_an_unusual_model_passes(model):
    found = examined(trains(model), seconds=0.5)

    assert found.breach is None
    assert not found.without_random
    assert all(found.examples[check] for check in CHECKS)


def averaged(run):
    """Return the running average of the weights, in a model of its own."""
    model, average = Toy(), Toy()
    average.load_state_dict(model.state_dict())
    adamw = torch.optim.AdamW(model.parameters())
    for rows in run.batches(4):
        run.log(a_step(model, adamw, rows))
        with torch.no_grad():
            for slow, fast in zip(
                average.parameters(), model.parameters(), strict=True
            ):
                slow.lerp_(fast, 0.1)
    return average


def two_sizes(run):
    """Go on in batches of another size, also when the run has ended by then."""
    model = Toy()
    adamw = torch.optim.AdamW(model.parameters())
    for size in (2, 4, 8):
        for number, rows in enumerate(run.batches(size)):
            run.log(a_step(model, adamw, rows))
            if number:
                break
    return model


def fetches_ahead(run):
    """Ask for the next batch before the step, as a loader with a queue does."""
    model = Toy()
    adamw = torch.optim.AdamW(model.parameters())
    batches = run.batches(4)
    rows = next(batches, None)
    while rows is not None:
        following = next(batches, None)
        run.log(a_step(model, adamw, rows))
        rows = following
    return model


def by_closure(run):
    """Compute gradients within the step, as L-BFGS asks for."""
    model = Toy()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    for rows in run.batches(4):

        def closure(rows=rows):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(rows[:, :-1]).mT, rows[:, 1:])
            loss.backward()
            return loss

        run.log(optimizer.step(closure))
        optimizer.zero_grad()
    return model


def by_hand(run):
    """Take steps without an optimizer: there is nothing that one owns."""
    model = Toy()
    for rows in run.batches(4):
        loss = F.cross_entropy(model(rows[:, :-1]).mT, rows[:, 1:])
        for weight, slope in zip(
            model.parameters(),
            torch.autograd.grad(loss, list(model.parameters())),
            strict=True,
        ):
            weight.data.sub_(slope, alpha=0.1)
        run.log(loss)
    return model


def freezes(run):
    """Own a parameter that is frozen, and leave one to nobody."""
    model = Frozen()
    spared = [w for name, w in model.named_parameters() if name != "spare"]
    sgd = torch.optim.SGD(spared, lr=0.1)
    for rows in run.batches(4):
        run.log(a_step(model, sgd, rows))
    return model


@pytest.mark.parametrize(
    "train", [averaged, two_sizes, fetches_ahead, by_closure, freezes]
)
def test_an_unusual_way_to_train_passes(train):
    assert examined(train).breach is None


def test_a_module_without_an_optimizer_is_seen_to_take_no_step():
    found = examined(by_hand)

    assert found.breach is None
    assert found.examples["gradients"] == 0


def test_parameters_that_are_frozen_when_training_is_done_are_made_random_too():
    class Thawed(ClosedGate):
        pass

    def train(run):
        return trains(Thawed)(run).requires_grad_(False)

    assert "and random parameters" in breach_of(train, "causality")


# Examples


def test_the_same_seed_finds_the_same_example():
    first, second = (examined(trains(Spectral)) for _ in range(2))

    assert first == second


def test_another_seed_tries_other_rows():
    messages = {examined(trains(NextToken), seed=seed).breach for seed in range(4)}

    assert len(messages) > 1


def test_without_time_the_least_is_tried_and_it_says_so():
    least = examined(trains(Toy))
    more = examined(trains(Toy), seconds=60.0)

    assert least.cut_short
    forecast = FORECAST_TOKENS // T
    assert least.examples["causality"] == (T - 1) * 2 * 3 + forecast
    assert not more.cut_short
    assert more.examples["causality"] > least.examples["causality"]


def test_parameters_that_cannot_be_random_are_said_to_be_left_as_they_are():
    class Explodes(Toy):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(()))

        def mix(self, x):
            return before_it(x) * torch.exp((1e6 * self.scale).square())

    found = examined(trains(Explodes, partial(torch.optim.SGD, momentum=0.0)))

    assert found.breach is None
    assert found.without_random


def test_a_model_that_random_parameters_break_is_examined_as_it_was_trained():
    class Asserts(Toy):
        def __init__(self):
            super().__init__()
            self.offset = nn.Parameter(torch.zeros(()))

        def mix(self, x):
            assert self.offset.abs() < 0.01
            return before_it(x) + self.offset * 0

    found = examined(trains(Asserts))

    assert found.breach is None
    assert found.without_random


def test_hypothesis_prints_nothing(capfd):
    breach_of(trains(NextToken), "causality")

    assert capfd.readouterr() == ("", "")
