"""What the benchmarks do before and after a GPU is at work."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from codemods.constants import SetConstant
from core.errors import DeltaspecError
from core.profile import CPU
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import engine
import reference

sys.path.pop(0)

# The statements of karpathy/autoresearch's trainer that are adapted, in words of ours.
PREPARE = """
DATA_DIR = "elsewhere"
TOKENIZER_DIR = "elsewhere"
VAL_FILENAME = "another.parquet"
TIME_BUDGET = 300
EVAL_TOKENS = 40 * 524288
"""
TRAIN = """
from kernels import get_kernel

repo = "a/kernel"
fa3 = get_kernel(repo)
WINDOW_PATTERN = "SSSL"


class CausalSelfAttention:
    def forward(self, q, k, v, window_size):
        y = fa3.flash_attn_func(q, k, v, causal=True, window_size=window_size)
        return y
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "prepare.py").write_text(PREPARE)
    (folder / "train.py").write_text(TRAIN)
    return folder


@pytest.mark.parametrize("pattern", ["SSSL", "L"])
def test_the_reference_attends_as_we_do_for_the_same_budget_on_the_same_data(
    checkout: Path, tmp_path: Path, pattern: str
):
    data, folder = tmp_path / "data", tmp_path / "adapted"
    data.mkdir()
    (data / "shard_val.parquet").write_text("rows")
    folder.mkdir()

    reference.write_reference(
        checkout, folder, data=data, budget_seconds=60.0, pattern=pattern
    )

    assert (folder / "data" / "shard_val.parquet").read_text() == "rows"
    assert (folder / "prepare.py").read_text() == (
        f'\nDATA_DIR = "{folder}/data"\nTOKENIZER_DIR = "{folder}/tokenizer"\n'
        'VAL_FILENAME = "shard_val.parquet"\nTIME_BUDGET = 60.0\n'
        f"EVAL_TOKENS = {3 * 2**19}\n"
    )
    trains = (folder / "train.py").read_text()
    assert "from core.training.kernels import windowed_attention\n" in trains
    assert "        y = windowed_attention(q, k, v, window_size[0])\n" in trains
    assert f'WINDOW_PATTERN = "{pattern}"\n' in trains
    assert "fa3" not in trains
    assert "get_kernel" not in trains


def test_a_reference_that_attends_in_other_words_is_not_measured(
    checkout: Path, tmp_path: Path
):
    (checkout / "train.py").write_text(TRAIN.replace("flash_attn_func", "attend"))
    data, folder = tmp_path / "data", tmp_path / "adapted"
    data.mkdir()
    folder.mkdir()

    with pytest.raises(DeltaspecError, match=r"fa3\.flash_attn_func"):
        reference.write_reference(
            checkout, folder, data=data, budget_seconds=60.0, pattern="SSSL"
        )


def test_the_reference_is_timed_without_the_steps_that_it_does_not_count():
    steps = [
        f"step {step:05d} (1.0%) | loss: 6.26 | dt: {400 if step < 11 else 200}ms | "
        "tok/sec: 4,849 | remaining: 0s"
        for step in range(31)
    ]
    said = "\n".join([*steps, "---", "val_bpb:          1.319800", "num_steps: 31"])

    told = engine.told(said)

    assert told.tokens_per_second == pytest.approx(2**19 / 0.2)
    assert (told.steps, told.val_bpb, told.p99_of_median) == (31, 1.3198, 1.0)


@pytest.mark.slow
def test_two_trees_take_turns_and_are_compared(tmp_path: Path):
    small = tmp_path / "train.py"
    small.write_text(
        reference.adapted(
            (ROOT / "core/training/train.py").read_text(),
            *((SetConstant, dict(call.options)) for call in CPU.overrides),
        )
    )

    other = tmp_path / "other"
    shutil.copytree(ROOT / "core", other / "core")
    keys = other / "core/training/run.py"
    keys.write_text(keys.read_text().replace("keyed(self._seed, name)", "0"))

    done = subprocess.run(
        [
            *(sys.executable, ROOT / "benchmarks/step.py", f"--module={small}"),
            *("--device=cpu", "--rounds=2", "--steps=4", "--kernels=1000"),
            f"--against={other}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )

    rows = {line[:36].strip(): line[36:].split() for line in done.stdout.splitlines()}
    mine, others, _ = rows["nats at the last step"]
    assert mine != others  # which draws other initial values
    assert float(rows["ms a step"][0]) > 0
    assert "model and first step again" in rows
    assert re.findall(r"^round (\d), (\w+): [\d.]+ ms a step", done.stderr, re.M) == [
        (number, name) for number in "12" for name in ("this", "other")
    ]
    assert "aten::mm" in done.stdout
    assert "aten::uniform_" not in done.stdout  # which is the model's start


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--rounds=1", "--rounds 1: expected 2 or more, the first is cold"),
        ("--steps=3", "--steps 3: expected 4 or more, of which the first 2 count"),
        (
            "--device=cuda",
            "no CUDA GPU is seen here: name another device, --device cpu",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(option: str, said: str):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/step.py", option],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
