import ast
import hashlib
import math
import pathlib
import subprocess
import sys
import types

import pytest
import torch
from torch import nn

SOURCE = pathlib.Path(__file__).parents[1] / "core" / "training" / "train.py"
TINY = dict(
    DEPTH=2,
    HEAD_DIM=8,
    ASPECT_RATIO=16,
    VOCAB_SIZE=32,
    SEQUENCE_LEN=16,
    TOTAL_BATCH_TOKENS=128,
    MICRO_BATCH_ROWS=4,
)


@pytest.fixture(autouse=True)
def one_thread():
    """Keep tiny products off a second core that somebody else may be using."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def a_module(*, edits: dict[str, str] | None = None, **constants):
    """Execute the training module with tiny sizes, constants and edits of its text."""
    source = SOURCE.read_text()
    for before, after in (edits or {}).items():
        assert source.count(before) == 1
        source = source.replace(before, after)
    tree = ast.parse(source)
    values = TINY | constants
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and statement.targets[0].id in values:
            statement.value = ast.Constant(values.pop(statement.targets[0].id))
    assert not values
    module = types.ModuleType("mutant")
    exec(compile(ast.fix_missing_locations(tree), "train.py", "exec"), vars(module))
    return module


class ARun:
    device = torch.device("cpu")

    def __init__(self, *, seed=0, steps=0, vocab=32, sequence_len=16):
        self.seed = seed
        self.steps = steps
        self.vocab = vocab
        self.sequence_len = sequence_len
        self.progress = 0.0
        self.names = []
        self.losses = []

    def generator(self, name):
        self.names.append(name)
        return self._generator(name)

    def _generator(self, name):
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))

    def batches(self, rows):
        """Count upwards from a random start: the next token is always the same."""
        starts = self._generator("data")
        ahead = torch.arange(self.sequence_len + 1)
        for step in range(self.steps):
            self.progress = step / self.steps
            first = torch.randint(self.vocab, (rows, 1), generator=starts)
            yield (first + ahead) % self.vocab

    def log(self, loss):
        self.losses.append(loss)


@torch.no_grad()
def with_random_parameters(model: nn.Module) -> nn.Module:
    """Leave no projection at zero, so that everything reaches the logits."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.normal_(0.0, 0.3, generator=generator)
    return model


def some_tokens(rows=2, length=16, vocab=32):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(vocab, (rows, length), generator=generator)


def changed_positions(outputs, changed):
    """Return the positions (B and the rest reduced) at which two outputs differ."""
    differs = (outputs != changed).flatten(2).any(2).any(0)
    return differs.nonzero().flatten().tolist()


@pytest.mark.parametrize("windows", ["L", "S", "SSSL"])
@torch.no_grad()
def test_no_logit_depends_on_a_later_token(windows):
    module = a_module(WINDOW_PATTERN=windows, DEPTH=4)
    model = with_random_parameters(module.build_model(ARun()))
    tokens = some_tokens()

    logits = model(tokens)
    first_changed = []
    for j in range(tokens.size(1)):
        other = tokens.clone()
        other[:, j] = (other[:, j] + 1) % 32
        first_changed.append(min(changed_positions(logits, model(other))))

    assert first_changed == list(range(tokens.size(1)))


@torch.no_grad()
def test_a_short_layer_sees_its_window_and_nothing_before_it():
    module = a_module(SHORT_WINDOW=3, DEPTH=2, WINDOW_PATTERN="S")
    layer = with_random_parameters(module.build_model(ARun())).blocks[0].attention
    x = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(2))
    value_embedding = None
    cos, sin = module.rotary_tables()
    other = x.clone()
    other[:, 5] += 1

    before = layer(x, value_embedding, cos, sin)
    after = layer(other, value_embedding, cos, sin)

    assert changed_positions(before, after) == [5, 6, 7, 8]


def test_the_last_layer_sees_all_whatever_the_pattern():
    module = a_module(DEPTH=6, WINDOW_PATTERN="SSL")

    windows = [module.layer_window(layer) for layer in range(6)]

    assert windows == [8, 8, 16, 8, 8, 16]
    assert a_module(WINDOW_PATTERN="S").layer_window(1) == 16


def test_every_other_layer_has_a_value_embedding_the_last_included():
    even, odd = a_module(DEPTH=4), a_module(DEPTH=3)

    layers = [
        list(module.build_model(ARun()).value_embeddings) for module in (even, odd)
    ]

    assert layers == [["1", "3"], ["0", "2"]]


def test_the_same_seed_gives_the_same_weights_bit_for_bit():
    module = a_module()

    first = module.train(ARun(seed=3, steps=3)).state_dict()
    second = module.train(ARun(seed=3, steps=3)).state_dict()

    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_other_weights_wherever_they_are_random():
    module = a_module()

    first = module.train(ARun(seed=0)).state_dict()
    second = module.train(ARun(seed=1)).state_dict()

    same = {name for name in first if torch.equal(first[name], second[name])}
    assert same == {
        "residual_scalars",
        "x0_scalars",
        "blocks.0.attention.out.weight",
        "blocks.1.attention.out.weight",
        "blocks.1.attention.value_gate.weight",
        "blocks.0.mlp.down.weight",
        "blocks.1.mlp.down.weight",
    }


def test_an_added_parameter_leaves_the_other_initial_values_alone():
    up = "        self.up = Linear(MODEL_DIM, hidden_dim, uniform(MATRIX_BOUND))\n"
    more = up.replace("self.up", "self.more")
    base = a_module().build_model(ARun()).state_dict()

    edited = a_module(edits={up: more + up}).build_model(ARun()).state_dict()

    assert edited.keys() - base.keys() == {
        "blocks.0.mlp.more.weight",
        "blocks.1.mlp.more.weight",
    }
    assert all(torch.equal(edited[name], base[name]) for name in base)


def test_each_parameter_draws_from_a_generator_of_its_own_name():
    run = ARun()

    model = a_module().train(run)

    assert run.names == [name for name, _ in model.named_parameters()]


def test_training_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()

    a_module().train(ARun(steps=2))

    assert torch.equal(torch.get_rng_state(), before)


def test_without_any_batch_train_returns_the_model_as_it_was_built():
    module, run = a_module(), ARun(steps=0)

    model = module.train(run)

    built = module.build_model(ARun()).state_dict()
    assert all(torch.equal(built[name], w) for name, w in model.state_dict().items())
    assert run.losses == []


def test_the_model_maps_token_ids_to_float32_logits_under_the_soft_cap():
    model = with_random_parameters(a_module(SOFTCAP=2).build_model(ARun()))

    logits = model(some_tokens(rows=3, length=9))

    assert logits.shape == (3, 9, 32)
    assert logits.dtype == torch.float32
    assert 1 < logits.abs().max() <= 2


def test_the_loss_of_a_repeating_pattern_falls_in_thirty_steps():
    run = ARun(steps=30)

    a_module().train(run)

    assert run.losses[0].item() == pytest.approx(math.log(32), abs=0.01)
    assert run.losses[-1].item() < 0.3
    assert all(loss.shape == () and not loss.requires_grad for loss in run.losses)


def test_a_batch_split_into_micro_batches_has_the_same_loss_and_nearly_the_same_step():
    whole, split = ARun(steps=2), ARun(steps=2)

    a_module(MICRO_BATCH_ROWS=8).train(whole)
    a_module(MICRO_BATCH_ROWS=2).train(split)

    # Orthogonalising magnifies rounding where a gradient is nearly of low rank
    torch.testing.assert_close(split.losses[0], whole.losses[0])
    torch.testing.assert_close(split.losses[1], whole.losses[1], atol=0.02, rtol=0)


def test_every_parameter_is_in_exactly_one_optimizer_group():
    module = a_module()
    model = module.build_model(ARun())

    groups = [g for o in module.build_optimizers(model) for g in o.param_groups]

    members = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(members) == sorted(id(weight) for weight in model.parameters())
    assert {group["name"] for group in groups} == {
        "embedding",
        "value_embedding",
        "lm_head",
        "residual_scalars",
        "x0_scalars",
        "matrices",
    }


def test_a_parameter_that_no_group_holds_is_named():
    module = a_module()
    model = module.build_model(ARun())
    model.bias = module.parameter(32, init=module.constant(0.0))

    with pytest.raises(AssertionError, match=r"No optimizer group holds bias\."):
        module.build_optimizers(model)


@pytest.mark.parametrize(
    ("progress", "share"),
    [(0, 0), (0.05, 0.5), (0.1, 1), (0.5, 1), (0.6, 1), (0.8, 0.6), (1, 0.2)],
)
def test_the_learning_rate_warms_up_stays_and_warms_down(progress, share):
    module = a_module(WARMUP_SHARE=0.1, WARMDOWN_SHARE=0.4, FINAL_LR_SHARE=0.2)

    assert module.lr_scale(progress) == pytest.approx(share)


def test_without_warm_up_and_warm_down_the_learning_rate_is_constant():
    module = a_module(WARMUP_SHARE=0.0, WARMDOWN_SHARE=0.0)

    assert [module.lr_scale(progress) for progress in (0, 0.5, 1)] == [1, 1, 1]


def test_momentum_grows_and_weight_decay_falls():
    module = a_module()

    momenta = [module.muon_momentum(step) for step in (0, 150, 300, 10_000)]
    decays = [module.muon_weight_decay(progress) for progress in (0, 0.5, 1)]

    assert momenta == pytest.approx([0.85, 0.90, 0.95, 0.95])
    assert decays == pytest.approx([0.2, 0.1, 0])


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48), (4, 32)])
def test_orthogonalisation_brings_all_singular_values_near_one(shape):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, *shape, generator=generator)

    directions = a_module().polar_express(matrices)

    values = torch.linalg.svdvals(directions)
    assert directions.shape == matrices.shape
    assert values.min() > 0.8
    assert values.max() < 1.2


def test_muon_decays_only_what_its_update_shrinks():
    module = a_module()
    weights = torch.tensor([[[1.0, -1.0], [1.0, 1.0]]])
    gradients = torch.tensor([[[1.0, 1.0], [-1.0, 1.0]]])
    zeros = torch.zeros(1, 2, 2), torch.zeros(1, 2, 1)
    without, with_decay = weights.clone(), weights.clone()
    dials = dict(momentum=torch.tensor(0.9), beta2=torch.tensor(0.9))
    dials |= dict(lr=torch.tensor(0.1))

    module.muon_update(
        without,
        gradients,
        *(zero.clone() for zero in zeros),
        weight_decay=torch.tensor(0.0),
        **dials,
    )
    module.muon_update(
        with_decay,
        gradients,
        *(zero.clone() for zero in zeros),
        weight_decay=torch.tensor(0.5),
        **dials,
    )

    torch.testing.assert_close(
        without - with_decay, torch.tensor([[[0.05, 0.0], [0.0, 0.05]]])
    )


def test_a_matrix_that_an_edit_leaves_without_use_stops_nobody():
    read = "self.attention(norm(x), value_embedding, cos, sin)"
    run = ARun(steps=3)

    a_module(edits={f"x = x + {read}": "x = x"}).train(run)

    assert len(run.losses) == 3
    assert all(loss.isfinite() for loss in run.losses)


def test_queries_can_share_key_value_heads():
    run = ARun(steps=3)

    model = a_module(N_KV_HEAD=2).train(run)

    assert model.blocks[0].attention.key.weight.shape == (16, 32)
    assert run.losses[-1] < run.losses[0]


@pytest.mark.parametrize(
    ("constants", "sentence"),
    [
        (dict(N_KV_HEAD=3), "N_HEAD=4 is not a multiple of N_KV_HEAD=3."),
        (dict(WINDOW_PATTERN="SX"), "WINDOW_PATTERN='SX' is not made of S and L."),
        (dict(WARMDOWN_SHARE=1.5), "WARMDOWN_SHARE=1.5 is not in 0..1."),
        (
            dict(MICRO_BATCH_ROWS=3),
            "TOTAL_BATCH_TOKENS=128 is not a multiple of"
            " MICRO_BATCH_ROWS=3 x SEQUENCE_LEN=16.",
        ),
    ],
)
def test_sizes_that_cannot_run_say_what_was_found(constants, sentence):
    with pytest.raises(AssertionError) as caught:
        a_module(**constants)

    assert str(caught.value) == sentence


def test_importing_the_module_prints_nothing_and_imports_kernels_alone_and_draws_nothing():
    script = (
        "import sys, torch\n"
        "state = torch.get_rng_state()\n"
        "import core.training.train\n"
        "assert torch.equal(torch.get_rng_state(), state)\n"
        "assert not torch.cuda.is_initialized()\n"
        "ours = {name for name in sys.modules if name.split('.')[0] == 'core'}\n"
        "kernels = {'core.training.backend'}\n"
        "kernels |= {name for name in ours if 'core.training.kernels' in name}\n"
        "assert ours - kernels == {'core', 'core.training', 'core.training.train'}\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=SOURCE.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
