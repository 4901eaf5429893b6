"""A hand edit, captured, is the same edit as a codemod."""

import json
import shutil
import subprocess
from pathlib import PurePosixPath
from textwrap import dedent

import libcst as cst
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from libcst.codemod import CodemodContext

from codemods.symbols import Edit, SymbolCodemod
from core.capture import capture, check_complete, codemod, target
from core.cli import main
from core.errors import CaptureError, CodemodRefused, SiteNotFound, SpecError
from core.mutate import Job, compare, find_codemod, mutate_all
from core.settings import TRAINING_MODULE
from core.spec import CodemodCall, read_spec
from core.spec.writing import add_experiment, experiment_text
from tests.conftest import ROOT

TRAIN = (ROOT / TRAINING_MODULE).read_text()
IDEA = target("specs/x.py::idea")


def loaded(source: str) -> type[SymbolCodemod]:
    """Return the codemod of a captured file."""
    names = {"__name__": "codemods.x.idea"}
    exec(compile(source, "idea.py", "exec"), names)
    return names[IDEA.codemod]


def applied(command: type[SymbolCodemod], module: str) -> str:
    return command(CodemodContext()).transform_module(cst.parse_module(module)).code


def by_hand(base: str, edited: str) -> type[SymbolCodemod]:
    """Return the codemod of an edit, tried in this process."""
    return loaded(codemod(dedent(base), dedent(edited), target=IDEA))


def made(base: str, edited: str) -> str:
    """Return what the captured edit makes of the base."""
    return applied(by_hand(base, edited), dedent(base))


def edits(*given: Edit) -> type[SymbolCodemod]:
    class Idea(SymbolCodemod):
        """Edit."""

        DESCRIPTION = "Edit"
        EDITS = given

    return Idea


def edited_train(*pairs: tuple[str, str]) -> str:
    source = TRAIN
    for old, new in pairs:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


# What is captured

BASE = '''
"""Train."""

import torch
from torch import nn

# Model
DEPTH = 8  # blocks
WIDTH = 64  # channels

assert DEPTH >= 1, f"{DEPTH} is below 1."


def norm(x):
    """Scale."""
    return x / x.norm()  # (B, T, C)


class MLP(nn.Module):
    """Transform."""

    ratio = 4

    def __init__(self):
        super().__init__()
        self.text = """
  as it is
"""

    # the way through
    def forward(self, x):
        return self.up(x)  # up


# The end
'''.lstrip()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("DEPTH = 8  # blocks", "DEPTH = 12  # more blocks"),
        ("DEPTH = 8  # blocks", "DEPTH: int = 8  # blocks"),
        ("DEPTH = 8  # blocks\n", "DEPTH = 8  # blocks\nHEADS = DEPTH  # new\n"),
        ("WIDTH = 64  # channels\n", ""),
        ("from torch import nn", "from torch import Tensor, nn"),
        ("import torch\n", "import math\nimport torch\n"),
        ("return x / x.norm()  # (B, T, C)", "return x  # (B, T, C)"),
        ("class MLP(nn.Module):", "class MLP(nn.Sequential):"),
        ("    ratio = 4\n", "    ratio = 8\n"),
        ("    ratio = 4\n", '    ratio = 4\n    name = """\n a\n"""\n'),
        ("  as it is", "    as it\n   was"),
        ("return self.up(x)  # up", 'return self.up(x, "\\\\", """"quoted" \\n""")'),
        (
            "\n\n# The end",
            "\n\ndef last(x):\n    '''Say \"\"\"this\"\"\".'''\n    return x\n    # done"
            "\n\n\n# The end",
        ),
        (
            "# the way through\n    def forward",
            "@torch.no_grad()\n    # the way through\n    def forward",
        ),
        ("class MLP", "@torch.compile\nclass MLP"),
        (
            "assert DEPTH >= 1, ",
            "if DEPTH > 4:\n    WIDTH = 32\n    # narrow\nassert DEPTH >= 1, ",
        ),
        ("DEPTH = 8  # blocks\nWIDTH", "DEPTH = 8; HEADS = 2  # both\nWIDTH"),
        ("    ratio = 4\n", '    ratio = 4\n    x = "\u00a0\t"\n'),
    ],
)
def test_a_captured_edit_leaves_the_very_text_of_the_edited_module(old, new):
    assert BASE.count(old) == 1
    edited = BASE.replace(old, new)

    assert made(BASE, edited) == edited


def test_what_moves_takes_its_comments_along():
    edited = made("A = 1  # a\nB = 2  # b\nC = 3\n", "C = 3\nA = 1\nB = 2\n")

    assert edited == "C = 3\nA = 1  # a\nB = 2  # b\n"


def test_a_heading_stays_above_what_the_author_left_below_it():
    edited = BASE.replace("DEPTH = 8  # blocks", "FIRST = 0\nDEPTH = 8  # blocks")

    assert made(BASE, edited) == edited


def test_what_an_edit_does_not_name_keeps_comments_that_came_later():
    command = by_hand("A = 1\nB = 2\n", "A = 5\nB = 2\n")

    assert applied(command, "A = 1\n\n# new\nB =  2  # two\n") == (
        "A = 5\n\n# new\nB =  2  # two\n"
    )


def test_lines_may_end_as_on_windows():
    edited = made("A = 1\n\n\ndef f():\n    return A\n", "A = 1\r\nB = 2\r\n\r\n")

    assert edited == "A = 1\nB = 2\n"


def test_a_codemod_is_written_as_ruff_leaves_it(tmp_path):
    if shutil.which("ruff") is None:
        pytest.skip("ruff is not installed")
    edited = BASE.replace("  as it is", "\u00a0\\").replace(
        "(x)  # up", "('\\d', \"'\")"
    )
    path = tmp_path / "idea.py"
    path.write_text(codemod(BASE, edited, target=IDEA, change='Say "it".'))

    for command in (["format", "--check"], ["check"]):
        done = subprocess.run(
            ["ruff", *command, "--config", ROOT / "pyproject.toml", path],
            capture_output=True,
            text=True,
        )

        assert done.returncode == 0, done.stdout


NAMES = ("a", "b", "c")


@st.composite
def unit(draw, indent: str = "") -> tuple[str, str]:
    """Return a name and the source of something that bears it."""
    name = draw(st.sampled_from(NAMES))
    value = draw(st.integers(1, 3))
    comment = draw(st.sampled_from(["", "  # why", f"  # {value}"]))
    above = draw(st.sampled_from(["", "\n", "\n# about\n"]))
    kinds = ["constant", "function", "import", "from", "assert", "if", "text"]
    if not indent:
        kinds += ["class", "class"]
    kind = draw(st.sampled_from(kinds))
    match kind:
        case "constant":
            source = f"{name.upper()} = {value}{comment}\n"
        case "function":
            source = f"def {name}(x):{comment}\n    return x + {value}\n    # {value}\n"
        case "import":
            name, source = f"import {name}{value}", f"import {name}{value}{comment}\n"
        case "from":
            name, source = f"from {name}", f"from {name} import x{value}\n"
        case "assert":
            name = f"assert {name}"
            source = f"{name} > 0, f'''{value}\n  is {{{value}}}\n'''{comment}\n"
        case "if":
            name, source = f"if {name}", f"if {name}:\n    y = {value}\n"
        case "text":
            name, source = f"text {name}", f'{name}_text = """{value}\n\n  "it\n"""\n'
        case _:
            name = f"class {name}"
            body = draw(units("    "))
            source = f"{name}(B{value}):{comment}\n{body or '    pass'}\n"
    lines = source.split("\n")
    if kind in {"assert", "text"}:  # the rest is in a text
        source = "\n".join([indent + lines[0], *lines[1:]])
    else:
        source = "".join(f"{indent}{line}\n" for line in lines[:-1])
    return name, above.replace("#", f"{indent}#") + source


@st.composite
def units(draw, indent: str = "") -> str:
    """Return the source of several things in any order, each with a name of its own."""
    found = draw(st.lists(unit(indent), max_size=6, unique_by=lambda pair: pair[0]))
    return "".join(source for _, source in found)


@settings(max_examples=30)
@example("class c: ...\n\n\ndef c(x): ...\n", "class c: ...\n", "")
@given(units(), units(), st.sampled_from(["", '"""Train."""\n']))
def test_any_edit_is_captured_and_cannot_be_made_twice(base, edited, docstring):
    base, edited = docstring + base, docstring + edited
    if compare.read(base).digest == compare.read(edited).digest:
        return

    command = by_hand(base, edited)
    mutant = applied(command, base)

    assert compare.read(mutant).digest == compare.read(edited).digest
    with pytest.raises((SiteNotFound, CodemodRefused)):
        applied(command, mutant)
    for _, before, after in command.examples():
        assert applied(command, before) == after


@pytest.mark.slow
def test_the_mutant_of_every_shipped_experiment_can_be_captured():
    cases = [
        case
        for path in sorted((ROOT / "specs").rglob("[!_]*.py"))
        for case in read_spec(path, ROOT)[0]
    ]
    jobs = []
    for case in cases:
        spec = PurePosixPath(case.file).with_suffix("").parts[1:]
        own = find_codemod(ROOT, spec, case.name)
        calls = case.codemods or (CodemodCall(reference=own, options=case.values),)
        jobs.append(Job(source=TRAIN, codemods=calls))
    mutants = mutate_all(jobs, project=ROOT)

    digests = [
        capture(TRAIN, mutant.source, target=IDEA).mutant.digest for mutant in mutants
    ]

    assert len(digests) > 20
    assert digests == [mutant.digest for mutant in mutants]


# What a captured codemod refuses


@pytest.mark.parametrize(
    ("given_edits", "module", "message"),
    [
        (
            [Edit("A", before="A = 1", after="A = 2")],
            "A = 3\n",
            "Idea() rewrites 'A' where it says 'A = 1', and the training module says "
            "'A = 3'.\n\n"
            "hint: take out what rewrote it, or capture again from today's module; what "
            "a profile sizes is scaled by constants.ScaleConstant.",
        ),
        (
            [Edit("f", before="\ndef f(x):\n    y = x\n    return y\n")],
            "def f(x):\n    y = x\n    return x + y\n",
            "Idea() rewrites 'f' where it says 'return y', and the training module says "
            "'return x + y'.\n\n"
            "hint: take out what rewrote it, or capture again from today's module; what "
            "a profile sizes is scaled by constants.ScaleConstant.",
        ),
        (
            [Edit("ROPE", before="ROPE = 1", after="ROPE = 2")],
            "ROPE_BASE = 1\n",
            "Idea() rewrites 'ROPE', and the training module has none.\n\n"
            "hint: take out what renamed or removed it, or capture again from today's "
            "module; there is ROPE_BASE.",
        ),
        (
            [Edit("B", after="B = 2", follows="A")],
            "C = 1\n",
            "Idea() puts 'B' behind 'A', and the training module has none.\n\n"
            "hint: take out what renamed or removed it, or capture again from today's "
            "module; there is C.",
        ),
        (
            [Edit("B", after="B = 2", follows="A")],
            "A = 1\nB = 1\n",
            "Idea() adds 'B', and the training module has it already.\n\n"
            "hint: take out what adds it, or capture again from today's module.",
        ),
        (
            [Edit("B", before="B = 2", follows="A")],
            "A = 1\nB = 2\n",
            "Idea() moves 'B', and it stands behind 'A' already.\n\n"
            "hint: take out what moves it, or capture again from today's module.",
        ),
        (
            [Edit("B", before="B = 2", follows="")],
            "B = 2\n",
            "Idea() moves 'B', and it stands at the start already.\n\n"
            "hint: take out what moves it, or capture again from today's module.",
        ),
    ],
)
def test_a_module_that_is_not_what_it_was_is_refused(given_edits, module, message):
    with pytest.raises(SiteNotFound) as caught:
        applied(edits(*given_edits), module)

    assert str(caught.value) == message


def test_an_edit_is_of_one_statement():
    with pytest.raises(CodemodRefused) as caught:
        applied(edits(Edit("A", before="A = 1", after="\nA = 2\nB = 1\n")), "A = 1\n")

    assert str(caught.value) == (
        "EDITS holds 2 statements where one was expected: 'A = 2\\nB = 1'.\n\n"
        "hint: write one Edit for each."
    )


def test_the_header_of_a_class_is_compared_whatever_is_in_it():
    command = by_hand("class A(B):\n    x = 1\n", "class A(C):\n    x = 1\n")

    assert applied(command, "class A(B):\n    x = 2\n") == "class A(C):\n    x = 2\n"


# What cannot be captured


def refusal(edited: str) -> str:
    with pytest.raises(CaptureError) as caught:
        capture(TRAIN, edited, target=IDEA, file="my_train.py")
    return str(caught.value)


def test_an_edit_of_comments_alone_is_nothing_to_capture():
    assert refusal(edited_train(("DEPTH = 8  # blocks", "DEPTH = 8  # b"))) == (
        "my_train.py means the same as the training module: there is nothing to "
        "capture.\n\n"
        "hint: change what it computes, not only its comments or layout."
    )


def test_what_is_not_python_is_not_captured():
    assert refusal(edited_train(("DEPTH = 8  # blocks", "DEPTH = (8"))) == (
        "my_train.py cannot be captured: line 15: '(' was never closed.\n\n"
        "hint: make it a module that Python imports, of at most 256 KiB."
    )


def test_what_is_too_large_is_not_captured():
    assert refusal(TRAIN + "#" * (256 * 1024 - len(TRAIN.encode()) + 1)) == (
        "my_train.py cannot be captured: 262,145 bytes is more than 262,144.\n\n"
        "hint: make it a module that Python imports, of at most 256 KiB."
    )


def test_a_codemod_that_could_not_be_read_is_not_written():
    table = f'X = "{"x" * 140_000}"\n'

    with pytest.raises(CaptureError) as caught:
        capture(f"{table}A = 1\n", f"{table.lower()}A = 1\n", target=IDEA, file="e.py")

    assert str(caught.value) == (
        "the codemod of e.py would take 280,365 bytes, and 262,144 can be read.\n\n"
        "hint: capture fewer edits at a time."
    )


def test_what_belongs_to_the_data_stays_as_it_is():
    assert refusal(edited_train(("VOCAB_SIZE = 8192", "VOCAB_SIZE = 4096"))) == (
        "VOCAB_SIZE is 4096 in my_train.py, and 8192 in the training module.\n\n"
        "hint: leave VOCAB_SIZE alone: it belongs to the data, which a profile chooses."
    )


def test_all_that_a_training_module_must_not_do_is_said():
    edited = edited_train(
        ("import torch\nimport", "import os\nimport torch\nimport"),
        ("    model = GPT()\n", "    model = GPT()\n    open('x')\n"),
    )

    assert refusal(edited) == (
        "my_train.py does what a training module has no business doing:\n"
        "  line 8: it imports os; a training module imports torch and math\n"
        "  line 356, in build_model: it uses open; a training module has no files, "
        "processes or network\n\n"
        "hint: leave that out, then capture again: nothing was written."
    )


def test_what_a_codemod_would_leave_out_is_named():
    with pytest.raises(CaptureError) as caught:
        check_complete("A = 1\nB = 1\n", "A = 1\nB = 2\n\n\ndef f(): ...\n", "e.py")

    assert str(caught.value) == (
        "not everything in e.py can be captured: B, f would differ.\n\n"
        "hint: give symbols names of their own, or write this codemod by hand on "
        "codemods.base.Codemod."
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "specs/x.py",
            "'specs/x.py' names no experiment: expected SPEC::NAME.\n\n"
            "hint: name the spec file, from the project, and the experiment: "
            "--as specs/x.py::idea.",
        ),
        (
            "x.py::idea",
            "'x.py::idea' names no experiment: expected SPEC::NAME.\n\n"
            "hint: name the spec file, from the project, and the experiment: "
            "--as specs/x.py::idea.",
        ),
        (
            "specs/x.py::MyIdea",
            "'MyIdea' in 'specs/x.py::MyIdea' does not match [a-z][a-z0-9_]{0,63}.\n\n"
            "hint: name files and experiments in lower case and underscores, at most 64 "
            "characters.",
        ),
        (
            "specs/../x.py::idea",
            "'..' in 'specs/../x.py::idea' does not match [a-z][a-z0-9_]{0,63}.\n\n"
            "hint: name files and experiments in lower case and underscores, at most 64 "
            "characters.",
        ),
    ],
)
def test_an_experiment_is_named_as_pytest_names_it(name, message):
    with pytest.raises(CaptureError) as caught:
        target(name)

    assert str(caught.value) == message


# The command


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "conftest.py").write_text('pytest_plugins = ("core.plugin",)\n')
    (tmp_path / "my_train.py").write_text(
        edited_train(("ROPE_BASE = 10_000", "ROPE_BASE = 200_000"))
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_capture_says_what_it_captured_where_it_is_and_what_comes_next(
    project, capsys
):
    code = main(["capture", "my_train.py", "--as", "specs/x.py::idea"])

    assert code == 0
    assert capsys.readouterr().out == (
        "changed  constant ROPE_BASE\n"
        "codemod  codemods/x/idea.py\n"
        "spec     specs/x.py\n"
        "next     specs/x.py:6: hypothesis='': expected a sentence. hint: say in "
        "hypothesis= why the change should help or harm.\n"
        "next     pytest specs/x.py -k idea --collect-only -v\n"
    )


def test_a_captured_experiment_can_be_collected_and_is_the_edited_module(project):
    given_fields = ["--hypothesis", "It turns less.", "--change", "Turn less."]
    predicted = ["--delta-bpb", "-0.001", "--on", "cpu", "--tags", "attention,angle"]

    main([
        *("capture", "my_train.py", "--as", "specs/x.py::idea"),
        *given_fields,
        *predicted,
    ])

    (case,), errors = read_spec(project / "specs" / "x.py", project)
    assert errors == []
    assert (case.hypothesis, case.change) == ("It turns less.", "Turn less.")
    assert (case.expect.delta_bpb, case.expect.on) == (-0.001, "cpu")
    assert case.tags == ("attention", "angle")
    reference = find_codemod(project, ["x"], "idea")
    job = Job(source=TRAIN, codemods=(CodemodCall(reference=reference),))
    (mutant,) = mutate_all([job], project=project)
    edited = (project / "my_train.py").read_text()
    assert mutant.digest == compare.read(edited).digest


def test_a_capture_as_json_is_one_line(project, capsys):
    main(["capture", "my_train.py", "--as", "specs/a/x.py::idea", "--json"])

    said = json.loads(capsys.readouterr().out)
    assert said == {
        "version": 1,
        "command": "capture",
        "codemod": "codemods/a/x/idea.py",
        "spec": "specs/a/x.py",
        "experiment": "specs/a/x.py::idea",
        "changes": [{"symbol": "ROPE_BASE", "kind": "constant", "edit": "changed"}],
        "warnings": [],
        "next": [
            "specs/a/x.py:6: hypothesis='': expected a sentence. hint: say in "
            "hypothesis= why the change should help or harm.",
            "pytest specs/a/x.py -k idea --collect-only -v",
        ],
    }


def test_a_size_of_the_profile_is_captured_with_a_word_on_how_to_scale_it():
    edited = edited_train(("DEPTH = 8", "DEPTH = 12"))

    (alone,) = capture(TRAIN, edited, target=IDEA).warnings
    edited = edited.replace("SOFTCAP = 15", "SOFTCAP = 30")
    (beside,) = capture(TRAIN, edited, target=IDEA).warnings

    assert alone == (
        "DEPTH is sized by the profile cpu: this codemod does not apply there. Write "
        'codemod=codemod("constants.ScaleConstant", name="DEPTH", factor="3/2") in '
        "specs/x.py instead."
    )
    assert beside == (
        "DEPTH is sized by the profile cpu: this codemod does not apply there. Capture "
        'the rest without DEPTH, and write codemod=(codemod("constants.ScaleConstant", '
        'name="DEPTH", factor="3/2"), codemod("x.idea.Idea")) in specs/x.py.'
    )


def test_an_experiment_that_is_there_stays_as_it_is(project):
    spec = project / "specs" / "x.py"
    add_experiment(spec, experiment_text("idea", hypothesis="Why.", change="What."))
    before = spec.read_text()

    main(["capture", "my_train.py", "--as", "specs/x.py::idea"])

    assert spec.read_text() == before
    assert (project / "codemods" / "x" / "idea.py").is_file()


def failure(capsys, *arguments: str) -> str:
    """Return what a command prints that fails, all of it."""
    assert main(["capture", "my_train.py", *arguments]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    return errors


def test_a_codemod_that_is_there_is_replaced_on_request_alone(project, capsys):
    path = project / "codemods" / "x" / "idea.py"
    path.parent.mkdir(parents=True)
    path.write_text("mine")

    said = failure(capsys, "--as", "specs/x.py::idea")

    assert said == (
        "codemods/x/idea.py is there already.\n\n"
        "hint: take another name, or write over it with --replace.\n"
    )
    assert path.read_text() == "mine"
    assert (
        main(["capture", "my_train.py", "--as", "specs/x.py::idea", "--replace"]) == 0
    )
    assert path.read_text() != "mine"


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (
            'idea = Experiment(codemod=codemod("a.B"))\n',
            [],
            "specs/x.py::idea names its codemod in codemod=.\n\n"
            "hint: take codemod= out of it, or capture for an experiment of another "
            "name.\n",
        ),
        (
            "idea = Experiment(sweep=Sweep(x=(1, 2)))\n",
            [],
            "specs/x.py::idea has sweep=, and a captured codemod takes no values.\n\n"
            "hint: take sweep= out of it, or capture for an experiment of another "
            "name.\n",
        ),
        (
            "idea = (\n",
            [],
            "specs/x.py:1: '(' was never closed.\n\n"
            "hint: correct this first: nothing is added to a file that cannot be read.\n",
        ),
        (
            None,
            ["--on", "cpu"],
            "--on cpu says where a prediction holds, and there is none.\n\n"
            "hint: predict with --delta-bpb, or leave --on out.\n",
        ),
        (
            None,
            ["--tags", "my tag"],
            "the tag 'my tag' does not match [a-z][a-z0-9_]{0,63}.\n\n"
            'hint: use lower case and underscores: tags=("my_tag",).\n',
        ),
    ],
)
def test_nothing_is_written_where_the_experiment_cannot_use_it(
    project, capsys, spec, arguments, message
):
    if spec is not None:
        (project / "specs").mkdir()
        (project / "specs" / "x.py").write_text(spec)

    assert failure(capsys, "--as", "specs/x.py::idea", *arguments) == message
    assert not (project / "codemods").exists()
    assert spec is not None or not (project / "specs").exists()


def test_a_copy_that_is_not_there_is_said_to_be_so(project, capsys):
    (project / "my_train.py").unlink()

    assert failure(capsys, "--as", "specs/x.py::idea") == (
        "my_train.py cannot be read: No such file or directory.\n\n"
        "hint: name the edited copy of the training module.\n"
    )


def test_a_copy_in_another_encoding_is_said_to_be_so(project, capsys):
    (project / "my_train.py").write_bytes(b"# \xe4\n")

    assert failure(capsys, "--as", "specs/x.py::idea") == (
        "my_train.py is not UTF-8: invalid continuation byte at byte 2.\n\n"
        "hint: save it as UTF-8.\n"
    )


# The spec file


def test_an_experiment_is_added_to_a_file_that_is_otherwise_left_alone(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        '"""About."""\n\nfrom core.spec import Experiment, codemod  # these\n\n'
        'a = Experiment(hypothesis="h",change="c")  # mine\n\n\n'
    )

    add_experiment(
        path,
        experiment_text(
            "b",
            hypothesis="A larger base turns the slow channels less, so that positions\n"
            "that are far apart stay comparable.",
            change="c",
            delta_bpb=-0.001,
            tags=["t"],
        ),
    )

    assert path.read_text() == (
        '"""About."""\n\nfrom core.spec import Expect, Experiment, codemod  # these\n\n'
        'a = Experiment(hypothesis="h",change="c")  # mine\n\n'
        "b = Experiment(\n"
        '    hypothesis="A larger base turns the slow channels less, so that positions '
        'that "\n'
        '    "are far apart stay comparable.",\n'
        '    change="c",\n'
        "    expect=Expect(delta_bpb=-0.001),\n"
        '    tags=("t",),\n'
        ")\n"
    )


def test_a_name_that_is_taken_is_not_bound_again(tmp_path):
    path = tmp_path / "x.py"
    text = experiment_text("a", hypothesis="h", change="c")
    add_experiment(path, text)

    with pytest.raises(SpecError) as caught:
        add_experiment(path, text)

    assert str(caught.value) == (
        "x.py:5: 'a' is bound here already.\n\n"
        "hint: take another name, or edit this experiment."
    )
