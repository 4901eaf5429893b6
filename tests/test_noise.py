import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from core.context import Context
from core.noise import MEASURED, MOST_DF, believed, measurements
from core.profile import PROFILES
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import noise

sys.path.pop(0)

CONTEXT = Context(
    profile="gpu",
    budget_seconds=300.0,
    device="a GPU",
    torch="3.0",
    attention="sdpa",
    data="d",
    base="b",
    numerics="n",
    scored_tokens=1,
    shared=False,
    confined=True,
)


def measured(folder: Path, name: str, *, sd: float, df: float = 7, **context) -> None:
    context = {"device": "a GPU", **context}
    written = {"source": name, "context": context, "seed": {"sd": sd, "df": df}}
    (folder / f"{name}.json").write_text(json.dumps(written))


def flat(found: Any, name: str = "") -> dict[str, Any]:
    """Return all values by their paths; sums differ in the last bit between Pythons."""
    if isinstance(found, dict | list):
        items = found.items() if isinstance(found, dict) else enumerate(found)
        parts = [flat(value, f"{name}.{key}") for key, value in items]
        return {key: value for part in parts for key, value in part.items()}
    return {name: f"{found:.9g}" if isinstance(found, float) else found}


def test_there_is_a_measurement_of_every_profile():
    assert {one.context["profile"] for one in measurements()} == set(PROFILES)


@pytest.mark.parametrize("path", sorted(MEASURED.glob("*.json")), ids=lambda p: p.stem)
def test_a_measurement_says_what_its_runs_say(path: Path):
    written = json.loads(path.read_text())
    columns = {field.name for field in attrs.fields(Context)}

    assert {"profile", "budget_seconds", "device"} <= set(written["context"]) <= columns
    if written["runs"]:
        said = {
            k: v for k, v in written.items() if k not in ("source", "context", "runs")
        }
        found = noise.summary(written["context"], written["runs"])
        assert flat(found) == flat(said)


def test_noise_is_a_power_of_the_budget_between_two_that_were_measured(tmp_path: Path):
    measured(tmp_path, "a", sd=0.02, profile="gpu", budget_seconds=50.0)
    measured(tmp_path, "b", sd=0.002, profile="gpu", budget_seconds=200.0)
    measured(tmp_path, "c", sd=0.2, profile="cpu", budget_seconds=100.0)

    found = {
        budget: believed(attrs.evolve(CONTEXT, budget_seconds=budget), tmp_path)
        for budget in (20.0, 50.0, 100.0, 200.0, 900.0)
    }

    assert {budget: belief.noise.sd for budget, belief in found.items()} == (
        pytest.approx({
            20.0: 0.02,
            50.0: 0.02,
            100.0: 0.04**0.5 / 10**1.5,
            200.0: 0.002,
            900.0: 0.002,
        })
    )
    assert found[20.0].conditions == found[50.0].conditions == "50 s on a GPU"
    assert found[100.0].conditions == "50 s on a GPU, 200 s on a GPU"


def test_of_two_measurements_of_one_budget_that_of_more_seeds_is_believed(
    tmp_path: Path,
):
    measured(tmp_path, "a", sd=0.002, df=7, profile="gpu", budget_seconds=300.0)
    measured(tmp_path, "b", sd=0.003, df=3, profile="gpu", budget_seconds=300.0)
    measured(tmp_path, "c", sd=0.001, df=7, profile="gpu", budget_seconds=300.0)

    [used] = believed(CONTEXT, tmp_path).measurements

    assert used.sd == 0.002  # of as many the larger noise


@pytest.mark.parametrize(("df", "worth"), [(7, MOST_DF), (1, 1)])
def test_a_measurement_gives_way_to_the_first_runs(
    tmp_path: Path, df: float, worth: float
):
    measured(tmp_path, "a", sd=0.003, df=df, **attrs.asdict(CONTEXT))

    assert believed(CONTEXT, tmp_path).noise.df == worth


def run(mutant, seed, val_bpb, device=0, budget_seconds=5.0, steps=100):
    return dict(
        mutant=mutant,
        seed=seed,
        val_bpb=val_bpb,
        device=device,
        budget_seconds=budget_seconds,
        steps=steps,
    )


def test_a_summary_takes_seed_repetition_device_and_steps_apart():
    found = noise.summary(
        {"budget_seconds": 5.0},
        [
            *(run("base", 0, 3.0), run("base", 1, 3.2), run("base", 2, 3.4)),
            run("base", 1, 3.6, device=1),
            *(run("placebo", 0, 3.1), run("placebo", 2, 3.3)),
            *(run("lr", 0, 2.9), run("lr", 1, 3.0), run("lr", 2, 3.1)),
            *(run("base", 0, 2.8, budget_seconds=6.0, steps=101), run("x", 7, 1.0)),
            run("placebo", 2, 3.0, budget_seconds=6.0, steps=101),
        ],
    )

    assert found["seed"] == pytest.approx({
        "sd": 0.2,
        "df": 2,
        "sd_at_equal_steps": 0.2,  # all have as many
    })
    assert found["repetition"] == pytest.approx({"sd": 0.1 / 2**0.5, "df": 2})
    assert found["device"] == pytest.approx({"sd": 0.4 / 2**0.5, "df": 1})
    assert found["steps"] == pytest.approx({
        "bpb_per_percent": -0.25,
        "standard_error": 0.05,
        "seeds": 2,
    })
    placebo, lr, alone = found["mutants"]
    assert alone == {"name": "x", "pairs": 0}
    assert (placebo["name"], placebo["pairs"], lr["name"]) == ("placebo", 2, "lr")
    assert placebo["delta_bpb"] == pytest.approx(0.0)
    assert lr["delta_bpb"] == pytest.approx(-0.2)
    assert lr["paired_sd"] == pytest.approx(0.1)
    assert lr["unpaired_sd"] == pytest.approx((0.04 + 0.01) ** 0.5)
    assert lr["correlation"] == pytest.approx(1.0)


def test_at_equal_steps_only_the_seed_is_left():
    steps = (100, 101, 104, 102)
    base = [run("base", i, 3.0 + 0.1 * i, steps=100) for i in range(4)]
    slow = [  # a constant effect, and 0.25 less for each percent of steps
        run("x", i, 3.05 + 0.1 * i - 0.25 * math.log(n / 100, 1.01), steps=n)
        for i, n in enumerate(steps)
    ]
    longer = [
        run("base", i, 3.0 + 0.1 * i - 0.25, budget_seconds=6.0, steps=101)
        for i in range(2)
    ]

    found = noise.summary({"budget_seconds": 5.0}, [*base, *slow, *longer])

    assert found["steps"]["bpb_per_percent"] == pytest.approx(-0.25)
    [mutant] = found["mutants"]
    assert mutant["paired_sd"] > 0.2
    assert mutant["at_equal_steps"]["paired_sd"] == pytest.approx(0.0, abs=1e-9)
    assert mutant["at_equal_steps"]["correlation"] == pytest.approx(1.0)


@pytest.mark.slow
def test_the_benchmark_measures_goes_on_and_writes_what_the_verdicts_can_read(
    tmp_path: Path,
):
    def measure(*options: str) -> str:
        done = subprocess.run(
            [
                *(sys.executable, "benchmarks/noise.py", "--budget=0.4", "--seeds=2"),
                *(f"--keep={tmp_path / 'project'}", *options),
                f"--write={tmp_path / 'here.json'}",
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    base = measure("--only", "base", "--longer=2")
    of_base = json.loads((tmp_path / "here.json").read_text())
    placebo = measure("--only", "placebo", "--longer=1")
    of_both = json.loads((tmp_path / "here.json").read_text())

    assert re.search(
        r"^another seed +sd 0\.\d{5}  df 1  at equal steps 0\.", base, re.M
    )
    assert re.search(r"^1 % more steps +-0\.\d{5} ± ", base, re.M)
    assert [(one["mutant"], one["seed"]) for one in of_base["runs"]] == [
        ("base", 0),
        ("base", 1),
    ] * 2
    assert of_base["mutants"] == []
    assert re.search(r"^placebo +2 ", placebo, re.M)
    assert max(map(len, placebo.splitlines())) <= 80
    # The base's runs were there.
    assert of_both["runs"][:2] == of_base["runs"][:2]
    assert [one["mutant"] for one in of_both["runs"][2:]] == ["placebo", "placebo"]
    [found] = measurements(tmp_path)
    context = Context(**found.context)
    assert context.budget_seconds == 0.4
    assert believed(context, tmp_path).noise.sd == pytest.approx(found.sd)
