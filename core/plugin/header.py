"""What a session says before its first trial: conditions, and how long it will take."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from core.device import Device
from core.evidence import Known
from core.noise import believed
from core.pipeline import Lab
from core.plan import CANDIDATES_A_BASE, Need
from core.plugin.options import Request
from core.plugin.scheduler import Undecided
from core.verdict import Noise

# Text that is read as often is worth about as much as new text:
# https://arxiv.org/abs/2305.16264
MOST_EPOCHS = 4


def write_header(
    terminal: Any,
    request: Request,
    lab: Lab,
    planned: list[Undecided],
    *,
    refused: int,
    sandbox: str,
    notes: Sequence[str],
    swept: int,
    trial_seconds: float,
    written: int,
) -> None:
    """Say under which conditions the session measures, and how long it will take.

    Args:
        terminal: pytest's terminal reporter.
        request: What the session was asked to do.
        lab: What its trials share.
        planned: What is to run.
        refused: How many could not show what they predict.
        sandbox: How edited code is confined.
        notes: What the reader should know of the gates.
        swept: Unfinished trials of a session that was killed.
        trial_seconds: How long a trial takes.
        written: Codemods that the agent is about to write.
    """
    profile, noise = request.profile, lab.known.noise()
    trials = _count_trials(planned, lab.known, request.devices)
    seconds = trials * trial_seconds / len(request.devices)
    runs = sum(o.mutant == lab.base.digest for o in lab.known.outcomes)
    write = terminal.write_line
    seeds = request.base_seeds or request.seeds or profile.looks
    terminal.ensure_newline()
    write(
        f"profile {profile.name} ({request.reason}): {profile.budget_seconds:g} s"
        f"{' of CPU time' if profile.clock == 'cpu' else ''} a trial, "
        f"{'the base with' if request.base_seeds else 'at most'} {seeds} "
        f"seed{'s' * (seeds > 1)}"
    )
    write(
        f"device  {len(request.devices)} × {request.devices[0].name}, attention by "
        f"{lab.context.attention}"
    )
    write(
        f"context {lab.context.digest}, data {lab.data.fingerprint}, base "
        f"{lab.base.digest[:12]} (run {runs} times)"
    )
    write(f"noise   {of_seeds(noise)}")
    if noise.df == lab.known.prior.df:  # no run has said anything yet
        write(f"        a prior: {believed(lab.context).conditions} (docs/noise.md)")
    write(f"sandbox {sandbox}", red=not request.confined)
    expected = by_heart(_epochs(lab), lab.training_tokens, is_estimate=True)
    for note in (*notes, *(expected if trials else ())):
        write(note, yellow=True)
    if swept:
        write(
            f"{swept} unfinished trial{'s' * (swept > 1)} of a session "
            "that was killed: swept, and run again where needed"
        )
    if trials:
        write(f"at most {trials} trial{'s' * (trials > 1)}, about {_duration(seconds)}")
    elif request.base_seeds:
        write(f"nothing to run: the base has run with {seeds} seeds")
    elif refused:
        write(f"nothing to run: {refused} skipped for want of power, as said below")
    elif not written:
        write("nothing to run: all is decided")


def of_seeds(noise: Noise) -> str:
    """Return what to say of the noise of the seed."""
    df = f"{noise.df:.0f}"
    degrees = f"{df} degree{'s' * (df != '1')}"
    return f"seed sd {noise.sd:.4f} bpb with {degrees} of freedom"


def by_heart(epochs: float, tokens: int, *, is_estimate: bool = False) -> list[str]:
    """Return what to say of trials that read the *tokens* of a corpus *epochs* times."""
    if epochs <= MOST_EPOCHS:
        return []
    how = "is about to read" if is_estimate else "read"
    return [
        f"corpus  a trial {how} its {tokens:,} tokens {epochs:,.1f} times",
        f"        beyond {MOST_EPOCHS} times a model learns text by heart, and that is",
        "        what is ranked (arXiv 2305.16264): give it at least",
        f"        {_rounded_up(epochs * tokens / MOST_EPOCHS):,} tokens, or a shorter"
        " --budget",
    ]


def _rounded_up(tokens: float) -> int:
    """Return *tokens*, in two digits and zeros."""
    unit = 10 ** max(0, len(str(int(tokens))) - 2)
    return math.ceil(tokens / unit) * unit


def _epochs(lab: Lab) -> float:
    """Return how often a trial will read the corpus, by what earlier ones did."""
    finished = (o for o in lab.known.outcomes if o.val_bpb is not None)
    known = [o.epochs for o in finished if o.epochs is not None]
    if known:
        return statistics.median(known)
    profile = lab.profile
    return profile.budget_seconds * profile.tokens_per_second / lab.training_tokens


def _count_trials(
    planned: list[Undecided], known: Known, devices: Sequence[Device]
) -> int:
    """Return how many trials are missing if every plan goes to its last look.

    At most: fewer where candidates of one seed share a device, and so the base's run.
    """
    needs = {
        Need(mutant=undecided.plan.mutant, seed=undecided.plan.seed(look))
        for undecided in planned
        for look in range(1, undecided.plan.allowed + 1)
    }
    missing = [n for n in needs if known.paired(n.mutant, n.seed) is None]
    here = {device.id for device in devices}
    candidates = sum(
        here.isdisjoint(o.device for o in known.finished(n.mutant, n.seed))
        for n in missing
        if n.mutant != known.base
    )
    bases = sum(
        min(wanted, len(here - {o.device for o in known.finished(known.base, seed)}))
        for seed, wanted in Counter(need.seed for need in missing).items()
    )
    return candidates + bases + candidates // CANDIDATES_A_BASE


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
