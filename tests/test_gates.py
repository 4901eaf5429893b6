import ast
import json
import re
from pathlib import Path

import attrs
import pytest

from core.errors import ConfigurationError, GateRefused
from core.gates import check_configuration, configuration, passed
from core.mutate import Refusal, unchanged
from core.profile import PROFILES
from core.spec import Case

TRAIN = Path(__file__).resolve().parents[1] / "core" / "training" / "train.py"
SOURCE = TRAIN.read_text()
HINT = "\n\nhint: change the codemod's values so that this holds."


def edited(source=SOURCE, **constants):
    """Return *source* with constants set, as ``constants.SetConstant`` sets them."""
    for name, value in constants.items():
        source, count = re.subn(
            rf"^{name} = .*?(?=^\w|^#|^$)",
            lambda _, line=f"{name} = {value!r}\n": line,
            source,
            count=1,
            flags=re.MULTILINE | re.DOTALL,
        )
        assert count == 1, f"{name} is no constant of the training module"
    return source


def sized(profile):
    """Return the base of *profile*."""
    sizes = (dict(call.options) for call in profile.overrides)
    return edited(**{size["name"]: size["value"] for size in sizes})


def refusal(source, base=SOURCE):
    """Return why *source* cannot run, without the line, which moves with the module."""
    with pytest.raises(ConfigurationError) as caught:
        check_configuration(source, configuration(base))
    said = str(caught.value)
    line, _, rest = said.partition(" of the mutated module fails: ")
    return re.sub(r"^line \d+$", "", line) + rest


# One row for each assertion of train.py: what breaks it, the rule, what was found.
BROKEN = [
    ({"DEPTH": 0}, "DEPTH >= 1", "DEPTH=0 is below 1."),
    (
        {"HEAD_DIM": 127},
        "HEAD_DIM % 2 == 0",
        "HEAD_DIM=127 is odd: rotation pairs its channels.",
    ),
    ({"MODEL_DIM": 0}, "MODEL_DIM >= 1", "MODEL_DIM=0 is below 1."),
    (
        {"MODEL_DIM": 500},
        "MODEL_DIM % HEAD_DIM == 0",
        "MODEL_DIM=500 is not a multiple of HEAD_DIM=128.",
    ),
    ({"N_KV_HEAD": 0}, "N_KV_HEAD >= 1", "N_KV_HEAD=0 is below 1."),
    (
        {"N_KV_HEAD": 3},
        "N_HEAD % N_KV_HEAD == 0",
        "N_HEAD=4 is not a multiple of N_KV_HEAD=3.",
    ),
    (
        {"VALUE_GATE_CHANNELS": 513},
        "1 <= VALUE_GATE_CHANNELS <= MODEL_DIM",
        "VALUE_GATE_CHANNELS=513 is not in 1..MODEL_DIM=512.",
    ),
    ({"WINDOW_PATTERN": ""}, "WINDOW_PATTERN", "WINDOW_PATTERN='' names no window."),
    (
        {"WINDOW_PATTERN": "SSM"},
        "set(WINDOW_PATTERN) <= set('SL')",
        "WINDOW_PATTERN='SSM' is not made of S and L.",
    ),
    (
        {"SHORT_WINDOW": 0},
        "1 <= SHORT_WINDOW <= SEQUENCE_LEN",
        "SHORT_WINDOW=0 is not in 1..SEQUENCE_LEN=2048.",
    ),
    ({"ROPE_BASE": 1}, "ROPE_BASE > 1", "ROPE_BASE=1 is not above 1."),
    ({"SOFTCAP": 0.0}, "SOFTCAP > 0", "SOFTCAP=0.0 is not above 0."),
    (
        {"TOTAL_BATCH_TOKENS": 0},
        "TOTAL_BATCH_TOKENS >= 1",
        "TOTAL_BATCH_TOKENS=0 is below 1.",
    ),
    ({"MICRO_BATCH_ROWS": 0}, "MICRO_BATCH_ROWS >= 1", "MICRO_BATCH_ROWS=0 is below 1."),
    (
        {"MICRO_BATCH_ROWS": 96},
        "TOTAL_BATCH_TOKENS % (MICRO_BATCH_ROWS * SEQUENCE_LEN) == 0",
        "TOTAL_BATCH_TOKENS=524288 is not a multiple of MICRO_BATCH_ROWS=96 x "
        "SEQUENCE_LEN=2048.",
    ),
    (
        {"WARMUP_SHARE": -0.1},
        "0 <= WARMUP_SHARE <= 1",
        "WARMUP_SHARE=-0.1 is not in 0..1.",
    ),
    (
        {"WARMDOWN_SHARE": 1.5},
        "0 <= WARMDOWN_SHARE <= 1",
        "WARMDOWN_SHARE=1.5 is not in 0..1.",
    ),
    (
        {"WARMUP_SHARE": 0.6},
        "WARMUP_SHARE + WARMDOWN_SHARE <= 1",
        "WARMUP_SHARE=0.6 + WARMDOWN_SHARE=0.5 is above 1.",
    ),
    (
        {"FINAL_LR_SHARE": 2},
        "0 <= FINAL_LR_SHARE <= 1",
        "FINAL_LR_SHARE=2 is not in 0..1.",
    ),
    (
        {"POLAR_EXPRESS_STEPS": 6},
        "1 <= POLAR_EXPRESS_STEPS <= len(POLAR_EXPRESS)",
        "POLAR_EXPRESS_STEPS=6 is not in 1..5.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("constants", "rule", "found"), BROKEN)
def test_sizes_that_break_a_rule_are_refused_with_what_was_found(
    constants, rule, found
):
    assert refusal(edited(**constants)) == f"{rule}. {found}{HINT}"


def test_each_rule_of_the_training_module_can_be_broken():
    rules = {
        ast.unparse(statement.test)
        for statement in ast.parse(SOURCE).body
        if isinstance(statement, ast.Assert)
    }

    assert {rule for _, rule, _ in BROKEN} == rules


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.name)
def test_the_base_of_each_profile_can_run(profile):
    source = sized(profile)

    found = check_configuration(source, configuration(source))

    overrides = {
        o["name"]: o["value"] for o in (dict(c.options) for c in profile.overrides)
    }
    assert overrides.items() <= found.items()


def test_sizes_that_rest_on_a_changed_one_follow_it():
    found = configuration(edited(DEPTH=12))

    assert (found["MODEL_DIM"], found["N_HEAD"], found["N_KV_HEAD"]) == (768, 6, 6)


def test_the_line_of_a_broken_rule_is_that_of_the_mutated_module():
    source = "SEQUENCE_LEN = 1\n\n\nassert SEQUENCE_LEN > 1, f'{SEQUENCE_LEN=}'\n"

    with pytest.raises(ConfigurationError) as caught:
        check_configuration(source, {"SEQUENCE_LEN": 1})

    assert str(caught.value) == (
        f"line 4 of the mutated module fails: SEQUENCE_LEN > 1. SEQUENCE_LEN=1{HINT}"
    )


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.name)
@pytest.mark.parametrize(
    ("name", "value"),
    [("SEQUENCE_LEN", 96), ("VOCAB_SIZE", 50_257), ("VOCAB_SIZE", None)],
)
def test_what_the_data_were_prepared_for_is_left_to_the_profile(profile, name, value):
    base = sized(profile)
    was = configuration(base)[name]

    with pytest.raises(ConfigurationError) as caught:
        check_configuration(edited(base, **{name: value}), configuration(base))

    assert str(caught.value) == (
        f"{name} is {value!r}, and the data were prepared for {was!r}.\n\n"
        f"hint: leave {name} alone: it belongs to the profile."
    )


@pytest.mark.parametrize(
    "again",
    [
        "SEQUENCE_LEN += 1024",
        "SEQUENCE_LEN, OTHER = 1024, 1",
        "if DEPTH > 1:\n    SEQUENCE_LEN = 1024",
        "for SEQUENCE_LEN in (1024,):\n    pass",
    ],
)
def test_what_belongs_to_the_data_cannot_be_changed_by_binding_it_again(again):
    with pytest.raises(ConfigurationError, match="the data were prepared for 2048"):
        check_configuration(f"{SOURCE}\n{again}\n", configuration(SOURCE))


@pytest.mark.parametrize(
    "rule",
    [
        "assert torch.cuda.is_available()",
        "assert DTYPE == torch.bfloat16, f'{DTYPE}'",
        "assert layer_window(0) > 5000",
        "assert missing",
        "assert DEPTH % 0 == 0",
    ],
)
def test_a_rule_that_needs_more_than_constants_is_left_to_the_trial(rule):
    source = f"{SOURCE}\nDTYPE = torch.float32\n{rule}\n"

    assert check_configuration(source, configuration(SOURCE))["DEPTH"] == 8


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("assert DEPTH > 99", "DEPTH > 99. Found DEPTH=8."),
        ("assert DEPTH > N_HEAD * 9", "DEPTH > N_HEAD * 9. Found DEPTH=8, N_HEAD=4."),
        (
            "assert DEPTH > 99, 'depth {}'.format(DEPTH)",
            "DEPTH > 99. Found DEPTH=8.",
        ),
        ("assert False", "False. It never holds."),
    ],
)
def test_a_rule_without_a_message_that_can_be_read_is_broken_all_the_same(rule, said):
    assert refusal(f"{SOURCE}\n{rule}\n") == said + HINT


def test_a_rule_may_ask_about_a_list():
    source = f"{SOURCE}\nWIDTHS = [1, 2]\nassert len(WIDTHS) > 2\n"

    assert refusal(source) == f"len(WIDTHS) > 2. Found WIDTHS=[1, 2].{HINT}"


def test_only_what_can_be_stored_is_a_configuration():
    source = (
        "A = 1\nB = (1, ('x', None))\nC = [1]\nD = {'k': 1}\nE = (1, [2])\n"
        "F = b'x'\nG = (1j,)\nH = (..., 1)\nI = torch.float32\n"
    )

    found = configuration(source)

    assert found == {"A": 1, "B": (1, ("x", None))}
    assert json.loads(json.dumps(found)) == {"A": 1, "B": [1, ["x", None]]}


def test_work_that_passed_carries_the_resolved_sizes_of_its_mutant():
    mutant = unchanged(edited(DEPTH=4))
    case = Case(file="specs/x.py", line=1, name="idea", hypothesis="h", change="c")

    work = passed(case, mutant, configuration(SOURCE))

    assert (work.case, work.mutant) == (case, mutant)
    assert work.configuration == configuration(mutant.source)
    assert work.configuration["N_HEAD"] == 2


IMPORT = Refusal(
    line=212,
    symbol="GPT.forward",
    reason="it imports os; a training module imports torch and math",
)
OPEN = Refusal(
    line=3,
    symbol="",
    reason="it uses open; a training module has no files, processes or network",
)


@pytest.mark.parametrize(
    ("refusals", "message"),
    [
        (
            (IMPORT,),
            "line 212 of the mutated module, in GPT.forward: it imports os; a training "
            "module imports torch and math.",
        ),
        (
            (OPEN, IMPORT, IMPORT),
            "line 3 of the mutated module: it uses open; a training module has no files, "
            "processes or network. And 2 more.",
        ),
    ],
)
def test_a_mutant_that_does_what_is_none_of_its_business_is_refused(refusals, message):
    mutant = attrs.evolve(unchanged("DEPTH = 0\nassert DEPTH\n"), refusals=refusals)
    case = Case(file="specs/x.py", line=1, name="idea", hypothesis="h", change="c")

    with pytest.raises(GateRefused) as caught:
        passed(case, mutant, {})

    assert str(caught.value) == (
        f"{message}\n\nhint: leave it out of what the codemod writes: a training module "
        "computes with torch on what run hands it."
    )


def test_nothing_of_a_module_is_executed_to_check_it(tmp_path):
    target = tmp_path / "touched"
    harm = f"open({str(target)!r}, 'w')"
    source = f"{SOURCE}\n{harm}\nX = {harm}\nassert {harm}\nassert False, {harm}\n"

    assert refusal(source) == f"False. It never holds.{HINT}"

    assert not target.exists()
