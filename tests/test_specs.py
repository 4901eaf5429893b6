"""The experiments that deltaspec comes with apply under each profile, and train."""

import math
from pathlib import PurePosixPath

import pytest
import safetensors.torch
import torch
from torch import nn

from core.errors import DeltaspecError
from core.gates import Work, configuration, passed
from core.mutate import Job, Mutant, find_codemod, mutate, mutate_all
from core.profile import CPU, GPU, Profile
from core.spec import Case, CodemodCall, read_spec
from core.training.module import load_module
from core.training.run import Rehearsal
from tests.conftest import ROOT

STEPS = 3
FILES = sorted(path for path in (ROOT / "specs").rglob("*.py") if path.name[0] != "_")
CASES = {case.id: case for path in FILES for case in read_spec(path, ROOT)[0]}
PROFILES = (GPU, CPU)

every_experiment = pytest.mark.parametrize("name", CASES)
under_each_profile = pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.name)


@pytest.fixture(autouse=True)
def one_thread():
    """Keep tiny products off a second core that somebody else may be using."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bases() -> dict[str, Mutant]:
    """Return the base of each profile: the training module in its sizes."""
    source = (ROOT / "core" / "training" / "train.py").read_text()
    return {
        profile.name: mutate(
            Job(source=source, codemods=profile.overrides), project=ROOT
        )
        for profile in PROFILES
    }


@pytest.fixture(scope="module")
def works(bases) -> dict[tuple[str, str], Work | DeltaspecError]:
    """Return each experiment under each profile, or why it cannot run there."""
    keys = [(profile.name, name) for profile in PROFILES for name in CASES]
    jobs = [
        Job(source=bases[profile].source, codemods=codemods(CASES[name]))
        for profile, name in keys
    ]
    mutants = mutate_all(jobs, project=ROOT)
    sizes = {name: configuration(base.source) for name, base in bases.items()}
    return {
        (profile, name): work(CASES[name], mutant, sizes[profile])
        for (profile, name), mutant in zip(keys, mutants, strict=True)
    }


def codemods(case: Case) -> tuple[CodemodCall, ...]:
    """Return the codemods that the spec names, or the one that bears its name."""
    if case.codemods:
        return case.codemods
    spec = PurePosixPath(case.file).with_suffix("").parts[1:]
    reference = find_codemod(ROOT, spec, case.name)
    assert reference is not None, f"{case.id} has no codemod"
    return (CodemodCall(reference=reference, options=case.values),)


def work(case: Case, mutant: Mutant | DeltaspecError, sizes) -> Work | DeltaspecError:
    """Return the work that passes the gates, or the error."""
    if isinstance(mutant, DeltaspecError):
        return mutant
    try:
        return passed(case, mutant, sizes)
    except DeltaspecError as error:
        return error


class ShortRun(Rehearsal):
    """A few batches of random tokens, in the sizes of a module, and their losses."""

    def __init__(self, module, steps: int = STEPS) -> None:
        super().__init__(
            device=torch.device("cpu"),
            seed=0,
            steps=steps,
            sequence_len=module.SEQUENCE_LEN,
            vocab_size=module.VOCAB_SIZE,
        )
        self.losses: list[float] = []

    def log(self, loss: torch.Tensor) -> None:
        self.losses.append(loss.item())


def loaded(source: str, folder):
    """Return the module *source*, imported as a trial imports it."""
    path = folder / "train.py"
    path.write_text(source)
    return load_module(path)


def losses_of(source: str, folder) -> list[float]:
    module = loaded(source, folder)
    run = ShortRun(module)
    module.train(run)
    return run.losses


def tagged(tag: str) -> dict[str, Case]:
    return {name: case for name, case in CASES.items() if tag in case.tags}


# What they say


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_spec_file_has_experiments_and_no_errors(path):
    cases, errors = read_spec(path, ROOT)

    assert cases
    assert errors == []


def test_what_is_called_harm_is_predicted_to_be_harm():
    harm = {case.name: case.expect for case in tagged("harm").values()}

    assert {
        "one_kv_head",
        "parallel_block",
        "weight_tying",
        "no_cautious_decay",
    } <= harm.keys()
    assert [name for name, expect in harm.items() if not expect.delta_bpb > 0] == []


def test_a_placebo_claims_to_be_equivalent_to_the_base():
    placebos = tagged("placebo")

    assert placebos
    assert {case.expect.delta_bpb for case in placebos.values()} == {0}


def test_nothing_but_the_attention_experiments_is_selected_by_attention():
    words = {
        case.id: [*case.tags, *(str(value) for _, value in case.values), case.id]
        for case in CASES.values()
    }

    selected = [name for name in words if "attention" in " ".join(words[name])]

    assert {CASES[name].file for name in selected} == {"specs/attention.py"}


# What they make of the training module


@under_each_profile
@every_experiment
def test_an_experiment_applies_and_can_run(name, profile, works):
    found = works[profile.name, name]

    assert isinstance(found, Work), str(found)


@under_each_profile
def test_no_two_experiments_are_the_same_module(profile: Profile, works):
    modules = [works[profile.name, name].mutant.digest for name in CASES]

    assert len(set(modules)) == len(modules)


def test_depth_9_is_dim_640_in_five_heads_whatever_its_label_says(works):
    found = works["gpu", "specs/architecture.py::one_more_block"].configuration

    sizes = {name: found[name] for name in ("DEPTH", "MODEL_DIM", "N_HEAD")}
    assert sizes == {"DEPTH": 9, "MODEL_DIM": 640, "N_HEAD": 5}


def test_on_a_laptop_one_more_block_is_one_more_head_too(bases, works):
    before = configuration(bases["cpu"].source)
    after = works["cpu", "specs/architecture.py::one_more_block"].configuration

    assert after["DEPTH"] == before["DEPTH"] + 1
    assert after["N_HEAD"] == before["N_HEAD"] + 1


def test_half_a_batch_is_one_micro_batch_as_large_as_before(bases, works):
    before = configuration(bases["gpu"].source)
    after = works["gpu", "specs/optimizer.py::half_batch"].configuration

    assert after["TOTAL_BATCH_TOKENS"] * 2 == before["TOTAL_BATCH_TOKENS"]
    assert after["MICRO_BATCH_ROWS"] == before["MICRO_BATCH_ROWS"]
    assert (
        after["MICRO_BATCH_ROWS"] * after["SEQUENCE_LEN"] == after["TOTAL_BATCH_TOKENS"]
    )


# What they train


@every_experiment
def test_an_experiment_trains_three_steps_and_does_not_look_ahead(
    name, works, tmp_path
):
    module = loaded(works["cpu", name].mutant.source, tmp_path)
    run = ShortRun(module)

    model = module.train(run)

    assert isinstance(model, nn.Module)
    assert len(run.losses) == STEPS
    assert all(map(math.isfinite, run.losses))
    tokens = next(iter(ShortRun(module, steps=1).batches(2)))[:, :-1]  # (B, T)
    changed = tokens.clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % module.VOCAB_SIZE
    with torch.no_grad():
        logits, others = model(tokens), model(changed)
    assert logits.shape == (*tokens.shape, module.VOCAB_SIZE)
    assert torch.equal(logits[:, :40], others[:, :40])
    assert not torch.equal(logits[:, 40], others[:, 40])


@pytest.mark.parametrize("name", tagged("placebo"))
def test_a_placebo_changes_no_loss_but_through_what_is_drawn(
    name, bases, works, tmp_path
):
    base = losses_of(bases["cpu"].source, tmp_path)

    placebo = losses_of(works["cpu", name].mutant.source, tmp_path)

    assert (placebo == base) is ("seed" not in CASES[name].tags)


def test_tied_weights_are_one_parameter_in_training_and_in_the_file(works, tmp_path):
    source = works["cpu", "specs/architecture.py::weight_tying"].mutant.source
    module = loaded(source, tmp_path)

    model = module.train(ShortRun(module))
    safetensors.torch.save_model(model, tmp_path / "weights")
    served = module.train(ShortRun(module, steps=0))
    safetensors.torch.load_model(served, tmp_path / "weights")

    for tied in (model, served):
        assert tied.lm_head.weight is tied.embedding.weight
    assert torch.equal(served.lm_head.weight, model.lm_head.weight)
    groups = [g for o in module.build_optimizers(model) for g in o.param_groups]
    members = [weight for group in groups for weight in group["params"]]
    assert sum(weight is model.embedding.weight for weight in members) == 1
    assert len(members) == len(list(model.parameters()))


def test_tied_weights_keep_the_initial_values_of_the_embedding(bases, works, tmp_path):
    tied = works["cpu", "specs/architecture.py::weight_tying"].mutant.source

    weights = []
    for source in (bases["cpu"].source, tied):
        module = loaded(source, tmp_path)
        weights.append(module.train(ShortRun(module, steps=0)).embedding.weight)

    assert torch.equal(*weights)
