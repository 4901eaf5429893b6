"""The scheduler's own way of failing: loudly, once, and with nothing left running."""

from pathlib import Path

import pytest

from core.device import cpu
from core.evidence import Claim, Known
from core.gates import Work
from core.mutate import unchanged
from core.pipeline import Lab
from core.plan import Plan
from core.plugin.scheduler import Scheduler, Undecided
from core.profile import CPU
from core.spec import Case
from core.verdict import Noise


class BrokenLab(Lab):
    """A lab with a mistake of ours in it."""

    def start(self, *arguments, **named):
        return None

    def run(self, started):
        raise RuntimeError("our own mistake")


def test_a_mistake_of_ours_in_a_devices_thread_ends_the_session():
    base = unchanged("A = 1\n")
    lab = BrokenLab(
        project=Path(),
        library=Path(),
        cache=Path(),
        profile=CPU,
        base=base,
        data=None,
        context=None,
        known=Known(base=base.digest, prior=Noise(sd=1.0, df=1.0)),
        verdicts=[],
    )
    case = Case(file="specs/a.py", line=1, name="a", hypothesis="h", change="c")
    work = Work(case=case, mutant=unchanged("A = 2\n"), configuration={})
    plan = Plan(
        mutant=work.mutant.digest, base=base.digest, claim=Claim(), looks=1, allowed=1
    )
    scheduler = Scheduler(
        lab=lab,
        devices=[cpu()],
        undecided=[Undecided(key="a", work=work, plan=plan)],
        watch=lambda device, label, progress: None,
    )

    with pytest.raises(RuntimeError, match="our own mistake"):
        scheduler.next_decided()
    scheduler.stop()

    assert [slot.running for slot in scheduler.slots] == [None]
