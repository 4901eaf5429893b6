import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import libcst as cst
import pytest
from libcst.codemod import CodemodContext

from codemods.architecture.one_more_block import OneMoreBlock
from codemods.architecture.weight_tying import WeightTying
from codemods.base import Codemod
from codemods.constants import ScaleConstant, SetConstant
from codemods.functions import ReplaceFunction
from codemods.optimizer import SetOptimizerGroup
from codemods.parameters import AddParameter
from codemods.statements import (
    DeleteStatement,
    InsertAfter,
    InsertBefore,
    ReplaceStatement,
)
from core.errors import CodemodRefused, DeltaspecError, NoChange, SiteNotFound

REPO = Path(__file__).resolve().parents[1]


def import_all(folder: Path) -> None:
    """Import each file below *folder*, as the worker does."""
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        name = "codemods"
        for n, part in enumerate(parts[:-1], 1):
            name = f"{name}.{part}"
            parent = importlib.import_module(name)
            if not hasattr(parent, "__path__"):  # optimizer.py, beside optimizer/
                parent.__path__ = [str(folder.joinpath(*parts[:n]))]
        if parts[-1] != "__init__":
            name = f"{name}.{parts[-1]}"
        importlib.import_module(name)


def every_codemod() -> list[type[Codemod]]:
    import_all(REPO / "codemods")
    found: list[type[Codemod]] = []
    waiting = [Codemod]
    while waiting:
        for codemod in waiting.pop().__subclasses__():
            waiting.append(codemod)
            if codemod.__module__.startswith("codemods.") and not (
                codemod.__name__.endswith("Codemod")
            ):
                found.append(codemod)
    return sorted(
        set(found), key=lambda codemod: (codemod.__module__, codemod.__name__)
    )


def applied(codemod: type[Codemod], module: str, /, **options) -> str:
    tree = cst.parse_module(dedent(module))
    return codemod(CodemodContext(), **options).transform_module(tree).code


def error_of(codemod: type[Codemod], module: str, /, **options) -> DeltaspecError:
    with pytest.raises(DeltaspecError) as caught:
        applied(codemod, module, **options)
    return caught.value


@pytest.mark.parametrize("codemod", every_codemod(), ids=lambda c: c.__name__)
def test_rewrites_each_example_as_shown(codemod):
    assert codemod.EXAMPLES
    assert codemod.__doc__
    assert codemod.DESCRIPTION != Codemod.DESCRIPTION
    for options, before, after in codemod.examples():
        assert applied(codemod, before, **options) == after


OWN = '''
"""Say one."""

from codemods.base import Codemod
from codemods.{module} import Codemod as _Same


class MyIdea(Codemod):
    """Turn 0 into 1."""

    DESCRIPTION = "Turn 0 into 1"
    EXAMPLES = (("x = 0", "x = 1"),)

    def leave_Integer(self, original_node, updated_node):
        return updated_node.with_changes(value="1")
'''


def test_codemods_in_a_folder_named_like_a_module_of_the_vocabulary_run_too(tmp_path):
    shutil.copytree(REPO / "codemods", tmp_path / "codemods")
    (tmp_path / "tests").mkdir()
    shutil.copy(__file__, tmp_path / "tests" / "test_codemods.py")
    modules = sorted(
        path.stem
        for path in (tmp_path / "codemods").glob("*.py")
        if path.stem != "__init__"
    )
    for module in modules:
        (tmp_path / "codemods" / module).mkdir(exist_ok=True)
        own = tmp_path / "codemods" / module / "my_idea.py"
        own.write_text(OWN.format(module=module))

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "example and MyIdea", "tests"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPO}"},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert f"\n{len(modules)} passed" in done.stdout, done.stdout


# The base


class Scaled(Codemod):
    """Scale what is there."""

    EXAMPLES = (("x = 2", "x = 2.4"),)

    def __init__(self, context, *, scale: float = 1.2, times: int = 1) -> None:
        super().__init__(context)
        self.scale = scale


class NoOptions(Codemod):
    """Do nothing."""


def test_a_codemod_that_finds_nothing_to_rewrite_is_an_error():
    error = error_of(Scaled, "x = 1", scale=1.3)

    assert isinstance(error, SiteNotFound)
    assert str(error) == (
        "Scaled(scale=1.3) found nothing to rewrite in the training module.\n\n"
        "hint: compare the site that its EXAMPLES show with the training module."
    )


def test_a_codemod_without_examples_is_told_to_show_its_site():
    assert str(error_of(NoOptions, "x = 1")) == (
        "NoOptions() found nothing to rewrite in the training module.\n\n"
        "hint: compare what it looks for with the training module, and show it in "
        "EXAMPLES."
    )


@pytest.mark.parametrize(
    ("codemod", "options", "message"),
    [
        (
            SetConstant,
            {"nam": "X", "value": 1},
            "SetConstant does not take the option 'nam'.\n\n"
            "hint: did you mean 'name'? use one of its options: name, value, "
            "expression.",
        ),
        (
            NoOptions,
            {"scale": 1},
            "NoOptions does not take the option 'scale'.\n\n"
            "hint: leave it out: the codemod takes no options.",
        ),
        (
            SetConstant,
            {"value": 1},
            "SetConstant needs the option 'name'.\n\n"
            "hint: give name=; its options are: name, value, expression.",
        ),
        (
            Scaled,
            {"scale": "1.2"},
            "Scaled(scale='1.2') is not of the type float.\n\n"
            "hint: give scale= as float.",
        ),
        (
            Scaled,
            {"times": True},
            "Scaled(times=True) is not of the type int.\n\nhint: give times= as int.",
        ),
    ],
)
def test_options_that_a_codemod_does_not_take_are_refused(codemod, options, message):
    error = error_of(codemod, "X = 1", **options)

    assert isinstance(error, CodemodRefused)
    assert str(error) == message


def test_an_integer_is_accepted_where_a_float_is_asked_for():
    assert Scaled(CodemodContext(), scale=1).scale == 1


# LibCST's own command


def tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "libcst.tool", "codemod", *arguments],
        cwd=REPO,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_codemod_runs_under_libcst_tool(tmp_path):
    module = tmp_path / "train.py"
    module.write_text("ROPE_BASE = 10_000  # rotary\nX = [1,2]\n")

    done = tool(
        "constants.SetConstant", "--name", "ROPE_BASE", "--value", "50000", str(module)
    )

    assert done.returncode == 0, done.stderr
    assert module.read_text() == "ROPE_BASE = 50_000  # rotary\nX = [1,2]\n"


def test_a_miss_fails_under_libcst_tool_too(tmp_path):
    module = tmp_path / "train.py"
    module.write_text("ROPE_BASE = 10_000\n")

    done = tool("constants.SetConstant", "--name", "ROPE", "--value", "1", str(module))

    assert done.returncode == 1
    assert "The training module has no constant 'ROPE'." in done.stderr
    assert module.read_text() == "ROPE_BASE = 10_000\n"


# Constants


@pytest.mark.parametrize(
    ("before", "options", "after"),
    [
        ("X = 1", {"value": 2.5}, "X = 2.5"),
        ("X = 1", {"value": True}, "X = True"),
        ("X = 1", {"value": -3}, "X = -3"),
        ("X = 1", {"value": (0.8, 0.95)}, "X = (0.8, 0.95)"),
        ("X = 1", {"value": (1,)}, "X = (1,)"),
        ("X = 1", {"value": 'it"s'}, "X = 'it\"s'"),
        ("X = 1", {"value": "Y // 4"}, 'X = "Y // 4"'),
        ("X = 1", {"expression": "Y // 4"}, "X = Y // 4"),
        ("X = 1", {"expression": "None"}, "X = None"),
        ("def f():\n    X = 1\nX = 1", {"value": 2}, "def f():\n    X = 1\nX = 2"),
    ],
)
def test_a_constant_is_set_as_a_person_would_write_it(before, options, after):
    assert applied(SetConstant, before, name="X", **options) == after


@pytest.mark.parametrize(
    ("source", "options", "kind", "message"),
    [
        (
            "ROPE_BASE = 1\nDEPTH = 8",
            {"name": "ROPE_BAS", "value": 1},
            SiteNotFound,
            "The training module has no constant 'ROPE_BAS'.\n\n"
            "hint: use a name that is there: ROPE_BASE.",
        ),
        (
            "X = 1\nX = 2",
            {"name": "X", "value": 1},
            CodemodRefused,
            "The training module binds 'X' 2 times.\n\n"
            "hint: write a codemod that tells them apart.",
        ),
        (
            "X = 10_000",
            {"name": "X", "value": 10000},
            NoChange,
            "X is 10_000 already.\n\n"
            "hint: set another value, or leave the codemod out.",
        ),
        (
            "X = 1",
            {"name": "X"},
            CodemodRefused,
            "Of value= and expression=, neither is given.\n\n"
            'hint: give one; None itself is expression="None".',
        ),
        (
            "X = 1",
            {"name": "X", "value": 1, "expression": "2"},
            CodemodRefused,
            "Of value= and expression=, both is given.\n\n"
            'hint: give one; None itself is expression="None".',
        ),
        (
            "X = 1",
            {"name": "X", "expression": "1 +"},
            CodemodRefused,
            "The option expression= is not one expression of Python: invalid syntax."
            "\n\nhint: write one expression that Python can parse as expression=.",
        ),
        (
            "X = 1",
            {"name": "X", "expression": "(" * 5000 + ")" * 5000},
            CodemodRefused,
            "The option expression= is not one expression of Python: too many nested "
            "parentheses."
            "\n\nhint: write one expression that Python can parse as expression=.",
        ),
        (
            "X = 1",
            {"name": "X", "value": float("inf")},
            CodemodRefused,
            "value=inf has no literal in Python.\n\n"
            "hint: give it as expression=\"float('inf')\".",
        ),
    ],
)
def test_a_constant_that_cannot_be_set_says_why(source, options, kind, message):
    error = error_of(SetConstant, source, **options)

    assert type(error) is kind
    assert str(error) == message


@pytest.mark.parametrize(
    ("before", "factor", "after"),
    [
        ("X = 8", "3/4", "X = 6"),
        ("X = -8", 2, "X = -16"),
        ("X = 10_000", 20, "X = 200_000"),
        ("X = 0.04", 0.8, "X = 0.032"),  # 0.04 * 0.8 is 0.032000000000000001
        ("X = -0.5", 0.1, "X = -0.05"),
        ("X = 1e-10", 10, "X = 1e-09"),
        ("X = 2 ** 19", 4, "X = 2 ** 21"),
        ("X = 2**19", 3, "X = 2**19 * 3"),
        ("Y = 2048\nX = Y // 2", "1/4", "Y = 2048\nX = Y // 8"),
        ("Y = 2048\nX = Y // 2", "3/4", "Y = 2048\nX = Y // 2 * 3 // 4"),
        ("Y = 6\nX = Y + 2", 0.5, "Y = 6\nX = (Y + 2) // 2"),
        ("Y = 6\nX = (Y + 2)", 0.5, "Y = 6\nX = (Y + 2) // 2"),
        ("Y = 0.5\nX = Y", "1/3", "Y = 0.5\nX = Y / 3"),
        ("Y = 0.5\nX = Y", "2/3", "Y = 0.5\nX = Y * 2 / 3"),
        ("Y = 0.5\nX = Y + 1.0", 0.1, "Y = 0.5\nX = (Y + 1.0) * 0.1"),
        ("Y = 0.5\nX = 0.6 * Y * 3", 0.5, "Y = 0.5\nX = 0.3 * Y * 3"),
    ],
)
def test_a_constant_is_scaled_exactly_and_readably(before, factor, after):
    assert applied(ScaleConstant, before, name="X", factor=factor) == after


@pytest.mark.parametrize(
    ("source", "factor", "message"),
    [
        (
            "X = 127",
            "1/4",
            "X = 127 is 127, and 1/4 of it is no integer.\n\n"
            "hint: choose a factor that leaves an integer.",
        ),
        (
            "Y = 6\nX = Y // 2",
            0.5,
            "X = Y // 2 is 3, and 1/2 of it is no integer.\n\n"
            "hint: choose a factor that leaves an integer.",
        ),
        (
            'X = "SSSL"',
            2,
            'X = "SSSL" is not a number that can be scaled.\n\n'
            "hint: set it by SetConstant(name=..., expression=...).",
        ),
        (
            "X = torch.pi",
            2,
            "X = torch.pi is not a number that can be scaled.\n\n"
            "hint: set it by SetConstant(name=..., expression=...).",
        ),
        (
            "X = 1",
            "a half",
            "factor='a half' is not a number.\n\n"
            'hint: give a number as 0.25, or a fraction as "1/4".',
        ),
        (
            "X = 1",
            0,
            "factor=0 is not above 0.\n\n"
            "hint: scale by a positive factor, or set the value by SetConstant.",
        ),
        (
            "X = 1",
            1,
            "X is 1 already.\n\nhint: set another value, or leave the codemod out.",
        ),
    ],
)
def test_a_constant_that_cannot_be_scaled_says_why(source, factor, message):
    assert str(error_of(ScaleConstant, source, name="X", factor=factor)) == message


# Functions and statements

MLP = """\
class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = Linear(4, 8)
        self.down = Linear(8, 4)

    def forward(self, x):
        # up
        x = self.up(x)
        if x is not None:
            x = F.relu(x)
        x = norm(x[..., 0])
        x = norm(x)
        return self.down(x)
"""


def test_a_replaced_method_keeps_the_comments_above_it_and_takes_those_given():
    source = "def f():\n    return 1\n\n\n# why\n@old\ndef g():\n    return 1\n"

    changed = applied(
        ReplaceFunction, source, name="g", source="# new\ndef g(x):\n    return x\n"
    )

    assert changed == (
        "def f():\n    return 1\n\n\n# why\n# new\ndef g(x):\n    return x\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "MLP.forwrd", "source": "def forward(self): pass"},
            "The training module defines no 'MLP.forwrd'.\n\n"
            "hint: use a name that is there: MLP.forward.",
        ),
        (
            {"name": "MLP.forward", "source": "def froward(self): pass"},
            "ReplaceFunction(name='MLP.forward', source='def froward(self): pass') "
            "needs the definition of one function 'forward', and its source defines "
            "froward.\n\n"
            "hint: begin source= with 'def forward(' and give nothing else; a helper "
            "goes before it by statements.InsertBefore.",
        ),
        (
            {"name": "MLP.forward", "source": "# nothing"},
            "The option source= is not statements of Python: there is no statement."
            "\n\nhint: write statements that Python can parse as source=.",
        ),
    ],
)
def test_a_function_that_cannot_be_replaced_says_why(options, message):
    assert str(error_of(ReplaceFunction, MLP, **options)) == message


@pytest.mark.parametrize(
    ("statement", "line"),
    [
        ("x = norm(x)", "        x = norm(x)\n"),
        ("x   =   norm( x )  # the layout does not count", "        x = norm(x)\n"),
        ("x = norm(x[..., 0])", "        x = norm(x[..., 0])\n"),
        ("x = F.relu(...)", "            x = F.relu(x)\n"),
        ("return ...", "        return self.down(x)\n"),
    ],
)
def test_a_statement_is_found_by_its_meaning(statement, line):
    changed = applied(InsertAfter, MLP, function="MLP.forward",
                      statement=statement, source="y = 1")  # fmt: skip

    indentation = line[: len(line) - len(line.lstrip())]
    assert changed == MLP.replace(line, f"{line}{indentation}y = 1\n")


def test_a_compound_statement_is_found_whatever_its_body():
    changed = applied(
        DeleteStatement, MLP, function="MLP.forward", statement="if x is not None: ..."
    )

    assert changed == MLP.replace(
        "        if x is not None:\n            x = F.relu(x)\n", ""
    )


def test_the_last_statement_of_a_block_leaves_pass():
    changed = applied(
        DeleteStatement, MLP, function="MLP.forward", statement="x = F.relu(x)"
    )

    assert changed == MLP.replace("x = F.relu(x)", "pass")


def test_several_statements_can_take_the_place_of_one():
    changed = applied(
        ReplaceStatement,
        MLP,
        function="MLP.forward",
        statement="x = self.up(x)",
        source="""
            # twice
            x = self.up(x)
            x = x + 1
        """,
    )

    assert changed == MLP.replace(
        "        # up\n        x = self.up(x)\n",
        "        # up\n        # twice\n        x = self.up(x)\n        x = x + 1\n",
    )


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"function": "MLP.forward", "statement": "x = nrm(x)"},
            SiteNotFound,
            "There is no statement 'x = nrm(x)' in MLP.forward.\n\n"
            "hint: take one that is there: x = norm(x); x = F.relu(x); "
            "x = norm(x[..., 0]).",
        ),
        (
            {"statement": "x = norm(x)"},
            SiteNotFound,
            "There is no statement 'x = norm(x)' in the training module, outside "
            "functions and classes.\n\n"
            "hint: it stands in MLP.forward: give function='MLP.forward'.",
        ),
        (
            {"statement": "x = nrm(x)"},
            SiteNotFound,
            "There is no statement 'x = nrm(x)' in the training module, outside "
            "functions and classes.\n\n"
            "hint: take one that is there: class MLP(nn.Module): ....",
        ),
        (
            {"function": "MLP.forward", "statement": "x = norm(...)"},
            CodemodRefused,
            "2 statements in MLP.forward match 'x = norm(...)': "
            "line 12: x = norm(x[..., 0]); line 13: x = norm(x).\n\n"
            "hint: write out the one that is meant, name its function, or replace "
            "the whole by functions.ReplaceFunction.",
        ),
        (
            {"function": "MLP.forward", "statement": "a = 1\nb = 2"},
            CodemodRefused,
            "The option statement= holds 2 statements, not one.\n\n"
            "hint: give one of them, and what surrounds it to another codemod.",
        ),
    ],
)
def test_a_statement_that_is_not_found_once_says_what_is_there(options, kind, message):
    error = error_of(DeleteStatement, MLP, **options)

    assert type(error) is kind
    assert str(error) == message


def test_source_before_a_statement_leaves_its_comment_with_it():
    changed = applied(
        InsertBefore, MLP, function="MLP.forward", statement="x = self.up(x)",
        source="y = x",
    )  # fmt: skip

    assert changed == MLP.replace("        # up\n", "        y = x\n        # up\n")


# Parameters and groups

GROUPS = """\
class GPT(nn.Module):
    def __init__(self):
        self.head = Linear(2, 2)
        self.scalars = parameter(2)

class MLP(nn.Module):
    def __init__(self):
        self.up = Linear(2, 2)

def build(model):
    return [
        dict(name="head", params=list(model.head.parameters()), lr=LR),
        dict(
            name="scalars",
            params=[model.scalars],
            lr=0.5
        )
    ]
"""


def test_a_keyword_is_added_to_a_group_without_a_trailing_comma():
    changed = applied(
        SetOptimizerGroup, GROUPS, group="scalars", keyword="eps", value=1e-8
    )

    assert changed == GROUPS.replace("lr=0.5\n", "lr=0.5,\n            eps=1e-08\n")


def test_a_layer_gets_a_group_after_the_one_that_it_is_like():
    changed = applied(
        AddParameter,
        GROUPS,
        owner="GPT",
        name="tail",
        value="Linear(2, 2)",
        like="head",
    )

    head = 'dict(name="head", params=list(model.head.parameters()), lr=LR),\n'
    assert changed == GROUPS.replace(
        "parameter(2)\n", "parameter(2)\n        self.tail = Linear(2, 2)\n"
    ).replace(head, head + " " * 8 + head.replace("head", "tail"))


def test_a_parameter_gets_a_group_behind_the_last_one():
    changed = applied(
        AddParameter,
        GROUPS,
        owner="GPT",
        name="more",
        value="parameter(2)",
        like="scalars",
        lr="2 * LR",
    )

    last = GROUPS[GROUPS.index("        dict(\n") : GROUPS.index("\n    ]")]
    more = last.replace("scalars", "more").replace("lr=0.5", "lr=2 * LR")
    assert changed == GROUPS.replace(
        "parameter(2)\n", "parameter(2)\n        self.more = parameter(2)\n"
    ).replace(last, f"{last},\n{more}")


@pytest.mark.parametrize(
    ("codemod", "options", "message"),
    [
        (
            SetOptimizerGroup,
            {"group": "matrices", "keyword": "lr", "value": 1},
            "The training module has no optimizer group 'matrices'.\n\n"
            "hint: use a group that is there: head, scalars.",
        ),
        (
            SetOptimizerGroup,
            {"group": "head", "keyword": "weight decay", "value": 1},
            "keyword='weight decay' is not a name.\n\n"
            'hint: give the name of an option of the optimizer, as "weight_decay".',
        ),
        (
            SetOptimizerGroup,
            {"group": "scalars", "keyword": "lr", "value": 0.5},
            "lr= of 'scalars' is 0.5 already.\n\n"
            "hint: set another value, or leave the codemod out.",
        ),
        (
            AddParameter,
            {"owner": "GPT", "name": "self.x", "value": "1"},
            "name='self.x' is not a name.\n\n"
            "hint: give the name of the attribute, without 'self.'.",
        ),
        (
            AddParameter,
            {"owner": "GPT", "name": "head", "value": "1"},
            "GPT has an attribute 'head' already.\n\n"
            "hint: choose another name, or change it by statements.ReplaceStatement.",
        ),
        (
            AddParameter,
            {"owner": "GPT", "name": "x", "value": "1", "lr": "0.1"},
            "lr='0.1' is given without like=.\n\n"
            "hint: name in like= the optimizer group whose other settings it gets.",
        ),
        (
            AddParameter,
            {"owner": "Block", "name": "x", "value": "1"},
            "The training module defines no 'Block.__init__'.\n\n"
            "hint: use a name that is there: MLP.__init__, GPT.__init__.",
        ),
        (
            AddParameter,
            {"owner": "MLP", "name": "x", "value": "1", "like": "head"},
            "The optimizer group 'head' holds nothing of MLP.\n\n"
            "hint: leave like= out where the owner is part of a block: the group of "
            "the blocks holds its parameters.",
        ),
    ],
)
def test_a_group_or_parameter_that_cannot_be_changed_says_why(
    codemod, options, message
):
    assert str(error_of(codemod, GROUPS, **options)) == message


# Codemods of single experiments


def test_one_more_block_needs_a_depth_that_is_known():
    error = error_of(OneMoreBlock, "DEPTH = int(os.environ['DEPTH'])")

    assert isinstance(error, CodemodRefused)
    assert str(error) == (
        "DEPTH = int(os.environ['DEPTH']) is not a number of blocks.\n\n"
        "hint: set it by constants.SetConstant(name=..., expression=...)."
    )


def test_a_computed_depth_becomes_the_number_after_it():
    assert applied(OneMoreBlock, "N = 3\nDEPTH = 2 * N") == "N = 3\nDEPTH = 7"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            'first = dict(name="lm_head", params=[model.head])',
            "The optimizer group 'lm_head' is not an element of a list.\n\n"
            'hint: list it with the other groups: [dict(name="lm_head", ...), ...].',
        ),
        (
            GROUPS.replace('name="head"', 'name="lm_head"'),
            "There is no statement 'self.lm_head = Linear(...)' in GPT.__init__.\n\n"
            "hint: take one that is there: self.head = Linear(2, 2); self.scalars = "
            "parameter(2).",
        ),
    ],
)
def test_weights_that_cannot_be_tied_say_why(source, message):
    assert str(error_of(WeightTying, source)) == message
