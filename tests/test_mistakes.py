"""The mistakes that the author of a spec or a codemod makes: what is said, and the fix.

Each begins with the file as it was written. The fix is taken from the text that the
author reads, applied as it stands there, and accepted.
"""

from pathlib import Path
from textwrap import dedent, indent

import pytest

from core.errors import CodemodRefused, DeltaspecError, GateRefused
from core.gates import check_refusals
from core.mutate import Job, Mutant, find_codemod, mutate_all
from core.spec import read_spec
from core.spec.vocabulary import CodemodCall

IMPORTS = "from core.spec import Expect, Experiment, Sweep, codemod\n"
NAMES = "[a-z][a-z0-9_]{0,63}."
VOCABULARY = "Expect, Experiment, Sweep, codemod"
READS = "which reads the range as two sd to either side."


def idea(*fields: str, **changed: str) -> str:
    """Return a spec file, with one field a line."""
    said = {"hypothesis": '"Less is more."', "change": '"Halve it."', **changed}
    lines = [*(f"{name}={text}" for name, text in said.items() if text), *fields]
    body = "".join(f"    {line},\n" for line in lines)
    return f"{IMPORTS}idea = Experiment(\n{body})\n"


def ranged(value: str) -> tuple[str, str, str, str]:
    return (
        idea(f"expect=Expect(delta_bpb={value})"),
        f"5: delta_bpb={value.replace(chr(34), chr(39))}: expected a number of bits per "
        f"byte.\n\nhint: write delta_bpb=-0.0015, sd=0.00025, {READS}",
        f"delta_bpb={value}",
        "delta_bpb=-0.0015, sd=0.00025",
    )


# The file, what is said behind "specs/x.py:", what to replace, and by what
SPECS = {
    "a missing hypothesis": (
        idea(hypothesis=""),
        "2: Experiment misses the field 'hypothesis'.\n\n"
        'hint: add hypothesis="...", which says why the change should help or harm.',
        "change=",
        'hypothesis="...", change=',
    ),
    "a missing prediction": (
        idea("expect=Expect()"),
        "5: Expect misses the field 'delta_bpb'.\n\n"
        "hint: add delta_bpb=-0.001, in bits per byte: negative is an improvement.",
        "Expect()",
        "Expect(delta_bpb=-0.001)",
    ),
    "an empty hypothesis": (
        idea(hypothesis='""'),
        "3: hypothesis='': expected a sentence.\n\n"
        "hint: say in hypothesis= why the change should help or harm.",
        '""',
        '"why the change should help or harm"',
    ),
    "a positive sign for an improvement": (
        idea("expect=Expect(delta_bpb=0.0012)"),
        "5: delta_bpb=0.0012 predicts harm: negative is an improvement.\n\n"
        'hint: write delta_bpb=-0.0012, or tag it if harm is meant: tags=("harm",).',
        "delta_bpb=0.0012",
        "delta_bpb=-0.0012",
    ),
    "a harm that is meant and not tagged": (
        idea('tags=("heads",)', "expect=Expect(delta_bpb=0.0012)"),
        "6: delta_bpb=0.0012 predicts harm: negative is an improvement.\n\n"
        "hint: write delta_bpb=-0.0012, or tag it if harm is meant: "
        'tags=("heads", "harm").',
        'tags=("heads",)',
        'tags=("heads", "harm")',
    ),
    "a range with two dots": ranged('"-0.002..-0.001"'),
    "a range in words": ranged('"-0.002 to -0.001"'),
    "a range as a tuple": ranged("(-0.002, -0.001)"),
    "a range in place of a prediction": (
        idea("expect=(-0.002, -0.001)"),
        "5: expect=(-0.002, -0.001): expected Expect(...).\n\n"
        "hint: write expect=Expect(delta_bpb=-0.0015, sd=0.00025).",
        "expect=(-0.002, -0.001)",
        "expect=Expect(delta_bpb=-0.0015, sd=0.00025)",
    ),
    "a range around zero": (
        idea('expect=Expect(delta_bpb="-0.001..0.001")'),
        "5: delta_bpb='-0.001..0.001': expected a number of bits per byte.\n\n"
        f"hint: write delta_bpb=0, within=0.001, {READS}",
        'delta_bpb="-0.001..0.001"',
        "delta_bpb=0, within=0.001",
    ),
    "a number in quotes": (
        idea('expect=Expect(delta_bpb="-0.001")'),
        "5: delta_bpb='-0.001': expected a number of bits per byte.\n\n"
        "hint: write it without quotes: delta_bpb=-0.001.",
        'delta_bpb="-0.001"',
        "delta_bpb=-0.001",
    ),
    "a tag with a space": (
        idea('tags=("long context", "speed")'),
        f"5: the tag 'long context' does not match {NAMES}\n\n"
        'hint: use lower case and underscores: tags=("long_context", "speed").',
        'tags=("long context", "speed")',
        'tags=("long_context", "speed")',
    ),
    "a tag in upper case": (
        idea('tags=("QK-Norm", "speed")'),
        f"5: the tag 'QK-Norm' does not match {NAMES}\n\n"
        'hint: use lower case and underscores: tags=("qk_norm", "speed").',
        'tags=("QK-Norm", "speed")',
        'tags=("qk_norm", "speed")',
    ),
    "one tag without its comma": (
        idea('tags=("speed")'),
        "5: tags='speed' is one text: expected a tuple of tags.\n\n"
        'hint: write tags=("speed",).',
        'tags=("speed")',
        'tags=("speed",)',
    ),
    "tags as one text": (
        idea('tags="long context, speed"'),
        "5: tags='long context, speed' is one text: expected a tuple of tags.\n\n"
        'hint: write tags=("long_context", "speed").',
        'tags="long context, speed"',
        'tags=("long_context", "speed")',
    ),
    "an import of torch": (
        f"import torch\n{idea()}",
        "1: import torch: a spec file imports nothing but the spec vocabulary.\n\n"
        f"hint: leave it out: a spec needs only what core.spec has, {VOCABULARY}.",
        "import torch\n",
        "",
    ),
    "an import of the wrong module": (
        idea().replace(IMPORTS, "from core.specs import Expect, Experiment\n"),
        "1: from core.specs import Expect, Experiment: a spec file imports nothing but "
        "the spec vocabulary.\n\n"
        "hint: write: from core.spec import Expect, Experiment.",
        "from core.specs import Expect, Experiment",
        "from core.spec import Expect, Experiment",
    ),
    "a misspelled import": (
        idea().replace(IMPORTS, "from core.spec import Expect, Experimnt\n"),
        "1: from core.spec import Expect, Experimnt: a spec file imports nothing but "
        "the spec vocabulary.\n\n"
        "hint: write: from core.spec import Expect, Experiment.",
        "from core.spec import Expect, Experimnt",
        "from core.spec import Expect, Experiment",
    ),
    "a forgotten import": (
        idea().replace(IMPORTS, ""),
        "1: the name 'Experiment' is not bound above.\n\n"
        "hint: add: from core.spec import Experiment.",
        "idea =",
        "from core.spec import Experiment\nidea =",
    ),
    "an experiment without a name": (
        idea().replace("idea = ", ""),
        "2: a spec file holds data, not a call by itself.\n\n"
        "hint: bind it to a name: NAME = Experiment(...).",
        "\nExperiment(",
        "\nname = Experiment(",
    ),
    "a forgotten comma": (
        f'{IMPORTS}idea = Experiment(hypothesis="Less." change="Halve it.")\n',
        "2: invalid syntax. Perhaps you forgot a comma?\n\n"
        "hint: correct this first: nothing else in the file was read.",
        ' change="',
        ', change="',
    ),
    "an f-string where an axis is meant": (
        idea("sweep=Sweep(base=(1, 2))", change='f"Use {base}."'),
        "4: the name 'base' is not bound above.\n\n"
        'hint: leave out the f before the text: "{base}" is the axis of the sweep.',
        'f"Use',
        '"Use',
    ),
    "an f-string without an axis": (
        idea(change='f"Use {base}."'),
        "4: the name 'base' is not bound above.\n\n"
        "hint: bind base above; or add sweep=Sweep(base=(...)), and leave out the f "
        "before the text.",
        "idea =",
        "base = 5\nidea =",
    ),
    "an axis that is used nowhere": (
        idea("sweep=Sweep(base=(1, 2))"),
        "2: the axis 'base' of the sweep is used nowhere in change=.\n\n"
        'hint: write "{base}" where its value goes in change=, or take it out of the '
        "sweep.",
        '"Halve it."',
        '"{base}"',
    ),
    "a misspelled axis": (
        idea("sweep=Sweep(base=(1, 2))", change='"Use {bsae}."'),
        "2: the axis 'base' of the sweep is used nowhere in change=.\n\n"
        'hint: write "{base}" in place of "{bsae}".',
        "{bsae}",
        "{base}",
    ),
}


def written(project: Path, path: str, text: str) -> Path:
    file = project / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("source", "message", "old", "new"), SPECS.values(), ids=list(SPECS)
)
def test_a_mistake_in_a_spec_names_its_fix_and_the_fix_is_accepted(
    tmp_path, source, message, old, new
):
    assert source.count(old) == 1

    _, errors = read_spec(written(tmp_path, "specs/x.py", source), tmp_path)
    fixed = written(tmp_path, "specs/x.py", source.replace(old, new))
    cases, none = read_spec(fixed, tmp_path)

    assert [str(error) for error in errors] == [f"specs/x.py:{message}"]
    assert cases
    assert none == []


@pytest.mark.parametrize(
    ("value", "prediction"),
    [
        ("'-0.002…-0.001'", "delta_bpb=-0.0015, sd=0.00025"),
        ("'[-0.002, -0.001]'", "delta_bpb=-0.0015, sd=0.00025"),
        ("'-0.001 to -0.002'", "delta_bpb=-0.0015, sd=0.00025"),
        ("[-0.002, -0.001]", "delta_bpb=-0.0015, sd=0.00025"),
        ("'-2e-3 .. 1e-3'", "delta_bpb=-0.0005, sd=0.00075"),
    ],
)
def test_a_range_is_read_however_it_is_written(tmp_path, value, prediction):
    source = idea(f"expect=Expect(delta_bpb={value})")

    _, (error,) = read_spec(written(tmp_path, "specs/x.py", source), tmp_path)

    assert error.hint == f"write {prediction}, {READS}"


# Codemods

MODULE = dedent("""
    import torch.nn.functional as F
    from torch import nn

    DEPTH = 8
    ROPE_BASE = 10_000


    class MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(DEPTH, 4 * DEPTH)
            self.down = nn.Linear(4 * DEPTH, DEPTH)

        def forward(self, x):
            x = self.up(x)
            x = F.relu(x).square()
            return self.down(x)
""").lstrip()


def own(body: str, *imports: str) -> str:
    """Return a codemod of one's own, with *body* in its class."""
    lines = [
        *(imports or ("import libcst as cst\nimport libcst.matchers as m\n",)),
        "from codemods.base import Codemod\n\n",
        "class WideRotation(Codemod):",
        '    """Double the rotary base."""\n',
        indent(dedent(body).strip("\n"), "    "),
    ]
    return "\n".join(lines) + "\n"


DOUBLE = """
def leave_Integer(self, original_node, updated_node):
    is_base = m.matches(updated_node, m.Integer("10_000"))
    return updated_node.with_changes(value="20_000") if is_base else updated_node
"""
EXAMPLE = """
EXAMPLES = (
    (
        "BASE = 6",
        "BASE = 12",
    ),
)

def leave_Integer(self, original_node, updated_node):
    is_base = m.matches(updated_node, m.Integer("6"))
    return updated_node.with_changes(value="12") if is_base else updated_node
"""
RELU = 'function="MLP.forward", statement="x = F.relu(x).square()"'
LEAVE_OUT = (
    "hint: leave it out of what the codemod writes: a training module computes with "
    "torch on what run hands it."
)

# What is written (for codemod=, or a file), what is said, what to replace, and by what
CODEMODS = {
    "a typo in the name of a constant": (
        'codemod("constants.SetConstant", name="ROPE_BSE", value=5)',
        "The training module has no constant 'ROPE_BSE'.\n\n"
        "hint: use a name that is there: ROPE_BASE.",
        "ROPE_BSE",
        "ROPE_BASE",
    ),
    "the value that is there": (
        'codemod("constants.SetConstant", name="ROPE_BASE", value=10_000)',
        "ROPE_BASE is 10_000 already.\n\n"
        "hint: set another value, or leave the codemod out.",
        "10_000",
        "50_000",
    ),
    "a typo in an option": (
        'codemod("constants.SetConstant", name="ROPE_BASE", valeu=5)',
        "SetConstant does not take the option 'valeu'.\n\n"
        "hint: did you mean 'value'? use one of its options: name, value, expression.",
        "valeu",
        "value",
    ),
    "a typo in a reference": (
        'codemod("constant.SetConstants", name="ROPE_BASE", value=5)',
        "There is no codemod 'constant.SetConstants' below codemods/.\n\n"
        "hint: use one that is there: constants.SetConstant, constants.ScaleConstant.",
        "constant.SetConstants",
        "constants.SetConstant",
    ),
    "a typo in a statement": (
        'codemod("statements.DeleteStatement", function="MLP.forward", '
        'statement="x = F.relu(x).sqare()")',
        "There is no statement 'x = F.relu(x).sqare()' in MLP.forward.\n\n"
        "hint: take one that is there: x = F.relu(x).square(); x = self.up(x); "
        "return self.down(x).",
        "x = F.relu(x).sqare()",
        "x = F.relu(x).square()",
    ),
    "a statement like none of the function": (
        'codemod("statements.DeleteStatement", function="MLP.forward", '
        'statement="yield")',
        "There is no statement 'yield' in MLP.forward.\n\n"
        "hint: take one that is there: return self.down(x); x = self.up(x); "
        "x = F.relu(x).square().",
        "yield",
        "x = F.relu(x).square()",
    ),
    "a statement whose function is not named": (
        'codemod("statements.DeleteStatement", statement="x = F.relu(x).square()")',
        "There is no statement 'x = F.relu(x).square()' in the training module, outside "
        "functions and classes.\n\n"
        "hint: it stands in MLP.forward: give function='MLP.forward'.",
        "statement=",
        "function='MLP.forward', statement=",
    ),
    "a statement of another function": (
        'codemod("statements.DeleteStatement", function="MLP.__init__", '
        'statement="x = F.relu(x).square()")',
        "There is no statement 'x = F.relu(x).square()' in MLP.__init__.\n\n"
        "hint: it stands in MLP.forward: give function='MLP.forward'.",
        'function="MLP.__init__"',
        "function='MLP.forward'",
    ),
    "a typo in a function": (
        'codemod("statements.DeleteStatement", function="MLP.forwad", '
        'statement="x = F.relu(x).square()")',
        "The training module defines no 'MLP.forwad'.\n\n"
        "hint: use a name that is there: MLP.forward.",
        "MLP.forwad",
        "MLP.forward",
    ),
    "a codemod that finds nothing": (
        own(EXAMPLE),
        "WideRotation() found nothing to rewrite in the training module.\n\n"
        "hint: compare the site that its EXAMPLES show with the training module.",
        'm.Integer("6")',
        'm.Integer("10_000")',
    ),
    "a codemod that finds nothing and has no example": (
        own(DOUBLE.replace('"10_000"', '"6"')),
        "WideRotation() found nothing to rewrite in the training module.\n\n"
        "hint: compare what it looks for with the training module, and show it in "
        "EXAMPLES.",
        'm.Integer("6")',
        'm.Integer("10_000")',
    ),
    "a module that LibCST does not have": (
        own(DOUBLE, "import libcst.matcher as m\n"),
        "WideRotation() failed: ModuleNotFoundError: No module named 'libcst.matcher' "
        "({path}, line 1).\n\n"
        "hint: correct {path}: did you mean libcst.matchers?",
        "libcst.matcher ",
        "libcst.matchers ",
    ),
    "a module that codemods does not have": (
        own(DOUBLE).replace("codemods.base", "codemods.basee"),
        "WideRotation() failed: ModuleNotFoundError: No module named 'codemods.basee' "
        "({path}, line 4).\n\n"
        "hint: correct {path}: did you mean codemods.base?",
        "codemods.basee",
        "codemods.base",
    ),
    "a class that the base does not have": (
        own(DOUBLE).replace("Codemod", "BaseCodemod"),
        "WideRotation() failed: ImportError: cannot import name 'BaseCodemod' from "
        "'codemods.base' ({path}, line 4).\n\n"
        "hint: correct {path}: did you mean Codemod?",
        "BaseCodemod",
        "Codemod",
    ),
    "a library that is not installed": (
        own(DOUBLE, "import libcst.matchers as m\nimport bowler_of_old\n"),
        "WideRotation() failed: ModuleNotFoundError: No module named 'bowler_of_old' "
        "({path}, line 2).\n\n"
        "hint: correct {path}: a codemod imports libcst, codemods and Python's own "
        "library.",
        "import bowler_of_old\n",
        "",
    ),
    "an import that is missing in the codemod": (
        own(DOUBLE, "import libcst as cst\n"),
        "WideRotation() failed: NameError: name 'm' is not defined ({path}, line 10).\n\n"
        "hint: correct {path}: add import libcst.matchers as m.",
        "import libcst as cst\n",
        "import libcst.matchers as m\n",
    ),
    "a matcher that there is not": (
        own(DOUBLE.replace("m.matches", "m.mathces")),
        "WideRotation() failed: AttributeError: module 'libcst.matchers' has no attribute "
        "'mathces' ({path}, line 11).\n\n"
        "hint: correct {path}: did you mean matches?",
        "m.mathces",
        "m.matches",
    ),
    "a name of the codemod's own that is misspelled": (
        own(DOUBLE.replace("if is_base", "if is_bse")),
        "WideRotation() failed: NameError: name 'is_bse' is not defined ({path}, line 12)."
        "\n\n"
        "hint: correct {path}: did you mean is_base?",
        "is_bse",
        "is_base",
    ),
    "an import of numpy into the training module": (
        f'codemod("statements.ReplaceStatement", {RELU}, '
        'source="import numpy\\nx = F.gelu(x)")',
        "line 16 of the mutated module, in MLP.forward: it imports numpy; a training "
        f"module stays in torch.\n\n{LEAVE_OUT}",
        "import numpy\\n",
        "",
    ),
    "numpy without its import": (
        f'codemod("statements.ReplaceStatement", {RELU}, source="x = numpy.tanh(x)")',
        "line 16 of the mutated module, in MLP.forward: it uses numpy, which nothing "
        f"binds; a training module stays in torch.\n\n{LEAVE_OUT}",
        "numpy.tanh(x)",
        "F.tanh(x)",
    ),
    "a typo in a name that the training module binds": (
        'codemod("constants.SetConstant", name="ROPE_BASE", expression="DPTH * 1000")',
        "line 5 of the mutated module: it uses DPTH, which nothing binds; the nearest "
        f"name is DEPTH.\n\n{LEAVE_OUT}",
        "DPTH",
        "DEPTH",
    ),
    "a name that is like none": (
        f'codemod("statements.ReplaceStatement", {RELU}, source="x = geglu(x)")',
        "line 16 of the mutated module, in MLP.forward: it uses geglu, which nothing "
        f"binds; define it or import it.\n\n{LEAVE_OUT}",
        'source="x',
        'source="def geglu(x):\\n    return F.gelu(x)"), codemod('
        '"statements.InsertAfter", statement="x = self.up(x)", '
        'function="MLP.forward", source="x',
    ),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict[str, Mutant | DeltaspecError]]:
    """Return what becomes of each codemod as written and as corrected, in one go."""
    project = tmp_path_factory.mktemp("project")
    jobs: dict[tuple[str, str], Job] = {}
    for topic, is_fixed in (("wrong", False), ("right", True)):
        for number, (name, row) in enumerate(CODEMODS.items()):
            text, _, old, new = row
            text = text.replace(old, new) if is_fixed else text
            calls = _calls(project, topic, f"idea_{number}", text)
            jobs[topic, name] = Job(source=MODULE, codemods=calls)
    mutants = mutate_all(list(jobs.values()), project=project)
    results: dict[str, dict[str, Mutant | DeltaspecError]] = {"wrong": {}, "right": {}}
    for (topic, name), mutant in zip(jobs, mutants, strict=True):
        results[topic][name] = _checked(mutant)
    return results


def _calls(project: Path, topic: str, name: str, text: str) -> tuple[CodemodCall, ...]:
    """Write an experiment with its codemod, and return what the spec names."""
    is_named = text.startswith("codemod(")
    field = f"codemod=({text},)" if is_named else 'tags=("own",)'
    spec = written(project, f"specs/{topic}_{name}.py", idea(field))
    (case,), errors = read_spec(spec, project)
    assert errors == []
    if is_named:
        return case.codemods
    written(project, f"codemods/{topic}/{name}.py", text)
    reference = find_codemod(project, (topic,), name)
    assert reference is not None
    return (CodemodCall(reference=reference),)


def _checked(mutant: Mutant | DeltaspecError) -> Mutant | DeltaspecError:
    if isinstance(mutant, Mutant):
        try:
            check_refusals(mutant)
        except GateRefused as refused:
            return refused
    return mutant


@pytest.mark.parametrize("name", CODEMODS)
def test_a_mistake_in_a_codemod_names_its_fix_and_the_fix_is_accepted(found, name):
    _, message, *_ = CODEMODS[name]
    path = f"codemods/wrong/idea_{list(CODEMODS).index(name)}.py"

    wrong, right = found["wrong"][name], found["right"][name]

    assert str(wrong) == message.replace("{path}", path)
    assert isinstance(right, Mutant), right


def test_a_file_without_a_codemod_says_what_to_define(tmp_path):
    written(tmp_path, "codemods/x/qk_norm.py", "class Norm:\n    pass\n")

    with pytest.raises(CodemodRefused) as caught:
        find_codemod(tmp_path, ("x",), "qk_norm")

    assert str(caught.value) == (
        "codemods/x/qk_norm.py holds Norm: one codemod was expected.\n\n"
        "hint: define one class that derives from Codemod, such as QkNorm."
    )


# As pytest shows them

SHOWN = """\
specs/x.py::named (specs/x.py:2)
    The training module has no constant 'ROPE_BSE'.

    hint: use a name that is there: ROPE_BASE.
specs/x.py::idea (specs/x.py:7)
    WideRotation() failed: ModuleNotFoundError: No module named 'libcst.matcher' \
(codemods/x/idea.py, line 1).

    hint: correct codemods/x/idea.py: did you mean libcst.matchers?
dry run: 2 cannot run; nothing was trained

RULE
PLACE
specs/a.py:5: delta_bpb=0.0012 predicts harm: negative is an improvement.

hint: write delta_bpb=-0.0012, or tag it if harm is meant: tags=("harm",).
"""


def test_a_dry_run_shows_every_mistake_with_its_fix(project: pytest.Pytester):
    rows = (
        SPECS["a positive sign for an improvement"],
        CODEMODS["a typo in the name of a constant"],
        CODEMODS["a module that LibCST does not have"],
    )

    result = dry_run(project, *(text for text, *_ in rows))

    said = "\n".join(result.outlines)
    summary = f"{' short test summary info ':=^80}"
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert said[said.index("specs/x.py::named") : said.index(summary)] == (
        SHOWN.replace("RULE", f"{' ERRORS ':=^80}").replace(
            "PLACE", f"{' ERROR collecting specs/a.py ':_^80}"
        )
    )


def dry_run(
    project: pytest.Pytester, sign: str, typo: str, module: str
) -> pytest.RunResult:
    """Dry-run a spec, a named codemod and a codemod of one's own."""
    named = idea(f"codemod={typo}").replace("idea =", "named =")
    written(project.path, "specs/a.py", sign)
    written(project.path, "specs/x.py", named + idea().removeprefix(IMPORTS))
    written(project.path, "codemods/x/idea.py", module)
    return project.runpytest_subprocess("specs", "--collect-only")
