import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import (
    CodemodRefused,
    Conflict,
    DeltaspecError,
    MutationError,
    NoChange,
    SessionError,
    SiteNotFound,
    SourceRefused,
)
from core.mutate import (
    Job,
    Mutant,
    Refusal,
    children,
    compare,
    find_codemod,
    mutate,
    mutate_all,
    unchanged,
)
from core.mutate.compare import SymbolChange
from core.spec.vocabulary import CodemodCall

REPO = Path(__file__).resolve().parents[1]
SOURCE = dedent('''
    """A training module."""

    import torch

    ROPE_BASE = 10_000  # rotary
    SEQUENCE_LEN = 2048
    SHORT_WINDOW = SEQUENCE_LEN // 2


    class MLP(torch.nn.Module):
        """Transform each token."""

        ratio = 4

        def forward(self, x):
            """Return x."""
            x = self.up(x)
            return self.down(x)
''').lstrip()


def call(reference: str, **options) -> CodemodCall:
    return CodemodCall(reference=reference, options=tuple(options.items()))


def job(*calls: CodemodCall, source: str = SOURCE) -> Job:
    return Job(source=source, codemods=calls)


def set_base(value: int) -> CodemodCall:
    return call("constants.SetConstant", name="ROPE_BASE", value=value)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "project" / "codemods").mkdir(parents=True)
    return tmp_path / "project"


def write(project: Path, module: str, body: str, *, name: str = "Mine") -> CodemodCall:
    """Write a codemod whose ``transform_module_impl`` is *body*."""
    path = project / "codemods" / f"{module}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "import libcst as cst\n\nfrom codemods.base import Codemod\n\n\n"
        f"class {name}(Codemod):\n"
        "    def transform_module_impl(self, tree):\n" + _indented(body)
    )
    return call(f"{module.replace('/', '.')}.{name}")


def _indented(body: str) -> str:
    return "".join(f"        {line}\n" for line in dedent(body).strip().splitlines())


# Writes what it likes to the pipe that its own answer would take
FORGE = """
import json, os
for fd in range(3, 30):
    try:
        os.write(fd, json.dumps({}).encode())
    except OSError:
        continue
os._exit(0)
"""
# Python parses it; LibCST, or who visits its tree, recurses too deeply
DEEP = r"{'steps': ['if X: pass\n' + 'elif X: pass\n' * 900]}"
RENAME_ROPE = 'return cst.parse_module(tree.code.replace("10_000", "50_000"))'


def error_of(a_job: Job, project: Path, **options) -> DeltaspecError:
    with pytest.raises(MutationError) as caught:
        mutate(a_job, project=project, **options)
    return caught.value


# What a mutant is


def test_a_codemod_makes_a_mutant_with_its_diff_and_changed_symbols(project):
    mutant = mutate(job(set_base(50_000)), project=project)

    assert mutant == Mutant(
        source=SOURCE.replace("10_000", "50_000"),
        diff=(
            "--- base/train.py\n"
            "+++ mutant/train.py\n"
            "@@ -2,7 +2,7 @@\n"
            " \n"
            " import torch\n"
            " \n"
            "-ROPE_BASE = 10_000  # rotary\n"
            "+ROPE_BASE = 50_000  # rotary\n"
            " SEQUENCE_LEN = 2048\n"
            " SHORT_WINDOW = SEQUENCE_LEN // 2\n"
            " \n"
        ),
        changes=(
            SymbolChange(
                symbol="ROPE_BASE",
                kind="constant",
                edit="changed",
                old="10000",
                new="50000",
            ),
        ),
        digest=compare.read(SOURCE.replace("10_000", "50000")).digest,
    )


def test_the_baseline_is_the_mutant_of_no_changes(project):
    baseline = unchanged(SOURCE)

    assert mutate_all([job()], project=project) == [baseline]
    assert (baseline.source, baseline.diff, baseline.changes) == (SOURCE, "", ())


def test_a_mutant_survives_json(project):
    mutant = mutate(job(set_base(50_000)), project=project)

    assert Mutant.from_json(json.loads(json.dumps(mutant.to_json()))) == mutant


def test_codemods_compose_in_order_and_results_keep_the_order_of_the_jobs(project):
    scale = call("constants.ScaleConstant", name="SHORT_WINDOW", factor="1/2")
    missing = call("constants.SetConstant", name="NONE", value=1)

    both, other, error = mutate_all(
        [
            job(set_base(1), scale),
            job(set_base(2), source=SOURCE.replace("2048", "4096")),
            job(missing),
        ],
        project=project,
    )

    assert [change.symbol for change in both.changes] == ["ROPE_BASE", "SHORT_WINDOW"]
    assert "SEQUENCE_LEN // 4" in both.source
    assert "SEQUENCE_LEN = 4096" in other.source
    assert isinstance(error, SiteNotFound)


def test_a_tuple_stays_a_tuple_on_its_way_to_the_codemod(project):
    pair = call("constants.SetConstant", name="ROPE_BASE", value=(0.8, (1, 2)))

    assert "ROPE_BASE = (0.8, (1, 2))  #" in mutate(job(pair), project=project).source


# What is refused


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("x = (", "line 1: '(' was never closed."),
        ("#" * 300_000, "300,000 bytes is more than 262,144."),
        ("x = " + "-" * 100_000 + "1", "it is nested too deeply."),
    ],
)
def test_a_source_that_cannot_be_edited_is_refused_before_any_child(
    source, reason, project, monkeypatch
):
    monkeypatch.setattr(children, "WORKER", ("/nonexistent",))

    error = error_of(job(set_base(1), source=source), project)

    assert isinstance(error, SourceRefused)
    assert str(error) == (
        f"The training module cannot be edited: {reason}\n\n"
        "hint: make it a module that Python imports, of at most 256 KiB."
    )


def test_a_codemod_that_leaves_the_meaning_as_it_was_is_an_error(project):
    comment = write(project, "idea", 'return cst.parse_module(tree.code + "# x\\n")')

    error = error_of(job(comment), project)

    assert isinstance(error, NoChange)
    assert str(error) == (
        "Mine() leaves a module that means the same as before.\n\n"
        "hint: change what the module computes, not only its comments or layout."
    )


def test_a_codemod_that_rewrites_what_an_earlier_one_wrote_is_a_conflict(project):
    error = error_of(job(set_base(50_000), set_base(60_000)), project)

    assert isinstance(error, Conflict)
    assert str(error) == (
        "SetConstant(name='ROPE_BASE', value=60000) rewrites lines that "
        "SetConstant(name='ROPE_BASE', value=50000) wrote.\n\n"
        "hint: take one of them out, or write one codemod that does both."
    )


def test_lines_that_moved_are_still_those_of_who_wrote_them():
    steps = ["a\nb\nc\n", "a\nB\nc\n", "new\na\nB\nc\n", "new\na\nc\n"]

    assert compare.overwritten(steps[:3]) is None
    assert compare.overwritten(steps) == (0, 2)


@pytest.mark.parametrize(
    ("reference", "hint"),
    [
        (
            "constants.SetConstent",
            "use one that is there: constants.SetConstant, constants.ScaleConstant.",
        ),
        (
            "constant.SetConstant",
            "use one that is there: constants.SetConstant, constants.ScaleConstant.",
        ),
        (
            "constants.Zzz",
            "use one that is there: constants.SetConstant, constants.ScaleConstant.",
        ),
        (
            "statements.Insert",
            "use one that is there: statements.InsertAfter, statements.InsertBefore, "
            "statements.DeleteStatement.",
        ),
        (
            "base.SetConstant",
            "use one that is there: constants.SetConstant, constants.ScaleConstant.",
        ),
        (
            "secrets.Key",
            "look for one in these modules: {modules}.",
        ),
        (
            "..secrets.Key",
            "look for one in these modules: {modules}.",
        ),
    ],
)
def test_a_codemod_that_is_not_there_names_the_nearest_or_the_modules(
    reference, hint, project
):
    write(project, "zoo/animal", RENAME_ROPE)
    built_in = {
        path.stem
        for path in (REPO / "codemods").iterdir()
        if path.stem not in {"__init__", "__pycache__", "base", "symbols"}
    }
    modules = ", ".join(sorted({*built_in, "zoo"}))

    error = error_of(job(call(reference)), project)

    assert isinstance(error, CodemodRefused)
    assert str(error) == (
        f"There is no codemod {reference!r} below codemods/.\n\n"
        f"hint: {hint.format(modules=modules)}"
    )


def test_an_option_that_does_not_exist_names_those_that_do(project):
    error = error_of(job(call("constants.SetConstant", nam="X")), project)

    assert isinstance(error, CodemodRefused)
    assert str(error) == (
        "SetConstant does not take the option 'nam'.\n\n"
        "hint: did you mean 'name'? use one of its options: name, value, expression."
    )


FAILURES = {
    "return {}['x']": (
        "Mine() failed: KeyError: 'x' (codemods/ideas/one.py, line 8).\n\n"
        "hint: correct codemods/ideas/one.py."
    ),
    "raise SystemExit(0)": (
        "Mine() failed: SystemExit: 0 (codemods/ideas/one.py, line 8).\n\n"
        "hint: correct codemods/ideas/one.py."
    ),
    "return bytearray(1 << 40)": (
        "Mine() failed: MemoryError (codemods/ideas/one.py, line 8).\n\n"
        "hint: correct codemods/ideas/one.py."
    ),
    "import os; os._exit(0)": (
        "The process of Mine() ended by exit code 0.\n\n"
        "hint: correct codemods/ideas/one.py: deep nesting, for one, crashes "
        "LibCST's parser."
    ),
    "return tree": (
        "Mine() found nothing to rewrite in the training module.\n\n"
        "hint: compare what it looks for with the training module, and show it in "
        "EXAMPLES."
    ),
    "return cst.Module([cst.SimpleStatementLine([cst.Expr(cst.Name('class'))])])": (
        "Mine() leaves a module that cannot be read: line 1: invalid syntax.\n\n"
        "hint: correct what codemods/ideas/one.py builds."
    ),
    "return cst.parse_module('#' * 300_000)": (
        "Mine() leaves a module that cannot be read: 300,000 bytes is more than "
        "262,144.\n\n"
        "hint: correct what codemods/ideas/one.py builds."
    ),
    FORGE.format("{'steps': [1]}"): (
        "Mine() failed: its answer is not the worker's.\n\n"
        "hint: correct codemods/ideas/one.py."
    ),
    FORGE.format("{'steps': [], 'error': 'SpecError', 'message': 'm.'}"): (
        "m.\n\nhint: "
    ),
    FORGE.format("{'died': -999}"): (
        "Mine() failed: its answer is not the worker's.\n\n"
        "hint: correct codemods/ideas/one.py."
    ),
    FORGE.format("{'unconfined': 'Landlock is off'}"): (
        "Mine() failed: its answer is not the worker's.\n\n"
        "hint: correct codemods/ideas/one.py."
    ),
    FORGE.format("{'state': 'working'}"): (
        "Mine() failed: its answer is not the worker's.\n\n"
        "hint: correct codemods/ideas/one.py."
    ),
    FORGE.format("['steps']"): (
        "Mine() failed: its answer is not the worker's.\n\n"
        "hint: correct codemods/ideas/one.py."
    ),
    FORGE.replace("json.dumps({})", "'steps'"): (
        "Mine() failed: its answer is not the worker's.\n\n"
        "hint: correct codemods/ideas/one.py."
    ),
    FORGE.format(DEEP): (
        "Mine() leaves a module that cannot be read: LibCST cannot parse it.\n\n"
        "hint: correct what codemods/ideas/one.py builds."
    ),
}


def test_a_codemod_that_fails_says_how_and_where(project):
    calls = [write(project, f"ideas{n}/one", body) for n, body in enumerate(FAILURES)]

    errors = mutate_all([job(mine) for mine in calls], project=project)

    shown = [
        str(error).replace(f"codemods/ideas{n}/", "codemods/ideas/")
        for n, error in enumerate(errors)
    ]
    assert shown == list(FAILURES.values())
    assert all(isinstance(error, MutationError) for error in errors)


def test_a_codemod_that_crashes_or_loops_costs_only_its_own_job(project):
    crash = write(project, "crash", 'cst.parse_expression("(" * 9000 + ")" * 9000)')
    loop = write(project, "loop", "while True: pass")

    crashed, good, looped, last = mutate_all(
        [job(crash), job(set_base(1)), job(loop), job(set_base(2))],
        project=project,
        timeout_seconds=2,
    )

    assert str(crashed) == (
        "The process of Mine() ended by signal SIGSEGV.\n\n"
        "hint: correct codemods/crash.py: deep nesting, for one, crashes LibCST's "
        "parser."
    )
    assert str(looped) == (
        "Mine() took longer than 2 s.\n\n"
        "hint: look for a loop without an end in codemods/loop.py."
    )
    assert "ROPE_BASE = 1 " in good.source
    assert "ROPE_BASE = 2 " in last.source


IMPORTS_OS = Refusal(
    line=SOURCE.count("\n") + 1,
    symbol="",
    reason="it imports os; a training module imports torch and math",
)


def test_a_mutant_carries_what_its_module_has_no_business_doing(project):
    opens = write(
        project, "idea", 'return cst.parse_module(tree.code + "import os\\n")'
    )

    mutant = mutate(job(set_base(1), opens), project=project)

    assert mutant.refusals == (IMPORTS_OS,)
    assert Mutant.from_json(json.loads(json.dumps(mutant.to_json()))) == mutant


def test_what_the_base_does_is_refused_of_no_mutant_and_not_of_the_base(project):
    source = f"{SOURCE}import os\n"

    assert unchanged(source).refusals == ()
    assert mutate(job(set_base(1), source=source), project=project).refusals == ()


@pytest.mark.parametrize("refusals", ["[]", "None", "{}", "[{'line': 1}]"])
def test_a_codemod_cannot_answer_for_the_one_who_vets(refusals, project):
    forged = {"steps": [f"{SOURCE}import os\n"]}
    forge = write(
        project, "idea", FORGE.format(f"{{**{forged!r}, 'refusals': {refusals}}}")
    )

    mutant = mutate(job(forge), project=project)

    assert mutant.refusals == (IMPORTS_OS,)


def test_a_codemod_cannot_disarm_the_one_who_vets(project):
    disarm = write(
        project,
        "idea",
        """
        from core.mutate import forbidden, vetting
        vetting.refusals = lambda source, base: ()
        vetting.Vetting.findings = lambda self: iter(())
        forbidden.imported = lambda path: None
        return cst.parse_module(tree.code + "import os\\n")
        """,
    )

    mutants = mutate_all([job(disarm)] * 2, project=project)

    assert [mutant.refusals for mutant in mutants] == [(IMPORTS_OS,)] * 2


def test_a_module_that_cannot_be_vetted_costs_only_its_own_job(project):
    deep = write(project, "deep", FORGE.format(DEEP))

    lost, *others = mutate_all(
        [job(deep), job(set_base(1)), job(set_base(2))], project=project
    )

    assert isinstance(lost, CodemodRefused)
    assert [other.refusals for other in others] == [(), ()]


def said_by_a_worker(monkeypatch, *answers, then=""):
    """Have a worker of a session say *answers*, whatever it is asked."""
    lines = "".join(f"print({json.dumps(json.dumps(a))})\n" for a in answers)
    program = f"import signal, sys\n{lines}sys.stdout.flush()\n{then}"
    monkeypatch.setattr(children, "WORKER", (sys.executable, "-c", program))


def test_a_module_that_takes_too_long_to_vet_is_refused(project, monkeypatch):
    monkeypatch.setattr(children, "PREPARE_SECONDS", 1.0)
    said_by_a_worker(monkeypatch, {"state": "vetting"}, then="signal.pause()")

    assert str(error_of(job(set_base(1)), project)) == (
        "SetConstant(name='ROPE_BASE', value=1) leaves a module that cannot be read: "
        "LibCST takes too long to parse it.\n\n"
        "hint: correct what codemods/constants.py builds."
    )


@pytest.mark.parametrize(
    "refusals",
    [
        "none",
        {"line": 1},
        ["line 1"],
        [{"line": 1, "symbol": ""}],
        [{"line": "1", "symbol": "", "reason": "r"}],
        [{"line": 1, "symbol": None, "reason": "r"}],
        [{"line": 1, "symbol": "", "reason": "r", "more": ""}],
    ],
)
def test_refusals_of_other_types_are_no_answer(refusals, project, monkeypatch):
    said_by_a_worker(
        monkeypatch, {"state": "vetting"}, {"steps": ["X = 1"], "refusals": refusals}
    )

    assert str(error_of(job(set_base(1)), project)) == (
        "SetConstant(name='ROPE_BASE', value=1) failed: its answer is not the "
        "worker's.\n\nhint: correct codemods/constants.py."
    )


def test_a_module_that_nobody_vetted_is_refused(project, monkeypatch):
    said_by_a_worker(monkeypatch, {"state": "vetting"}, {"steps": ["X = 1"]})

    assert str(error_of(job(set_base(1)), project)) == (
        "SetConstant(name='ROPE_BASE', value=1) leaves a module that cannot be read: "
        "it was not vetted.\n\nhint: correct what codemods/constants.py builds."
    )


@pytest.mark.slow
def test_a_codemod_that_nothing_confines_and_that_is_late_leaves_no_process(project):
    seconds = str(600 + os.getpid())  # whose it is
    late = write(
        project,
        "late",
        f"""
        import subprocess
        subprocess.run(["sleep", "{seconds}"])
        """,
    )

    error_of_late, *_ = mutate_all(
        [job(late)], project=project, timeout_seconds=2, confined=False
    )

    assert isinstance(error_of_late, CodemodRefused)
    assert error_of_late.message == "Mine() took longer than 2 s."
    left = [
        p
        for p in psutil.process_iter(["cmdline"])
        if seconds in (p.info["cmdline"] or ())
    ]
    _gone, alive = psutil.wait_procs(left, timeout=10)
    assert alive == []


@pytest.mark.parametrize(
    ("deed", "what"),
    [
        (
            "open({beside!r}, 'a').write('x = 1')",
            "[Errno 13] Permission denied: {beside!r}",
        ),
        ("open({outside!r}).read()", "[Errno 13] Permission denied: {outside!r}"),
        ("__import__('socket').socket()", "[Errno 1] Operation not permitted"),
        (
            "__import__('os').kill(__import__('os').getppid(), 0)",
            "[Errno 1] Operation not permitted",
        ),
        ("__import__('os').fork()", "[Errno 1] Operation not permitted"),
        (
            "__import__('os').execv('/bin/true', ['true'])",
            "[Errno 1] Operation not permitted",
        ),
    ],
    ids=[
        *("writes a codemod", "reads elsewhere", "opens a socket"),
        *("signals its worker", "leaves a process", "runs a program"),
    ],
)
def test_a_codemod_reaches_nothing_but_what_it_is_given(
    project, tmp_path_factory, deed, what
):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.txt"
    secret.write_text("sealed")
    harmless = write(project, "harmless", RENAME_ROPE)
    places = {
        "beside": str(project / "codemods" / "harmless.py"),
        "outside": str(secret),
    }
    curious = write(project, "curious", deed.format(**places))

    error, fine = mutate_all([job(curious), job(harmless)], project=project)

    assert isinstance(error, CodemodRefused)
    assert what.format(**places) in error.message
    assert isinstance(fine, Mutant)


def test_what_a_codemod_prints_or_writes_to_stdout_is_not_taken_for_an_answer(project):
    loud = write(
        project,
        "loud",
        f"""
        import os
        print('{{"steps": ["x = 1"]}}', flush=True)
        os.write(1, b'{{"steps": ["x = 1"]}}\\n')
        {RENAME_ROPE}
        """,
    )

    assert mutate(job(loud), project=project).source == (
        SOURCE.replace("10_000", "50_000")
    )


def test_a_codemod_cannot_leave_anything_behind_for_the_next(project):
    sticky = write(
        project,
        "sticky",
        """
        cst.runs = getattr(cst, "runs", 0) + 1
        return cst.parse_module(tree.code.replace("10_000", str(cst.runs)))
        """,
    )
    other = SOURCE.replace("2048", "4096")

    mutants = mutate_all([job(sticky), job(sticky, source=other)] * 3, project=project)

    assert all("ROPE_BASE = 1 " in mutant.source for mutant in mutants)


def test_a_codemod_sees_no_secret_of_the_session(project, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret")
    spy = write(
        project,
        "spy",
        """
        import os
        key = os.environ.get("ANTHROPIC_API_KEY", "none")
        return cst.parse_module(tree.code + f"KEY = {key!r}\\n")
        """,
    )

    assert "KEY = 'none'" in mutate(job(spy), project=project).source


def test_no_child_that_starts_is_an_error_of_the_session(project, monkeypatch):
    monkeypatch.setattr(
        children, "WORKER", (sys.executable, "-c", "raise SystemExit('no libcst')")
    )

    with pytest.raises(SessionError) as caught:
        mutate(job(set_base(1)), project=project)

    assert str(caught.value) == (
        "The process that applies codemods did not start (exit code 1).\nno libcst\n\n"
        "hint: run `python -m core.mutate.worker < /dev/null` to see what it lacks."
    )


def test_a_module_that_libcst_cannot_parse_is_refused(project, monkeypatch):
    dies = 'print(\'{"state": "parsing"}\')'
    monkeypatch.setattr(children, "WORKER", (sys.executable, "-c", dies))

    first, second = mutate_all([job(set_base(1)), job(set_base(2))], project=project)

    assert isinstance(first, SourceRefused)
    assert str(first) == (
        "The training module cannot be edited: LibCST cannot parse it.\n\n"
        "hint: write it in plainer syntax: Python itself can read it."
    )
    assert str(second) == str(first)


# Where codemods are


def test_a_project_without_codemods_has_the_built_in_ones(tmp_path):
    assert mutate(job(set_base(1)), project=tmp_path).changes


VOCABULARY = sorted(
    path.stem for path in (REPO / "codemods").glob("*.py") if path.stem != "__init__"
)


@pytest.mark.parametrize("place", ["beside the built-in ones", "among them"])
def test_a_spec_file_may_be_named_like_a_module_of_the_vocabulary(place, project):
    if place == "among them":
        shutil.copytree(REPO / "codemods", project / "codemods", dirs_exist_ok=True)
    add = 'return cst.parse_module(tree.code + "MINE = 1\\n")'
    own = {name: write(project, f"{name}/my_idea", add, name="MyIdea")
           for name in VOCABULARY}  # fmt: skip
    examples = [first_example(name) for name in VOCABULARY]
    both = [
        Job(source=before, codemods=(theirs, own[name]))
        for name, (theirs, before, _) in zip(VOCABULARY, examples, strict=True)
    ]

    alone = mutate_all([job(mine) for mine in own.values()], project=project)
    together = mutate_all(both, project=project)

    assert {"base", "optimizer"} < set(VOCABULARY)
    assert [find_codemod(project, (name,), "my_idea") for name in VOCABULARY] == [
        f"{name}.my_idea.MyIdea" for name in VOCABULARY
    ]
    assert alone == [mutate(job(own["base"]), project=project)] * len(VOCABULARY)
    assert alone[0].source == SOURCE + "MINE = 1\n"
    for mutant, (_, _, after) in zip(together, examples, strict=True):
        assert mutant.source == f"{after}MINE = 1\n"


def first_example(module: str) -> tuple[CodemodCall, str, str]:
    """Return a call of a module's first codemod, and a source before and after it."""
    for name, found in vars(importlib.import_module(f"codemods.{module}")).items():
        if getattr(found, "EXAMPLES", ()):
            options, before, after = next(found.examples())
            return call(f"{module}.{name}", **options), before, after
    return first_example("constants")  # for base, which holds none


def test_a_module_that_has_others_below_it_imports_them(project):
    write(project, "optimizer/parts", RENAME_ROPE, name="Half")
    whole = write(project, "optimizer/whole", "")
    (project / "codemods" / "optimizer" / "whole.py").write_text(
        "from codemods.optimizer import SetOptimizerGroup\n"
        "from codemods.optimizer.parts import Half\n\n\n"
        "class Mine(Half):\n    group = SetOptimizerGroup\n"
    )

    assert "50_000" in mutate(job(whole), project=project).source


def test_a_codemod_edited_within_the_second_is_read_anew(project):
    for value in ("11_111", "22_222"):
        mine = write(project, "idea", RENAME_ROPE.replace("50_000", value))
        assert value in mutate(job(mine), project=project).source


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("class QKNorm(Codemod): pass", "attention.qk_norm.QKNorm"),
        ("class Other(base.Codemod): pass", "attention.qk_norm.Other"),
        (
            "class QKNorm(Renaming): pass\nclass Helper: pass",
            "attention.qk_norm.QKNorm",
        ),
        (
            "class QKNorm(Codemod): pass\nclass Half(Codemod): pass",
            "attention.qk_norm.QKNorm",
        ),
    ],
)
def test_the_codemod_of_an_experiment_is_found_by_its_name(text, reference, project):
    (project / "codemods" / "attention").mkdir()
    (project / "codemods" / "attention" / "qk_norm.py").write_text(text)

    assert find_codemod(project, ("attention",), "qk_norm") == reference
    assert find_codemod(project, ("attention",), "rope") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x = 1",
            "codemods/attention/qk_norm.py holds no class: one codemod was expected."
            "\n\nhint: define one class that derives from Codemod, such as QkNorm.",
        ),
        (
            "class A(Codemod): pass\nclass B(Codemod): pass",
            "codemods/attention/qk_norm.py holds A, B: one codemod was expected."
            "\n\nhint: define one class that derives from Codemod, such as QkNorm.",
        ),
        (
            "class A(",
            "codemods/attention/qk_norm.py cannot be read: line 1: '(' was never "
            "closed.\n\nhint: make it a module that Python imports.",
        ),
    ],
)
def test_an_experiment_whose_file_holds_no_one_codemod_says_so(text, message, project):
    (project / "codemods" / "attention").mkdir()
    (project / "codemods" / "attention" / "qk_norm.py").write_text(text)

    with pytest.raises(CodemodRefused) as caught:
        find_codemod(project, ("attention",), "qk_norm")

    assert str(caught.value) == message


# What is kept


def test_a_mutant_that_is_known_needs_no_child(project, tmp_path, monkeypatch):
    jobs = [job(set_base(value)) for value in (1, 2)]
    cold = mutate_all(jobs, project=project, cache=tmp_path / "cache")

    monkeypatch.setattr(children, "WORKER", ("/nonexistent",))

    assert mutate_all(jobs, project=project, cache=tmp_path / "cache") == cold


@pytest.mark.parametrize("edit", ["codemods", "source", "options"])
def test_whatever_a_mutant_depends_on_makes_it_anew(edit, project, tmp_path):
    idea = write(project, "idea", RENAME_ROPE)
    mutate_all([job(idea)], project=project, cache=tmp_path / "cache")
    known = len(list((tmp_path / "cache").rglob("*.json")))

    again = job(idea)
    if edit == "codemods":
        write(project, "idea", RENAME_ROPE.replace("50_000", "60_000"))
    elif edit == "source":
        again = job(idea, source=SOURCE + "X = 1\n")
    else:
        again = job(set_base(3))
    mutate_all([again], project=project, cache=tmp_path / "cache")

    assert known == 1
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 2


def test_an_error_is_not_kept(project, tmp_path):
    loop = write(project, "loop", "while True: pass")
    mutate_all([job(loop)], project=project, cache=tmp_path, timeout_seconds=1)

    assert not list(tmp_path.rglob("*.json"))


def test_a_torn_file_in_the_cache_is_made_anew(project, tmp_path):
    cache = tmp_path / "cache"
    mutant = mutate(job(set_base(1)), project=project, cache=cache)
    (kept,) = cache.rglob("*.json")
    kept.write_text(kept.read_text()[:100])

    assert mutate(job(set_base(1)), project=project, cache=cache) == mutant


def test_neither_a_cold_nor_a_warm_call_imports_libcst_or_a_codemod(tmp_path):
    program = f"""
import sys
import time
from pathlib import Path
from core.mutate import Job, mutate
from core.spec.vocabulary import CodemodCall
call = CodemodCall(
    reference="constants.SetConstant", options=(("name", "X"), ("value", 2))
)
for _ in range(2):
    mutate(
        Job(source="X = 1", codemods=(call,)),
        project=Path({str(tmp_path)!r}),
        cache=Path({str(tmp_path / "cache")!r}),
    )
print({{"libcst", "codemods", "torch"}} & set(sys.modules))
"""

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True
    )

    assert (done.stdout, done.stderr) == ("set()\n", "")


# What differs


def rows(before: str, after: str) -> list[tuple[str, str, str, str | None, str | None]]:
    found = compare.changes(compare.read(dedent(before)), compare.read(dedent(after)))
    return [(row.kind, row.symbol, row.edit, row.old, row.new) for row in found]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("X = 1", "X: int = 2", [("constant", "X", "changed", "1", "2")]),
        ("X = 1", "", [("constant", "X", "removed", "1", None)]),
        ("Y = 1", "Y = 1\nX = Y // 2", [("constant", "X", "added", None, "Y // 2")]),
        ("Y = 1\nX = Y", "Y = 2\nX = Y", [("constant", "Y", "changed", "1", "2")]),
        (
            "from math import pi",
            "from math import pi, tau as t",
            [("import", "t", "added", None, "from math import tau as t")],
        ),
        (
            "class A:\n    x = 1\n    def f(self): return 1",
            "class A:\n    x = 1\n    def f(self): return 2",
            [
                (
                    "function",
                    "A.f",
                    "changed",
                    "def f(self):\n    return 1",
                    "def f(self):\n    return 2",
                )
            ],
        ),
        (
            "class A:\n    x = 1\n    def f(self): return 1",
            "class A:\n    x = 2\n    def f(self): return 1",
            [
                (
                    "class",
                    "A",
                    "changed",
                    "class A:\n    x = 1",
                    "class A:\n    x = 2",
                )
            ],
        ),
        (
            "",
            "class A(B):\n    def f(self): return 1",
            [
                (
                    "class",
                    "A",
                    "added",
                    None,
                    "class A(B):\n\n    def f(self):\n        return 1",
                )
            ],
        ),
        (
            "if X:\n    Y = 1",
            "if X:\n    Y = 2",
            [("statement", "if X:", "changed", "if X:\n    Y = 1", "if X:\n    Y = 2")],
        ),
        (
            "X = 1\nY = 2\ndef f(): pass",
            "X = 1\ndef f(): pass\nY = 2",
            [("function", "f", "moved", "def f():\n    pass", "def f():\n    pass")],
        ),
        ("X: int = 1", "X: float = 1",
         [("statement", "X: float = 1", "changed", "X: int = 1", "X: float = 1")]),
    ],
)  # fmt: skip
def test_changed_symbols_are_found_whoever_made_the_change(before, after, expected):
    assert rows(before, after) == expected


def test_the_diff_is_one_that_patch_applies(tmp_path):
    before, after = "a = 1\nb = 2\n\x0cc = 3", "a = 1\nb = 3\n\x0cc = 3\nd = 4"
    (tmp_path / "train.py").write_text(before)

    subprocess.run(
        ["patch", "-s", "-p1"],
        input=compare.diff(before, after).encode(),
        cwd=tmp_path,
        check=True,
    )

    assert (tmp_path / "train.py").read_text() == after


STATEMENTS = st.lists(
    st.sampled_from([
        "X = 10_000",
        "Y = {'a': [1, 2.5, 'text']}",
        "def f(x, *, y=1):\n    return x + y",
        "class A:\n    z = 1\n\n    def g(self):\n        return self.z",
        "if X:\n    import os",
    ]),
    min_size=1,
)
NOISE = st.sampled_from(["", "\n", "# a comment\n", "\n\n# two\n\n", "  # late\n"])


@given(statements=STATEMENTS, noise=st.lists(NOISE, min_size=6, max_size=6))
@settings(max_examples=60)
def test_comments_and_layout_never_change_the_digest(statements, noise):
    plain = "\n".join(statements)
    messy = '"""What it is for."""\n' + "".join(
        f"{noise[i % 6]}{text}\n{noise[(i + 1) % 6]}"
        for i, text in enumerate(statements)
    ).replace("10_000", "(10000)").replace("return x", 'r"""\\d"""\n    return x')

    assert compare.read(plain).digest == compare.read(messy).digest


@given(
    old=st.integers() | st.floats(allow_nan=False) | st.text(),
    new=st.integers() | st.floats(allow_nan=False) | st.text(),
)
def test_another_value_of_a_constant_always_changes_the_digest(old, new):
    sources = [f"X = {value!r}".replace("inf", "1e999") for value in (old, new)]
    first, second = map(compare.read, sources)

    assert (first.digest == second.digest) == (repr(old) == repr(new))
    assert len(compare.changes(first, second)) == (repr(old) != repr(new))
