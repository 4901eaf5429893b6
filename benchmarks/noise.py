"""Measure what moves val_bpb beside the change: seeds, repetitions, devices, steps.

    python benchmarks/noise.py [--data DIR] [--budget S] [--seeds 8] [--gpus N]
        [--longer 1.25] [--only NAME...] [--keep FOLDER] [--write FILE]

A session for each seed, in a project of its own, so that what is compared ran side by
side: base and mutants, then base and placebo with a longer budget.  With --only base
nothing else runs.  What was interrupted goes on with the same --keep.
Prints what docs/noise.md shows; --write makes a file for core/noise/measured/, which the
verdicts read.
"""

import argparse
import json
import math
import operator
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb

from core.context import NUMERIC_FILES, files_digest
from core.device import gpus
from core.pipeline import DATABASE
from core.profile import PROFILES

ROOT = Path(__file__).resolve().parents[1]
BASE, PLACEBO = "base", "placebo"
# The context of the latest run of this version, with whatever budget.
LATEST = f"""
select c.* exclude (context, budget_seconds)
from runs r join (select distinct on (context) * from contexts) c using (context)
where c.numerics = '{files_digest(NUMERIC_FILES)}'
order by r.started_at desc limit 1
"""
RUNS = f"""
select coalesce(e.name, 'base') as mutant, c.budget_seconds, r.seed, r.device,
    round(r.val_bpb, 6) as val_bpb, r.steps,
    round(r.train_tokens / r.train_seconds) as tokens_per_second,
    round(r.start_seconds, 2) as start_seconds
from runs r
join (
    select distinct on (context) *
    from contexts join ({LATEST}) using (
        profile, device, torch, attention, data, base, numerics, scored_tokens, shared,
        confined
    )
) c using (context)
left join (select distinct on (experiment) * from experiments) e using (experiment)
where r.status = 'finished' and c.budget_seconds in (?, ?)
order by r.started_at
"""
# The placebo computes what the base computes, in graphs that nobody has compiled: on a
# GPU each of its runs is the base's again, from cold caches.
SPEC = """
from core.spec import Experiment, codemod

placebo = Experiment(
    hypothesis="Rows of a table that nobody reads change nothing.",
    change="Make the rotary tables ten times as long.",
    codemod=codemod(
        "statements.ReplaceStatement",
        function="rotary_tables",
        statement="position = torch.arange(...)",
        source="position = torch.arange(10 * SEQUENCE_LEN, dtype=torch.float32)",
    ),
)

learning_rate = Experiment(
    hypothesis="A learning rate changes every step, and nothing else.",
    change="Raise the learning rate of the embeddings by a third.",
    codemod=codemod("constants.ScaleConstant", name="EMBEDDING_LR", factor="4/3"),
)

window = Experiment(
    hypothesis="A window changes what a token sees, and how long a step takes.",
    change="Use a quarter of the present window in the S layers.",
    codemod=codemod("constants.ScaleConstant", name="SHORT_WINDOW", factor="1/4"),
)

parameter = Experiment(
    hypothesis="A parameter has initial values of its own; all others keep theirs.",
    change="Scale each channel of the last norm by a learned gain.",
    codemod=(
        codemod(
            "parameters.AddParameter",
            owner="GPT",
            name="gain",
            value="parameter(MODEL_DIM, init=constant(1.0))",
            like="x0_scalars",
            lr="0.01 * X0_SCALAR_LR",
        ),
        codemod(
            "statements.ReplaceStatement",
            function="GPT.forward",
            statement="logits = ...",
            source="logits = self.lm_head(self.gain.to(x.dtype) * norm(x)).float()",
        ),
    ),
)

other_draw = Experiment(
    hypothesis="Other initial values move val_bpb as a seed does; the rows are the same.",
    change="Draw the initial values from generators of other names.",
    codemod=codemod(
        "statements.ReplaceStatement",
        function="initialize",
        statement="weight.init(...)",
        source='weight.init(weight.data, run.generator(f"other {name}"))',
    ),
)

no_attention = Experiment(
    hypothesis="What a large change shares with the base is least.",
    change="In every block let a token attend to nothing but itself.",
    codemod=codemod(
        "statements.ReplaceStatement",
        function="CausalSelfAttention.__init__",
        statement="self.window = layer_window(layer)",
        source="self.window = 0",
    ),
)
"""

Run = dict[str, Any]  # a row of RUNS


def session(folder: Path, asked: argparse.Namespace, *options: str) -> None:
    """Run a session; what an earlier one in the same folder measured is there."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "specs", "-p", "no:cacheprovider"),
            f"--rootdir={folder}",
            *([f"--data={_absolute(asked.data)}"] if asked.data else []),
            *([f"--gpus={asked.gpus}"] if asked.gpus else []),
            *options,
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
            ),
        },
        stdout=sys.stderr,
        check=False,
    )
    if done.returncode not in (0, 1):  # 1: a mutant crashed, and the others say enough
        raise SystemExit("the session failed: see above; with --keep it goes on")


def _absolute(data: str) -> str:
    """Return the path of a folder from everywhere, and a name as it is."""
    return str(Path(data).absolute()) if Path(data).exists() else data


def lengthened(seconds: float, times: float) -> float:
    """Return a longer budget, in no more digits than an option has."""
    return float(f"{times * seconds:g}")


def read(
    folder: Path, budget_seconds: float | None, longer: float
) -> tuple[dict[str, Any], list[Run]]:
    """Return the context of the shorter budget, and all runs that finished in it.

    Args:
        folder: Of the project.
        budget_seconds: The shorter one; None for the profile's own.
        longer: How many times as long the longer one is.
    """
    with duckdb.connect(folder / DATABASE, read_only=True) as db:
        [latest] = db.sql(LATEST).arrow().read_all().to_pylist()
        short = budget_seconds or PROFILES[latest["profile"]].budget_seconds
        found = db.sql(RUNS, params=[short, lengthened(short, longer)])
        runs = found.arrow().read_all().to_pylist()
    if not any(r["mutant"] == BASE and r["budget_seconds"] == short for r in runs):
        raise SystemExit(f"the base has no run of {short:g} s: see {folder / DATABASE}")
    devices = sorted({run["device"] for run in runs})
    context = {"profile": latest.pop("profile"), "budget_seconds": short, **latest}
    return context, [{**run, "device": devices.index(run["device"])} for run in runs]


def spread(blocks: Iterable[Sequence[float]]) -> dict[str, float] | None:
    """Return the sd within blocks and its degrees of freedom, None if there are none."""
    within = [block for block in blocks if len(block) > 1]
    df = sum(len(block) - 1 for block in within)
    if not df:
        return None
    squares = math.fsum(
        statistics.variance(block) * (len(block) - 1) for block in within
    )
    return {"sd": math.sqrt(squares / df), "df": df}


def summary(context: dict[str, Any], runs: list[Run]) -> dict[str, Any]:
    """Return what the runs say of the noise.

    The seed's sd is that of the base on the device that ran it most.  A pair is a mutant
    and the base with the same seed on the same device.
    """
    short = [run for run in runs if run["budget_seconds"] == context["budget_seconds"]]
    base = [run for run in short if run["mutant"] == BASE]
    by_device = _grouped(base, lambda run: run["device"])
    most = max(by_device.values(), key=len)
    placebo = [run for run in short if run["mutant"] == PLACEBO]
    steps = _of_steps(runs, context["budget_seconds"])
    seed = spread([[run["val_bpb"] for run in most]])
    if seed and steps:
        per_percent = steps["bpb_per_percent"]
        equal = spread([[_at_equal_steps(run, per_percent) for run in most]])
        seed["sd_at_equal_steps"] = equal["sd"]
    return {
        "seed": seed,
        "repetition": spread(
            [run["val_bpb"] for run in again]
            for again in _grouped(
                base + placebo, lambda run: (run["seed"], run["device"])
            ).values()
        ),
        "device": spread(
            [run["val_bpb"] for run in {run["device"]: run for run in same}.values()]
            for same in _grouped(base, lambda run: run["seed"]).values()
        ),
        "steps": steps,
        "mutants": [
            _compared(name, mutants, base, steps)
            for name, mutants in _grouped(short, lambda run: run["mutant"]).items()
            if name != BASE
        ],
    }


def _grouped(runs: list[Run], key: Callable[[Run], Any]) -> dict[Any, list[Run]]:
    groups = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return groups


def _of_steps(runs: list[Run], budget_seconds: float) -> dict[str, float] | None:
    """Return the effect of 1 % more steps: the same mutant, seed and device, for longer."""
    effects = defaultdict(list)  # by seed: base and placebo repeat each other
    for (_, seed, _), same in _grouped(
        [run for run in runs if run["mutant"] in (BASE, PLACEBO)],
        lambda run: (run["mutant"], run["seed"], run["device"]),
    ).items():
        short = next((r for r in same if r["budget_seconds"] == budget_seconds), None)
        for run in same:
            if short is not None and run["budget_seconds"] > budget_seconds:
                more = math.log(run["steps"] / short["steps"]) / math.log(1.01)
                effects[seed].append((run["val_bpb"] - short["val_bpb"]) / more)
    if len(effects) < 2:
        return None
    means = [statistics.mean(of_seed) for of_seed in effects.values()]
    return {
        "bpb_per_percent": statistics.mean(means),
        "standard_error": statistics.stdev(means) / math.sqrt(len(means)),
        "seeds": len(means),
    }


def _at_equal_steps(run: Run, per_percent: float) -> float:
    """Return val_bpb less what the steps say, which no mutant is compared by.

    It shows how much of the noise is the machine's speed.
    """
    return run["val_bpb"] - per_percent * math.log(run["steps"]) / math.log(1.01)


def _compared(
    name: str, mutants: list[Run], base: list[Run], steps: dict[str, float] | None
) -> dict[str, Any]:
    """Compare the differences within pairs with those of runs of different seeds."""
    there = {(run["seed"], run["device"]): run for run in base}
    pairs = {
        run["seed"]: (run, there[run["seed"], run["device"]])
        for run in mutants
        if (run["seed"], run["device"]) in there
    }.values()
    found: dict[str, Any] = {"name": name, "pairs": len(pairs)}
    if pairs:
        found["delta_bpb"] = statistics.mean(
            x["val_bpb"] - b["val_bpb"] for x, b in pairs
        )
    if len(pairs) < 3:
        return found
    found |= _shared((x["val_bpb"], b["val_bpb"]) for x, b in pairs)
    if steps:
        per_percent = steps["bpb_per_percent"]
        found["at_equal_steps"] = _shared(
            (_at_equal_steps(x, per_percent), _at_equal_steps(b, per_percent))
            for x, b in pairs
        )
    return found


def _shared(pairs: Iterable[tuple[float, float]]) -> dict[str, float]:
    """Return how far differences vary, if the seed is the same and if it is not."""
    x, b = zip(*pairs, strict=True)
    return {
        "paired_sd": statistics.stdev(map(operator.sub, x, b)),
        "unpaired_sd": math.sqrt(statistics.variance(x) + statistics.variance(b)),
        "correlation": statistics.correlation(x, b),
    }


def show(context: dict[str, Any], runs: list[Run], found: dict[str, Any]) -> None:
    """Print what was found."""
    print(
        f"{context['device']}, torch {context['torch']}, {context['budget_seconds']:g} s "
        f"a run, {len(runs)} runs\n"
    )
    for name, text in (
        ("seed", "another seed"),
        ("repetition", "the same seed again, compiled anew"),
        ("device", "the same seed on another device"),
    ):
        got = found[name]
        value = f"sd {got['sd']:.5f}  df {got['df']}" if got else "–"
        if got and "sd_at_equal_steps" in got:
            value += f"  at equal steps {got['sd_at_equal_steps']:.5f}"
        print(f"{text:<36}{value}")
    steps = found["steps"]
    value = "–"
    if steps:
        value = f"{steps['bpb_per_percent']:+.5f} ± {steps['standard_error']:.5f} bpb"
    print(f"{'1 % more steps':<36}{value}")
    if not found["mutants"]:
        return
    print()
    columns = f"{'paired':>9}{'unpaired':>10}{'corr':>6}"
    print(f"{'':<28}{'sd of differences':>25}{'the same at equal steps':>25}")
    print(f"{'':<14}{'pairs':>5}{'delta':>9}{columns}{columns}")
    for one in found["mutants"]:
        row = f"{one['name']:<14}{one['pairs']:>5}"
        if "delta_bpb" in one:
            row += f"{one['delta_bpb']:>+9.4f}"
        for shared in (one, one.get("at_equal_steps", {})):
            if "paired_sd" in shared:
                row += f"{shared['paired_sd']:>9.5f}{shared['unpaired_sd']:>10.5f}"
                row += f"{shared['correlation']:>6.2f}"
        print(row)


def written(measured: dict[str, Any], runs: list[Run]) -> str:
    """Return a measurement as JSON, a line for each run."""
    head = json.dumps(measured, indent=1, ensure_ascii=False).removesuffix("\n}")
    lines = ",\n  ".join(map(json.dumps, runs))
    return f'{head},\n "runs": [\n  {lines}\n ]\n}}\n'


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="as a session takes it: a folder, or climbmix:8")
    parser.add_argument("--budget", type=float, help="seconds a run")
    parser.add_argument("--seeds", type=int, default=8, help="of base and mutants; 8")
    parser.add_argument(
        "--gpus", type=int, help="how many; all, and one for --only base"
    )
    parser.add_argument(
        "--longer",
        type=float,
        default=1.25,
        help="times the budget; 1.25, and 1: not at all",
    )
    parser.add_argument("--only", nargs="+", default=[], help="mutants, or base")
    parser.add_argument("--keep", type=Path, help="where the project is, or shall be")
    parser.add_argument("--write", type=Path, help="the measurement, as JSON")
    asked = parser.parse_args()
    if asked.seeds < 2:
        parser.error(
            f"--seeds {asked.seeds}: expected 2 or more, since one has no spread"
        )
    with tempfile.TemporaryDirectory(prefix="deltaspec-") as temporary:
        folder = (asked.keep or Path(temporary)).absolute()
        (folder / "specs").mkdir(parents=True, exist_ok=True)
        (folder / "specs" / "noise.py").write_text(SPEC)
        (folder / "conftest.py").write_text('pytest_plugins = ("core.plugin",)\n')
        budget = [f"--budget={asked.budget:g}"] if asked.budget else []
        chosen = ["-k", " or ".join(asked.only)] if asked.only else []
        is_alone = asked.only == [BASE]
        if is_alone:
            if asked.gpus is None and gpus():
                asked.gpus = 1  # one seed is compared with another on one GPU
            session(folder, asked, f"--base-seeds={asked.seeds}", *budget)
        for seeds in () if is_alone else range(1, asked.seeds + 1):
            session(folder, asked, f"--seeds={seeds}", *budget, *chosen)
        context, runs = read(folder, asked.budget, asked.longer)
        if asked.longer > 1:
            longer = lengthened(context["budget_seconds"], asked.longer)
            seeds = max(2, asked.seeds // 2)
            options = (
                (f"--base-seeds={seeds}",)
                if is_alone
                else (f"--seeds={seeds}", "-k", PLACEBO)
            )
            session(folder, asked, *options, f"--budget={longer:g}")
            context, runs = read(folder, asked.budget, asked.longer)
    found = summary(context, runs)
    if found["seed"] is None:
        raise SystemExit("the base ran with one seed a device: expected two or more")
    show(context, runs, found)
    if asked.write:
        measured = {"source": "benchmarks/noise.py", "context": context, **found}
        asked.write.write_text(written(measured, runs))


if __name__ == "__main__":
    main()
