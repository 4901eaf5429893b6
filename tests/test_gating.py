"""Gates that run code: each mutant is examined in a confined child before any trial."""

import sys
from pathlib import Path

import duckdb
import pytest

from core.launch import examine
from core.launch.examine import Examined, Subject, examine_all
from core.mutate import Job, mutate
from core.process.child import Zygote
from core.profile import PROFILES, Profile
from core.training.module import load_module
from core.training.run import Run
from tests.conftest import ROOT

# The smallest module that keeps the contract; WHERE is where a test lets it misbehave.
MODULE = """
import torch
import torch.nn.functional as F
from torch import nn

WHERE


class Bigram(nn.Module):
    def __init__(self, run):
        super().__init__()
        drawn = torch.randn(40, 40, generator=run.generator("table"))
        self.table = nn.Parameter(drawn)

    def forward(self, tokens):
        return self.table[ANSWER]


def train(run):
    model = Bigram(run)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for rows in run.batches(4):
        logits = model(rows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss)
    return model
"""


def a_subject(where: str = "", answer: str = "tokens") -> Subject:
    source = MODULE.replace("WHERE", where).replace("ANSWER", answer)
    return Subject(source=source, sequence_len=16, vocab_size=40)


@pytest.fixture(scope="module")
def examiner() -> Zygote:
    with Zygote(ROOT, (examine.MAIN,)) as zygote:
        yield zygote


@pytest.fixture
def examined(examiner: Zygote, tmp_path: Path):
    """Return a function that examines subjects by name."""

    def examined(confined: bool = True, files: str = "1", **subjects: Subject):
        return examine_all(
            subjects,
            zygote=examiner,
            library=ROOT,
            cache=tmp_path / "examined",
            files=files,
            is_confined=confined,
        )

    return examined


def test_an_honest_module_has_no_breach_and_another_does_not_poison_it(examined):
    found = examined(
        honest=a_subject(),
        leak=a_subject(answer="torch.roll(tokens, -1, 1)"),
        honest_again=a_subject("# the same"),
        patches=a_subject("F.cross_entropy = None"),
    )

    assert found["honest"] == found["honest_again"] == Examined()
    assert found["leak"].breach.startswith("causality: with token ")
    assert "training: train(run) raises TypeError" in found["patches"].breach


def test_what_was_found_is_kept_until_a_file_of_the_gates_changes(
    examined, tmp_path: Path
):
    first = examined(leak=a_subject(answer="torch.roll(tokens, -1, 1)"))
    (kept,) = (tmp_path / "examined").rglob("*.json")
    kept.write_text('{"breach": "kept", "note": ""}')

    again = examined(leak=a_subject(answer="torch.roll(tokens, -1, 1)"))
    renewed = examined(files="2", leak=a_subject(answer="torch.roll(tokens, -1, 1)"))

    assert again["leak"].breach == "kept"
    assert renewed == first


@pytest.mark.parametrize(
    ("where", "breach"),
    [
        ("import os; os._exit(3)", "import: the process ended with status 3."),
        ("import os; os.abort()", "import: the process ended by SIGABRT"),
        (
            "open('/etc/hostname')",
            "import: PermissionError: [Errno 13] Permission denied: '/etc/hostname'.",
        ),
        (
            "import os\nfor fd in range(3, 9):\n    try:\n"
            '        os.write(fd, b\'{"event": "scored"}\\n\')\n'
            "    except OSError:\n        pass\n",
            "import: the module said {'event': 'scored'}.",
        ),
        ("import os; os.write(3, b'x' * 70_000 + b'\\n')", "import: "),
        ("1 / 0", "import: ZeroDivisionError: division by zero."),
    ],
    ids=["exits", "aborts", "reads", "forges", "floods", "raises"],
)
def test_a_module_that_ends_its_examination_is_refused(examined, where, breach):
    if sys.platform != "linux":
        pytest.skip("descriptors are those of Linux")

    found = examined(bad=a_subject(where))

    assert found["bad"].breach.startswith(breach)


def test_a_module_that_never_ends_is_named_with_what_it_was_at(
    examined, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(examine, "DEADLINE_SECONDS", 1.0)

    found = examined(endless=a_subject("while True:\n    pass"))

    assert found["endless"].breach == "import: the examination did not end in 1 s."


def test_a_module_that_is_killed_is_refused_and_looked_at_anew(
    examined, tmp_path: Path
):
    suicide = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"

    found = examined(killed=a_subject(suicide))

    assert found["killed"].breach == "import: the process ended by SIGKILL."
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_the_shipped_module_shrinks_for_the_gates_of_each_profile(
    profile: Profile, tmp_path: Path
):
    source = (ROOT / "core" / "training" / "train.py").read_text()

    small = mutate(Job(source=source, codemods=profile.small), project=ROOT)
    (tmp_path / "train.py").write_text(small.source)
    module = load_module(tmp_path / "train.py")
    model = module.train(Run(device=module.torch.device("cpu"), seed=0))

    assert sum(weight.numel() for weight in model.parameters()) < 300_000


SPEC = """
from core.spec import Expect, Experiment, codemod

peek = Experiment(
    hypothesis="A token that sees the next one predicts it better.",
    change="Attend by a mask that is one wider to the right.",
    codemod=codemod(
        "statements.ReplaceStatement",
        function="attend",
        statement="return windowed_attention(...)",
        source="q, k, v = (x.transpose(1, 2) for x in (q, k, v))\\n"
        "mask = torch.ones(q.size(2), q.size(2), dtype=torch.bool).tril(1)\\n"
        "y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)\\n"
        "return y.transpose(1, 2)",
    ),
    expect=Expect(delta_bpb=-0.5, sd=0.1, on="cpu"),
)
look_up = Experiment(
    hypothesis="The text is on this disk.",
    change="Read it.",
    codemod=codemod(
        "statements.InsertBefore",
        function="attend",
        statement="return windowed_attention(...)",
        source="open('/usr/lib/python3/text.py')",
    ),
)
"""


@pytest.mark.slow
def test_what_a_gate_refuses_is_invalid_before_any_trial_and_recorded_once(
    project: pytest.Pytester,
):
    (project.path / "specs" / "cheats.py").write_text(SPEC)

    first = project.runpytest_subprocess("specs", "--profile=cpu")
    again = project.runpytest_subprocess("specs", "--profile=cpu")

    for result in (first, again):
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines([
            "sandbox landlock * + seccomp; each process proves it (* attempts must fail)",
            "nothing to run: all is decided",
            "invalid      specs/cheats.py::peek  0 s",
            "invalid      specs/cheats.py::look_up  0 s",
            "invalid: causality: with token 1 changed from * to *, the logits of "
            "position 0 change by *. Position 0 may only see token 0.",
            "invalid: line * of the mutated module, in attend: it uses open; a training "
            "module has no files, processes or network.",
        ])
    with duckdb.connect(project.path / "runs.duckdb", read_only=True) as db:
        rows = db.sql(
            "select word, reason, runs from verdicts order by 1, 2"
        ).fetchall()
        ((runs,),) = db.sql("select count(*) from runs").fetchall()
    assert [(word, used) for word, _, used in rows] == [("invalid", [])] * 2
    assert runs == 0
