"""`deltaspec new`, as a console script calls it."""

import json
import subprocess
import sys

import pytest

from core.cli import main
from core.report import JSON_VERSION
from core.spec import Expect, read_spec
from tests.conftest import ROOT

EMPTY = (
    "empty    hypothesis, why the change should help or harm\n"
    "empty    change, what to change in the training module\n"
)
NAMES = "[a-z][a-z0-9_]{0,63}."


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Return an empty project, which the command is called in."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ("core.plugin",)\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def new(capsys, *arguments):
    """Return what the command prints."""
    assert main(["new", *arguments]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    return output


def refusal(capsys, *arguments):
    """Return what the command prints that fails."""
    assert main(["new", *arguments]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    return errors


def test_a_new_experiment_has_what_was_given_and_the_rest_is_empty(project, capsys):
    said = new(
        capsys,
        "attention::short_window",
        *("--tags", "attention, speed", "--delta-bpb", "-0.0012", "--sd", "0.001"),
    )

    assert (project / "specs" / "attention.py").read_text() == (
        '"""What is believed about attention."""\n'
        "\n"
        "from core.spec import Expect, Experiment\n"
        "\n"
        "short_window = Experiment(\n"
        '    hypothesis="",\n'
        '    change="",\n'
        "    expect=Expect(delta_bpb=-0.0012, sd=0.001),\n"
        '    tags=("attention", "speed"),\n'
        ")\n"
    )
    assert said == (
        f"spec     specs/attention.py::short_window\n{EMPTY}"
        "codemod  codemods/attention/short_window.py (write it, or name one in codemod=)\n"
        "next     deltaspec dry-run specs/attention.py::short_window\n"
        "next     deltaspec run specs/attention.py::short_window\n"
    )


def test_a_reader_of_the_spec_says_what_to_fill_in_and_then_takes_it(project, capsys):
    new(capsys, "attention", "--tags", "attention")
    path = project / "specs" / "attention.py"

    found = [read_spec(path, project)[1]]
    for text in ('hypothesis="Less is more."', 'change="Halve it."'):
        field = text.partition("=")[0]
        path.write_text(path.read_text().replace(f'{field}=""', text))
        found.append(read_spec(path, project)[1])

    assert [[str(error) for error in errors] for errors in found] == [
        [
            "specs/attention.py:6: hypothesis='': expected a sentence.\n\n"
            "hint: say in hypothesis= why the change should help or harm."
        ],
        [
            "specs/attention.py:7: change='': expected a sentence.\n\n"
            "hint: say in change= what to change in the training module."
        ],
        [],
    ]


def test_an_experiment_that_was_given_whole_is_read_as_it_was_given(project, capsys):
    given = {"hypothesis": 'It "helps".', "change": "Halve it."}

    new(
        capsys,
        *("heads", "--hypothesis", given["hypothesis"], "--change", given["change"]),
        *("--within", "0.001", "--on", "cpu", "--tags", "placebo"),
    )

    (case,), errors = read_spec(project / "specs" / "heads.py", project)
    assert errors == []
    assert (case.hypothesis, case.change) == tuple(given.values())
    assert case.expect == Expect(delta_bpb=0, within=0.001, on="cpu")
    assert (case.id, case.tags) == ("specs/heads.py::heads", ("placebo",))


@pytest.mark.parametrize(
    ("name", "experiment"),
    [
        ("heads", "specs/heads.py::heads"),
        ("heads::one", "specs/heads.py::one"),
        ("specs/heads.py", "specs/heads.py::heads"),
        ("specs/heads.py::one", "specs/heads.py::one"),
        ("agent/d20261123/heads", "specs/agent/d20261123/heads.py::heads"),
        (
            "specs/agent/d20261123/heads.py::one",
            "specs/agent/d20261123/heads.py::one",
        ),
    ],
)
def test_an_experiment_is_named_by_topic_or_file(project, capsys, name, experiment):
    said = new(capsys, name)

    assert said.startswith(f"spec     {experiment}\n")
    assert (project / experiment.partition("::")[0]).exists()


def test_it_is_written_into_the_project_from_any_folder_of_it(
    project, capsys, monkeypatch
):
    (project / "docs" / "deep").mkdir(parents=True)
    monkeypatch.chdir(project / "docs" / "deep")

    new(capsys, "heads")

    assert (project / "specs" / "heads.py").exists()


def test_an_experiment_is_added_to_what_is_there(project, capsys):
    new(capsys, "heads::one", "--hypothesis", "h", "--change", "c")
    new(capsys, "heads::two", "--hypothesis", "h", "--change", "c", "--delta-bpb=-0.1")

    cases, errors = read_spec(project / "specs" / "heads.py", project)

    assert errors == []
    assert [case.name for case in cases] == ["one", "two"]


def test_an_experiment_of_that_name_is_never_written_over(project, capsys):
    new(capsys, "heads::one")
    before = (project / "specs" / "heads.py").read_bytes()

    said = refusal(capsys, "heads::one", "--tags", "other")

    assert said == (
        "heads.py:5: 'one' is bound here already.\n\n"
        "hint: take another name, or edit this experiment.\n"
    )
    assert (project / "specs" / "heads.py").read_bytes() == before


def test_a_codemod_that_is_there_is_not_to_be_written(project, capsys):
    codemod = project / "codemods" / "heads" / "one.py"
    codemod.parent.mkdir(parents=True)
    codemod.touch()

    said = new(capsys, "heads::one")

    assert "\ncodemod  codemods/heads/one.py (is there)\n" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["Long Context"],
            f"'Long Context' does not match {NAMES}\n\n"
            "hint: use lower case and underscores: long_context.\n",
        ),
        (
            ["heads::One"],
            f"'One' in 'heads::One' does not match {NAMES}\n\n"
            "hint: use lower case and underscores: one.\n",
        ),
        (
            ["../heads"],
            f"'..' in '../heads' does not match {NAMES}\n\n"
            "hint: name topic and experiment as in attention::rope_base.\n",
        ),
        (
            ["heads", "--tags", "long context"],
            f"the tag 'long context' does not match {NAMES}\n\n"
            'hint: use lower case and underscores: tags=("long_context",).\n',
        ),
        (
            ["heads", "--delta-bpb", "0.01", "--tags", "heads"],
            "delta_bpb=0.01 predicts harm: negative is an improvement.\n\n"
            "hint: write delta_bpb=-0.01, or tag it if harm is meant: "
            'tags=("heads", "harm").\n',
        ),
        (
            ["heads", "--delta-bpb=-0.002..-0.001"],
            "delta_bpb='-0.002..-0.001': expected a number of bits per byte.\n\n"
            "hint: write delta_bpb=-0.0015, sd=0.00025, which reads the range as two sd "
            "to either side.\n",
        ),
        (
            ["heads", "--sd", "0.001"],
            "--sd 0.001 is part of a prediction, and there is none.\n\n"
            "hint: predict with --delta-bpb, or leave --sd out.\n",
        ),
    ],
)
def test_what_a_spec_would_be_refused_for_is_refused_and_nothing_is_written(
    project, capsys, arguments, message
):
    assert refusal(capsys, *arguments) == message
    assert not (project / "specs").exists()


def test_json_says_where_it_is_what_is_empty_and_what_comes_next(project, capsys):
    said = new(capsys, "heads::one", "--change", "Halve them.", "--json")

    assert json.loads(said) == {
        "version": JSON_VERSION,
        "command": "new",
        "spec": "specs/heads.py",
        "experiment": "specs/heads.py::one",
        "empty": ["hypothesis"],
        "codemod": "codemods/heads/one.py",
        "next": [
            "deltaspec dry-run specs/heads.py::one",
            "deltaspec run specs/heads.py::one",
        ],
    }


def test_json_carries_an_error_with_its_hint(project, capsys):
    assert main(["new", "Heads", "--json"]) == 1

    found = json.loads(capsys.readouterr().out)
    assert found["command"] == "new"
    assert found["error"]["kind"] == "SpecError"
    assert found["error"]["hint"] == "use lower case and underscores: heads."


def test_neither_torch_nor_libcst_is_imported_for_it():
    code = (
        "import sys, core.cli.new; "
        "print(sorted(sys.modules.keys() & {'torch', 'libcst', 'duckdb', 'pytest'}))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "[]\n"
