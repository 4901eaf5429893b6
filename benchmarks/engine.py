"""Measure the engine as a user meets it: whole sessions, then the reference trainer.

    python benchmarks/engine.py --data DIR [--budget 60] [--reference CHECKOUT]

Runs the base, an edit of a hyper-parameter and an edit of the architecture (full
attention) in a session of its own, confined, one seed each; then karpathy/autoresearch's
train.py from CHECKOUT on the same GPU, its attention replaced by ours.  Prints one table,
and with --prepared what judge.py says.  Where the extra `fast` is not installed, both attend
without it: run it in either environment.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import attrs
import duckdb
from reference import write_reference

from core.pipeline import DATABASE

ROOT = Path(__file__).resolve().parents[1]
TOKENS_A_STEP = 2**19
ROOFLINE = 2.68e6  # tokens a second of an H200; docs/performance.md
SPEC = """
from core.spec import Experiment, codemod

constant = Experiment(
    hypothesis="A hyper-parameter changes no graph.",
    change="Multiply the rotary base by 5.",
    codemod=codemod("constants.ScaleConstant", name="ROPE_BASE", factor=5),
)
full = Experiment(
    hypothesis="Another pattern of windows is another graph.",
    change="Let every block see all tokens before.",
    codemod=codemod("constants.SetConstant", name="WINDOW_PATTERN", value="L"),
)
"""
SESSION = """
select coalesce(e.name, 'base'), r.train_tokens / r.train_seconds,
    r.p99_step_seconds / r.median_step_seconds, r.gap_seconds, r.start_seconds,
    r.score_seconds, r.steps, r.val_bpb, c.attention, c.device
from runs r join contexts c using (context) left join experiments e using (experiment)
where r.status = 'finished' order by r.started_at
"""
STEP = re.compile(r"step (\d+) .*?dt: (\d+)ms")
BPB = re.compile(r"val_bpb:\s+([\d.]+)")
WARM_STEPS = 11  # that the reference does not count as time


@attrs.frozen(kw_only=True)
class Measured:
    """What one run showed; None where it does not say."""

    tokens_per_second: float
    p99_of_median: float
    steps: int
    val_bpb: float | None
    gap_seconds: float | None = None
    start_seconds: float | None = None
    score_seconds: float | None = None


def session(data: Path, budget: float, folder: Path) -> tuple[dict[str, Measured], str]:
    """Run a session; return its runs by name, and what they ran on and attended with."""
    (folder / "specs").mkdir(parents=True)
    (folder / "specs" / "engine.py").write_text(SPEC)
    (folder / "conftest.py").write_text('pytest_plugins = ("core.plugin",)\n')
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "specs", "-p", "no:cacheprovider"),
            *(f"--rootdir={folder}", f"--data={data.absolute()}", "--seeds=1"),
            *("--gpus=1", f"--budget={budget:g}"),
        ],
        cwd=folder,
        # A cache of its own: nothing has been compiled.
        env={
            **os.environ,
            "PYTHONPATH": _path(),
            "XDG_CACHE_HOME": str(folder / "cache"),
        },
        stdout=sys.stderr,
        check=False,
    )
    if done.returncode:
        raise SystemExit("the session failed: see above")
    with duckdb.connect(folder / DATABASE, read_only=True) as db:
        rows = db.sql(SESSION).fetchall()
    runs = {
        name: Measured(
            tokens_per_second=speed,
            p99_of_median=jitter,
            gap_seconds=gap,
            start_seconds=start,
            score_seconds=score,
            steps=steps,
            val_bpb=bpb,
        )
        for name, speed, jitter, gap, start, score, steps, bpb, _, _ in rows
    }
    return runs, f"{rows[0][-1]}, {rows[0][-2]}"


def reference(
    checkout: Path, data: Path, budget: float, pattern: str, folder: Path
) -> Measured:
    """Run the reference trainer with a pattern of windows."""
    folder.mkdir()
    write_reference(checkout, folder, data=data, budget_seconds=budget, pattern=pattern)
    said = ""
    for program in (["-c", "import prepare; prepare.train_tokenizer()"], ["train.py"]):
        done = subprocess.run(
            [sys.executable, *program],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": _path(),
                "TORCHINDUCTOR_USE_FAST_MATH": "1",  # as ours has it
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"the reference failed:\n{done.stdout}\n{done.stderr}")
        said = done.stdout
    return told(said)


def told(said: str) -> Measured:
    """Return what the reference prints of its run: a line for each step, and a summary."""
    timed = [int(ms) for step, ms in STEP.findall(said) if int(step) >= WARM_STEPS]
    bpb = BPB.search(said)
    return Measured(
        tokens_per_second=TOKENS_A_STEP * len(timed) / (sum(timed) / 1000),
        p99_of_median=statistics.quantiles(timed, n=100)[98] / statistics.median(timed),
        steps=len(STEP.findall(said)),
        val_bpb=float(bpb[1]) if bpb else None,
    )


def judged(prepared: Path) -> str:
    """Return what the judge's own benchmark says last: probes included."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/judge.py", f"--prepared={prepared}"],
        env={**os.environ, "PYTHONPATH": _path()},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if not done.returncode else done.stderr.strip()


def _path() -> str:
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder of shards")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds a run")
    parser.add_argument("--reference", type=Path, help="of karpathy/autoresearch")
    parser.add_argument("--prepared", type=Path, help="for the judge: see judge.py")
    asked = parser.parse_args()
    theirs: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory(prefix="deltaspec-") as name:
        ours, where = session(asked.data, asked.budget, Path(name, "session"))
        for run, pattern in (("base", "SSSL"), ("full", "L")):
            if asked.reference is not None:
                theirs[run] = reference(
                    asked.reference, asked.data, asked.budget, pattern, Path(name, run)
                )
    print(f"{where}, {asked.budget:g} s a run\n")
    print(f"{'':<44}{'reference':>12}{'ours':>12}{'ratio':>8}")
    for run, kind in (("base", "SSSL"), ("full", "full attention")):
        _row(f"tokens a second, {kind}", theirs, ours, run, "tokens_per_second", ",.0f")
        _row("  steps", theirs, ours, run, "steps", "d")
        _row("  p99 / median step", theirs, ours, run, "p99_of_median", ".3f")
        _row(
            "  val_bpb, each by its own tokenizer", theirs, ours, run, "val_bpb", ".4f"
        )
    _row("of the roofline", {}, ours, "base", "tokens_per_second", ".0%", ROOFLINE)
    print()
    for run, what in (
        ("constant", "seconds from one clock to the next, warm"),
        ("full", "  after an edit of the architecture"),
    ):
        _row(what, {}, ours, run, "gap_seconds", ".1f")
    _row("seconds to the first clock, nothing compiled", {}, ours, "base",
         "start_seconds", ".1f")  # fmt: skip
    _row("seconds of scoring", {}, ours, "base", "score_seconds", ".1f")
    if asked.prepared is not None:
        print(f"\njudge.py\n{judged(asked.prepared)}")


def _row(
    text: str,
    theirs: dict[str, Measured],
    ours: dict[str, Measured],
    run: str,
    field: str,
    form: str,
    unit: float | None = None,
) -> None:
    found = [getattr(runs.get(run), field, None) for runs in (theirs, ours)]
    if unit is not None:
        found = [value and value / unit for value in found]
    shown = [f"{value:{form}}" if value is not None else "–" for value in found]
    both = None not in found and field == "tokens_per_second"
    ratio = f"{found[1] / found[0]:.2f}" if both else ""
    print(f"{text:<44}{shown[0]:>12}{shown[1]:>12}{ratio:>8}")


if __name__ == "__main__":
    main()
