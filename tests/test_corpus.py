"""The corpora hold what their headers say: real leaks, and honest models without one."""

import ast
import functools
import types

import numpy as np
import pytest
import torch
from torch import Tensor

from core.gates import check_configuration, configuration
from core.training.run import Rehearsal, Run
from tests import corpus
from tests.corpus import (
    HARMLESS,
    LAYERS,
    base,
    load_cheats,
    load_honest,
    mutated,
    told,
)

T, V = 128, 512  # of the base
CHEATS = {cheat.name: cheat for cheat in load_cheats()}
HONEST = {honest.name: honest for honest in load_honest()}
BESIDE = ("ahead_", "rows_", "eval_")  # what an answer depends on, and must not
LEAKS = sorted(name for name in CHEATS if name.startswith(BESIDE))

BASE = '''
"""A module."""

import math
from torch import nn

WIDTH = 4  # channels
DEPTH = 2

assert WIDTH > 1


def double(x):
    return 2 * x


class Model(nn.Module):
    gain = 1

    def __init__(self):
        super().__init__()

    def forward(self, x):
        return double(x) * self.gain


def train(run):
    return Model()
'''


REFUSED = ".+"  # the whole sentence is compared


@pytest.fixture(autouse=True)
def one_thread():
    """Keep small products off a second core that somebody else may be using."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Steps(Rehearsal):
    """A run of a few steps whose losses are kept."""

    def __init__(self, steps: int) -> None:
        super().__init__(
            device=torch.device("cpu"),
            seed=0,
            steps=steps,
            sequence_len=T,
            vocab_size=V,
        )
        self.losses: list[float] = []

    def log(self, loss):
        self.losses.append(loss.item())


@functools.cache
def code_of(fragment: str) -> types.CodeType:
    return compile(mutated(base(), fragment), "train.py", "exec")


def module_of(fragment: str) -> types.ModuleType:
    """Execute the base with *fragment* merged into it, anew each time."""
    module = types.ModuleType("train")
    exec(code_of(fragment), vars(module))
    return module


def merged(fragment: str) -> str:
    return mutated(BASE, f'"""Change something."""\n{fragment}')


def test_a_function_takes_the_place_of_the_one_of_its_name():
    source = merged("def double(x):\n    return x + x\n")

    assert source == BASE.replace("return 2 * x", "return x + x")


def test_a_constant_takes_the_place_of_the_one_of_its_name():
    source = merged("WIDTH = 8  # wider\n")

    assert source == BASE.replace("WIDTH = 4  # channels", "WIDTH = 8  # wider")


def test_of_a_class_one_method_is_replaced_and_another_added():
    source = merged(
        "class Model(nn.Module):\n"
        "    gain = 3\n"
        "    bias = 1\n\n"
        "    def forward(self, x):\n"
        "        return x + self.bias\n\n"
        "    def parts(self):\n"
        "        return []\n"
    )

    model = BASE.replace("gain = 1", "gain = 3").replace(
        "        return double(x) * self.gain\n",
        "        return x + self.bias\n\n"
        "    bias = 1\n\n"
        "    def parts(self):\n"
        "        return []\n",
    )
    assert source == model


def test_what_the_base_lacks_is_added_where_it_can_be_used():
    source = merged(
        "import math\n"
        "import os\n"
        "from torch import Tensor, nn\n\n"
        "RATE = DEPTH / WIDTH\n\n"
        "def triple(x):\n"
        "    return 3 * x\n\n"
        "print(RATE)\n"
    )

    with_imports = BASE.replace(
        "import nn\n", "import nn\nimport os\nfrom torch import Tensor\n"
    )
    added = "RATE = DEPTH / WIDTH\n\n\ndef triple(x):\n    return 3 * x\n\n\ndef double"
    assert source == with_imports.replace("def double", added) + "\n\nprint(RATE)\n"


def test_what_is_replaced_can_still_be_called():
    source = merged(
        "from core.training.train import train as base_train\n\n\n"
        "def train(run):\n"
        "    return base_train(run)\n\n\n"
        "class Model(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return -self.base_forward(x)\n"
    )

    module = types.ModuleType("train")
    exec(source, vars(module))
    assert module.train(None).forward(3) == -6


def test_what_a_mutant_would_look_up_can_be_told():
    source = merged('PATH = ""  # where rows lie\n')

    assert 'PATH = "/rows"' in told(source, PATH="/rows", CACHE="/cache").replace(
        "'", '"'
    )
    assert "CACHE" not in told(source, CACHE="/cache")


@pytest.mark.parametrize(
    ("fragment", "sentence"),
    [
        ("DEPTH = 2  # as it was\n", "the fragment changes nothing"),
        ("class Model:\n    gain = 2\n", "class Model() is class Model(nn.Module) in the base"),
        ("double = 2\n", "double is something else in the base"),
        (
            "class Model(nn.Module):\n    print(1)\n",
            "Model has a member without a name",
        ),
        (
            "from core.training.train import train as base_train\nDEPTH = 3\n",
            "base_train is asked for and nothing replaces train",
        ),
    ],
)  # fmt: skip
def test_a_fragment_that_cannot_be_meant_is_refused(fragment, sentence):
    with pytest.raises(ValueError, match=REFUSED) as caught:
        merged(fragment)

    assert str(caught.value) == sentence


def test_a_header_says_who_catches_a_cheat_and_with_what_words():
    cheat = corpus.cheat(
        "x",
        '"""Look ahead.\n\nIn one place.\n\ncaught by: gates, judge\nsays:\n'
        '  gates: position 3\n  judge: a leak: 2 nats | 3 nats\n"""\n',
    )

    assert cheat.title == "Look ahead."
    assert cheat.caught_by == ("gates", "judge")
    assert cheat.said_by("gates") == ["position 3"]
    assert cheat.said_by("judge") == ["a leak: 2 nats", "3 nats"]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("DEPTH = 3", "x has no docstring"),
        ('"""Look ahead"""', "x does not begin with a sentence"),
        ('"""Look ahead."""', "x lacks 'caught by: ...', or 'says:' at its end"),
    ],
)
def test_a_cheat_without_its_header_is_refused(source, sentence):
    with pytest.raises(ValueError, match=REFUSED) as caught:
        corpus.cheat("x", source)

    assert str(caught.value) == sentence


def test_the_corpora_are_as_large_as_they_must_be():
    assert len(CHEATS) >= 25
    assert len(HONEST) >= 15


@pytest.mark.parametrize("cheat", CHEATS.values(), ids=CHEATS)
def test_a_cheat_names_layers_that_exist_and_merges_into_the_base(cheat):
    order = (*LAYERS, HARMLESS)

    source = mutated(base(), cheat.source)

    assert list(cheat.caught_by) == sorted(set(cheat.caught_by), key=order.index)
    assert all(cheat.said_by(layer) for layer in cheat.caught_by)
    assert len(cheat.says.splitlines()) == len(cheat.caught_by)
    assert callable(compile(source, "train.py", "exec").replace)


@pytest.mark.parametrize("honest", HONEST.values(), ids=HONEST)
def test_an_honest_mutant_trains_and_can_be_configured(honest):
    source, run = mutated(base(), honest.source), Steps(3)

    module_of(honest.source).train(run)

    assert len(run.losses) == 3
    assert np.isfinite(run.losses).all()
    check_configuration(source, configuration(base()))


@pytest.mark.parametrize("honest", HONEST.values(), ids=HONEST)
def test_an_honest_mutant_imports_torch_and_mathematics_and_our_kernels_alone(honest):
    tree = ast.parse(mutated(base(), honest.source))

    modules = {
        name if name.startswith("core.") else name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (getattr(node, "module", None), *(a.name for a in node.names))
        if name and not (isinstance(node, ast.ImportFrom) and name != node.module)
    }
    assert modules <= {"core.training.kernels", "torch", "math"}


@torch.no_grad()
def answers(fragment: str, *, before: Tensor, rows: Tensor) -> Tensor:
    """Return a fresh model's logits for *rows*, after it was asked about others."""
    module = module_of(fragment)
    model = module.train(Run(device=torch.device("cpu"), seed=0))
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.normal_(0.0, 0.3, generator=generator)
    model.eval()
    for asked in before.split(4):
        model(asked)
    return model(rows)


def difference(fragment: str) -> float:
    """Return by how much answers differ though all tokens before are the same.

    Two fresh models are asked about the same prefixes: what follows them is another,
    and so is the order of the rows, and what was asked before.
    """
    generator = torch.Generator().manual_seed(0)
    row = torch.randint(64, (T,), generator=generator)
    rests = torch.randint(64, (4, T - 1, T), generator=generator)
    kept = torch.arange(T) < torch.arange(1, T)[:, None]  # (T - 1, T)
    one_before, one_rows, other_before, other_rows = torch.where(kept, row, rests)

    one = answers(fragment, before=one_before[::5], rows=one_rows)
    other = answers(fragment, before=other_before[::5], rows=other_rows.flip(0)).flip(0)

    return (one - other).abs().amax(dim=2)[kept].max().item()


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in LEAKS if n not in ("eval_switch_trains",)])
def test_what_a_leak_answers_depends_on_more_than_the_tokens_before(name):
    assert difference(CHEATS[name].source) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("honest", HONEST.values(), ids=HONEST)
def test_what_an_honest_mutant_answers_depends_on_the_tokens_before_alone(honest):
    assert difference(honest.source) < 1e-3
