"""Several devices at once: who runs what where, and what is left when it ends."""

import os
import random
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.context import current_context
from core.device import Device, cpu
from core.errors import SessionError
from core.evidence import Claim, Known, Outcome, Verdict
from core.gates import Work
from core.launch import Crash, Result, Score, Status
from core.launch.watch import Progress, Stopped
from core.mutate import Mutant, unchanged
from core.pipeline import Lab
from core.plan import CANDIDATES_A_BASE, Lost, Need, Plan
from core.plugin.scheduler import Scheduler, Slot, Undecided, base_alone
from core.process.child import Zygote
from core.profile import CPU, Profile
from core.spec import Case
from core.training.data import Prepared
from core.verdict import Noise
from tests.conftest import ROOT
from tests.test_launch import QUICK, data, module, nothing_is_left, of_trials

__all__ = ["data"]  # a fixture

BASE = Mutant(source="", diff="", changes=(), digest="base")
AHEAD = attrs.evolve(CPU, ahead=True)
NOISE = Noise(sd=0.02, df=2.0)
BETTER = Claim(delta_bpb=-0.1)
NOTHING = Claim(why_none="The spec predicts nothing.")
TRAINS = Progress(phase="train", seconds=0.0)
FAULT = "GPU-a: NVML says GPU is lost"


def a_device(name: str) -> Device:
    return attrs.evolve(cpu(), id=name)


def an_experiment(
    name: str, *, seeds: int = 2, claim: Claim = NOTHING, mutant: Mutant | None = None
) -> Undecided:
    mutant = mutant or Mutant(source="", diff="", changes=(), digest=name)
    case = Case(file="specs/a.py", line=1, name=name, hypothesis="h", change="c")
    return Undecided(
        key=name,
        work=Work(case=case, mutant=mutant, configuration={}),
        plan=Plan(
            mutant=mutant.digest, base="base", claim=claim, looks=seeds, allowed=seeds
        ),
    )


def finished(bpb: float = 1.0, **fields: Any) -> Result:
    score = Score(nats=1.0, bytes=1, tokens=1, val_bpb=bpb)
    return Result(status=Status.FINISHED, phase="done", score=score, **fields)


def failed(status: Status, **fields: Any) -> Result:
    crash = Crash.OOM if status is Status.CRASHED else None
    return Result(status=status, crash=crash, phase="train", message="m", **fields)


# --- a machine on paper: trials without processes, which end when the test says so


@attrs.define(eq=False)
class Paper:
    """A trial whose processes nobody started."""

    need: Need
    device: Device
    show: Callable[[Progress], None]
    number: int
    state: str = "up"  # trains, ended, abandoned
    stopped: bool = False

    @property
    def trial(self) -> "Paper":
        return self

    @property
    def run_id(self) -> str:
        return f"{self.number:03}"

    @property
    def text(self) -> str:
        return f"{self.device.id} {self.need.mutant} {self.need.seed}"


class PaperLab(Lab):
    """A lab without a machine; *end* says how a trial ends."""

    def __init__(self, end: Callable[[Paper], Result], profile: Profile) -> None:
        super().__init__(
            project=Path(),
            library=Path(),
            cache=Path(),
            profile=profile,
            base=BASE,
            data=None,  # type: ignore[arg-type]
            context=None,  # type: ignore[arg-type]
            known=Known(base="base", prior=NOISE),
            verdicts=[],
            zygote=None,  # type: ignore[arg-type]
        )
        self.end = end
        self.trials: list[Paper] = []
        self.kept: list[str] = []

    def start(self, need, work, device, stop_fd, show):
        assert len(self.trials) < 1000, "it never ends"
        trial = Paper(need, device, show, len(self.trials))
        self.trials.append(trial)
        return trial

    def run(self, started):
        if started.stopped:
            started.state = "stopped"
            raise Stopped
        assert started.state == "trains"
        started.state = "ended"
        return self.end(started), datetime.now(UTC)

    def abandon(self, started):
        assert started.state == "up"
        started.state = "abandoned"

    def take_in(self, run, need, work, device, result, started):
        outcome = Outcome(
            run=run,
            mutant=need.mutant,
            seed=need.seed,
            status=str(result.status),
            crash=result.crash and str(result.crash),
            message=result.message,
            val_bpb=result.score and result.score.val_bpb,
            device=device.id,
            started_at=started.replace(tzinfo=None),
        )
        self.known.add(outcome)
        return outcome

    def keep(self, unkept):
        self.kept.append(unkept.run)

    def record_verdict(self, verdict, work):
        ours = {trial.run_id for trial in self.trials}
        assert ours & set(verdict.runs) <= set(self.kept), "it rests on an unkept one"
        self.verdicts.append(verdict)


@attrs.define(eq=False)
class Hand:
    """Stands for the devices' threads and their queue: one thing happens at a time.

    Attributes:
        pick: Chooses the device on which something happens next; it trains, then ends.
        look: Called whenever the scheduler has nothing to do but wait.
    """

    pick: Callable[[list[str]], str] = lambda devices: devices[0]
    look: Callable[[], None] = lambda: None
    under_way: dict[str, tuple[Any, ...]] = attrs.field(factory=dict)
    events: deque[Any] = attrs.field(factory=deque)

    def submit(self, run, slot, turn):
        assert slot.device.id not in self.under_way, "two trials on one device"
        self.under_way[slot.device.id] = run, slot, turn

    def put(self, event):
        self.events.append(event)

    def empty(self):
        return not self.events

    def get(self):
        if not self.events:
            self.look()
        while not self.events:
            name = self.pick(list(self.under_way))
            run, slot, turn = self.under_way[name]
            if turn.started.state == "up":
                turn.started.state = "trains"
                turn.started.show(TRAINS)
            else:
                del self.under_way[name]
                run(slot, turn)
        return self.events.popleft()

    def shutdown(self, **options):
        for run, slot, turn in self.under_way.values():
            turn.started.stopped = True
            run(slot, turn)
        self.under_way.clear()


def on_paper(
    devices: str,
    experiments: list[Undecided],
    end: Callable[[Paper], Result] = lambda trial: finished(),
    *,
    hand: Hand | None = None,
    profile: Profile = CPU,
    **options: Any,
) -> tuple[Scheduler, PaperLab]:
    lab, hand = PaperLab(end, profile), hand or Hand()
    scheduler = Scheduler(
        lab=lab,
        devices=[a_device(name) for name in devices],
        undecided=list(experiments),
        watch=lambda device, label, progress: None,
        events=hand,  # type: ignore[arg-type]
        **options,
    )
    scheduler._threads.shutdown()
    scheduler._threads = hand  # type: ignore[assignment]
    return scheduler, lab


def all_decided(scheduler: Scheduler) -> dict[object, Verdict | Lost]:
    ends = {}
    while scheduler.undecided:
        decided = scheduler.next_decided()
        assert decided.key not in ends
        assert decided.started <= decided.ended
        ends[decided.key] = decided.end
    scheduler.stop()
    return ends


def ran(lab: PaperLab) -> list[str]:
    return [trial.text for trial in lab.trials if trial.state == "ended"]


def has_run(mutant: str, seed: int, *, device: str = "a", **fields: Any) -> Outcome:
    return Outcome(
        run=f"{mutant} {seed}",
        mutant=mutant,
        seed=seed,
        status="finished",
        val_bpb=1.0,
        device=device,
        **fields,
    )


def in_turn() -> Hand:
    """Every trial takes as long: what came first ends first."""
    return Hand(pick=lambda devices: devices[0])


# --- which trial, and where


def test_the_seeds_of_one_experiment_are_shared_out_without_a_base_run_too_many():
    scheduler, lab = on_paper("ab", [an_experiment("x")])

    all_decided(scheduler)

    assert sorted(ran(lab)) == ["a base 0", "a x 0", "b base 1", "b x 1"]


def test_two_claims_on_one_mutant_share_its_trials():
    same = an_experiment("y").work.mutant
    both = [an_experiment("x", mutant=same), an_experiment("y", claim=BETTER)]
    scheduler, lab = on_paper("ab", both)

    ends = all_decided(scheduler)

    assert sorted(ends) == ["x", "y"]
    assert sorted(ran(lab)) == ["a base 0", "a y 0", "b base 1", "b y 1"]


def test_an_experiment_stays_on_one_device_while_no_other_idles():
    names = ["w", "x", "y", "z"]
    scheduler, lab = on_paper("ab", [an_experiment(n, seeds=4) for n in names])

    all_decided(scheduler)

    homes = {
        name: Counter(t.device.id for t in lab.trials if t.need.mutant == name)
        for name in names
    }
    assert homes == {"w": {"a": 4}, "x": {"b": 4}, "y": {"a": 4}, "z": {"b": 4}}


def test_a_device_without_work_takes_over_seeds_of_a_busy_one():
    quick = an_experiment("x", seeds=1)
    scheduler, lab = on_paper("ab", [quick, an_experiment("y", seeds=6)])

    all_decided(scheduler)

    took_over = [text for text in ran(lab) if text.startswith("a y")]
    assert took_over
    assert len(ran(lab)) <= 1 + 6 + 6 + 2  # no seed of the base on both but the first


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        (4, ["a x 2", "a x 3"]),
        (5, ["a x 2", "a x 4", "b base 3", "b x 3"]),
    ],
)
def test_a_base_run_more_is_made_where_that_saves_time_and_not_otherwise(
    seeds: int, expected: list[str]
):
    scheduler, lab = on_paper("ab", [an_experiment("x", seeds=seeds)])
    for mutant, seed in [*(("base", i) for i in range(seeds)), ("x", 0), ("x", 1)]:
        lab.known.add(has_run(mutant, seed))

    all_decided(scheduler)

    assert sorted(ran(lab)) == expected


def test_the_base_alone_runs_once_with_each_seed_wherever_and_no_verdict_is_made():
    scheduler, lab = on_paper("ab", [base_alone("base", 5)], hand=in_turn())

    all_decided(scheduler)

    assert sorted(text[2:] for text in ran(lab)) == [f"base {i}" for i in range(5)]
    assert {text[0] for text in ran(lab)} == {"a", "b"}
    assert lab.verdicts == []


def test_the_base_alone_does_not_repeat_what_has_run():
    scheduler, lab = on_paper("a", [base_alone("base", 3)])
    for seed in (0, 2):
        lab.known.add(has_run("base", seed))

    all_decided(scheduler)

    assert ran(lab) == ["a base 1"]


def test_the_base_alone_is_not_due_beside_its_seeds_however_old_it_is():
    scheduler, lab = on_paper("ab", [base_alone("base", 4)])
    for seed, device in ((0, "a"), (1, "b"), (2, "a")):
        lab.known.add(
            has_run("base", seed, device=device, started_at=datetime(2020, 1, 1))
        )

    all_decided(scheduler)

    assert [text[2:] for text in ran(lab)] == ["base 3"]


def test_a_base_that_fails_alone_is_lost_after_two_crashes():
    scheduler, lab = on_paper(
        "a", [base_alone("base", 3)], lambda trial: failed(Status.CRASHED)
    )

    ends = all_decided(scheduler)

    assert isinstance(ends[None], Lost)
    assert ends[None].reason == "the base itself failed (oom): m"
    assert ran(lab) == ["a base 0", "a base 0"]


def test_every_so_often_a_device_runs_the_base_again():
    scheduler, lab = on_paper("a", [an_experiment(n, seeds=1) for n in "rstuvwxyz"])

    all_decided(scheduler)

    bases = [i for i, text in enumerate(ran(lab)) if "base" in text]
    assert bases == [0, CANDIDATES_A_BASE + 1]


def bystander(ends: dict[str, Result]) -> Callable[[Paper], Result]:
    """Return how trials end that a test does not name."""
    return lambda trial: ends.pop(trial.text, None) or finished()


@pytest.mark.parametrize("status", [Status.KILLED, Status.INFRASTRUCTURE])
def test_a_trial_that_was_lost_is_run_again_and_nothing_else_is(status: Status):
    end = bystander({"a x 0": failed(status)})
    scheduler, lab = on_paper("a", [an_experiment("x")], end)

    all_decided(scheduler)

    assert ran(lab) == ["a base 0", "a x 0", "a x 0", "a base 1", "a x 1"]


def test_a_base_that_cannot_run_costs_no_candidate_its_slot():
    def end(trial: Paper) -> Result:
        is_base = trial.need == Need(mutant="base", seed=0)
        return failed(Status.CRASHED) if is_base else finished()

    scheduler, lab = on_paper("ab", [an_experiment("x"), an_experiment("y")], end)

    ends = all_decided(scheduler)

    assert all(isinstance(end, Lost) for end in ends.values())
    assert not [text for text in ran(lab) if text.endswith(("x 0", "y 0"))]


# --- ahead


def test_the_next_trials_processes_start_when_the_clock_of_the_present_one_does():
    seen = []
    hand = in_turn()
    scheduler, lab = on_paper("a", [an_experiment("x")], hand=hand, profile=AHEAD)
    hand.look = lambda: seen.append([(t.text, t.state) for t in lab.trials])

    all_decided(scheduler)

    assert seen[:3] == [
        [("a base 0", "up")],
        [("a base 0", "trains"), ("a x 0", "up")],
        [("a base 0", "ended"), ("a x 0", "up")],
    ]
    assert ran(lab) == ["a base 0", "a x 0", "a base 1", "a x 1"]


def test_on_a_cpu_nothing_starts_before_the_device_is_free():
    hand = in_turn()
    scheduler, lab = on_paper("a", [an_experiment("x")], hand=hand)
    seen = []
    hand.look = lambda: seen.append(sum(t.state != "ended" for t in lab.trials))

    all_decided(scheduler)

    assert set(seen) == {1}


def test_a_waiting_trial_that_nobody_wants_any_more_is_abandoned():
    end = bystander({"a x 0": finished(5.0)})  # far worse: refuted at its first look
    scheduler, lab = on_paper(
        "a", [an_experiment("x", seeds=6, claim=BETTER)], end, profile=AHEAD
    )

    ends = all_decided(scheduler)

    assert [(t.text, t.state) for t in lab.trials] == [
        ("a base 0", "ended"),
        ("a x 0", "ended"),
        ("a base 1", "abandoned"),
    ]
    assert ends["x"].word == "refuted"


def test_a_candidate_that_waits_for_a_base_that_fails_is_abandoned_and_runs_later():
    end = bystander({"a base 0": failed(Status.KILLED)})
    scheduler, lab = on_paper("a", [an_experiment("x", seeds=1)], end, profile=AHEAD)

    all_decided(scheduler)

    assert [(t.text, t.state) for t in lab.trials] == [
        ("a base 0", "ended"),
        ("a x 0", "abandoned"),
        ("a base 0", "ended"),
        ("a x 0", "ended"),
    ]


# --- what can wait, and what cannot


def test_a_device_has_its_next_trial_before_the_last_one_is_written_down():
    scheduler, lab = on_paper("a", [an_experiment("x"), an_experiment("y")])
    written = []
    keep = lab.keep
    lab.keep = lambda unkept: (  # type: ignore[method-assign]
        written.append((unkept.run, scheduler.slots[0].running is not None)),
        keep(unkept),
    )

    all_decided(scheduler)

    *before, last = written
    assert [run for run, _ in written] == [trial.run_id for trial in lab.trials]
    assert {is_running for _, is_running in before} == {True}
    assert last[1] is False


def stopped_with_two_ended(end=lambda trial: finished()):
    """Stop a session on two devices, whose trials have ended and were not heard of."""
    alarms: list[str] = []
    hand = Hand()
    scheduler, lab = on_paper(
        "ab", [an_experiment("x")], end, hand=hand, alarm=alarms.append
    )
    hand.look = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        scheduler.next_decided()
    for trial in lab.trials:
        trial.state = "trains"
    for run, slot, turn in hand.under_way.values():
        run(slot, turn)
    hand.under_way.clear()
    return scheduler, lab, alarms


def test_what_had_ended_when_the_session_stops_is_written_down():
    scheduler, lab, alarms = stopped_with_two_ended()

    scheduler.stop()

    assert lab.kept == ["000", "001"]
    assert alarms == []


def test_a_mistake_of_ours_with_one_trial_costs_no_other_one():
    def end(trial: Paper) -> Result:
        if trial.device.id == "b":
            raise RuntimeError("our own mistake")
        return finished()

    scheduler, lab, _ = stopped_with_two_ended(end)

    with pytest.raises(RuntimeError, match="our own mistake"):
        scheduler.stop()

    assert lab.kept == ["000"]


def test_ctrl_c_while_a_trial_is_written_down_loses_nothing():
    scheduler, lab = on_paper("a", [an_experiment("x")])
    keep = lab.keep

    def interrupted(unkept):
        lab.keep = keep  # type: ignore[method-assign]
        raise KeyboardInterrupt

    lab.keep = interrupted  # type: ignore[method-assign]

    with pytest.raises(KeyboardInterrupt):
        scheduler.next_decided()
    scheduler.stop()

    assert lab.kept == ["000"]


def test_what_cannot_be_kept_at_the_end_is_said_and_the_rest_is_kept():
    scheduler, lab, alarms = stopped_with_two_ended()
    keep = lab.keep

    def full(unkept):
        if unkept.run == "000":
            raise OSError(28, "No space left on device")
        keep(unkept)

    lab.keep = full  # type: ignore[method-assign]

    scheduler.stop()

    assert lab.kept == ["001"]
    assert alarms == [
        "000 has finished and could not be kept: [Errno 28] No space left on device"
    ]


def test_a_trial_that_compiled_on_the_clock_is_named_at_once():
    alarms: list[str] = []
    end = bystander({"a x 0": finished(compilations=3)})
    scheduler, lab = on_paper(
        "a", [an_experiment("x", seeds=1)], end, alarm=alarms.append
    )

    all_decided(scheduler)

    (run,) = [t.trial.run_id for t in lab.trials if t.text == "a x 0"]
    assert alarms == [
        f"{run}: torch.compile was at work while the clock ran (3 graphs), which cost "
        "training time"
    ]


# --- a device that fails


def test_a_device_that_fails_is_taken_out_loudly_and_its_trials_move():
    alarms = []
    end = bystander({"a x 0": failed(Status.INFRASTRUCTURE, device_fault=FAULT)})
    experiments = [an_experiment("x"), an_experiment("y")]
    scheduler, lab = on_paper(
        "ab", experiments, end, profile=AHEAD, alarm=alarms.append
    )

    ends = all_decided(scheduler)

    assert alarms == ["GPU-a: NVML says GPU is lost: no more trials run on it"]
    assert [t.text for t in lab.trials if t.device.id == "a"][:2] == [
        "a base 0",
        "a x 0",
    ]
    assert {t.state for t in lab.trials if t.device.id == "a"} == {"ended", "abandoned"}
    assert {"b x 0", "b x 1", "b y 0", "b y 1"} <= set(ran(lab))
    assert {end.word for end in ends.values()} == {"measured"}


def test_a_number_is_kept_although_its_device_is_taken_out_afterwards():
    end = bystander({"a x 0": finished(device_fault=FAULT)})
    scheduler, lab = on_paper("ab", [an_experiment("x", seeds=1)], end)

    ends = all_decided(scheduler)

    assert [slot.device.id for slot in scheduler.slots] == ["b"]
    assert ends["x"].runs == ("001", "000")
    assert ran(lab) == ["a base 0", "a x 0"]


def test_without_a_device_the_session_ends_and_says_what_to_do():
    fault = failed(Status.INFRASTRUCTURE, device_fault=FAULT)
    scheduler, lab = on_paper(
        "a", [an_experiment("x")], lambda trial: fault, profile=AHEAD
    )

    with pytest.raises(SessionError) as caught:
        scheduler.next_decided()
    scheduler.stop()

    assert str(caught.value) == (
        "no device is left: GPU-a: NVML says GPU is lost.\n\n"
        "hint: look at nvidia-smi, end what is on the GPU or reset it, and run again: "
        "what has finished is kept."
    )
    assert [t.state for t in lab.trials] == ["ended", "abandoned"]


def test_what_the_last_device_decided_is_told_although_it_is_taken_out():
    end = bystander({"a x 0": finished(device_fault=FAULT)})
    experiments = [an_experiment("x", seeds=1), an_experiment("y", seeds=1)]
    scheduler, _ = on_paper("a", experiments, end)

    decided = scheduler.next_decided()
    with pytest.raises(SessionError, match=r"^no device is left: GPU-a: NVML says"):
        scheduler.next_decided()
    scheduler.stop()

    assert decided.key == "x"


def test_a_disk_that_is_full_ends_the_session_and_says_what_to_do():
    class Full(PaperLab):
        def keep(self, *arguments):
            raise OSError(28, "No space left on device")

    scheduler, lab = on_paper("ab", [an_experiment("x")])
    lab.__class__ = Full

    with pytest.raises(SessionError) as caught:
        scheduler.next_decided()
    scheduler.stop()

    assert str(caught.value) == (
        "a trial could not be run or kept: [Errno 28] No space left on device.\n\n"
        "hint: free space below runs/, then run again: what has finished is kept."
    )


class BrokenLab(PaperLab):
    """A lab with a mistake of ours in it."""

    def run(self, started):
        raise RuntimeError("our own mistake")


def test_a_mistake_of_ours_in_a_devices_thread_ends_the_session():
    scheduler = Scheduler(
        lab=BrokenLab(lambda trial: finished(), CPU),
        devices=[a_device("a")],
        undecided=[an_experiment("x")],
        watch=lambda device, label, progress: None,
    )

    with pytest.raises(RuntimeError, match="our own mistake"):
        scheduler.next_decided()
    scheduler.stop()

    assert [slot.running for slot in scheduler.slots] == [None]


# --- whatever happens

ENDS = ["finished"] * 24 + ["crashed", "killed", "invalid", "infrastructure"] * 2
CLAIMS = [NOTHING, BETTER, Claim(delta_bpb=0.0, within=0.02), Claim(delta_bpb=0.05)]


def at_random(chance: random.Random, *, fault: bool) -> Result:
    if fault:
        there = finished() if chance.random() < 0.5 else failed(Status.INFRASTRUCTURE)
        return attrs.evolve(there, device_fault=FAULT)
    status = Status(chance.choice(ENDS))
    if status is Status.FINISHED:
        return finished(chance.gauss(1.0, 0.02))
    return failed(status)


def idles_although_it_pays(scheduler: Scheduler, slot: Slot) -> str:
    """Return what an idle device should have taken; empty if there is nothing."""
    known = scheduler.lab.known
    under_way = {
        (turn.experiment.plan.mutant, turn.need.seed)
        for other in scheduler.slots
        for turn in other.turns()
    }
    queued: Counter[str] = Counter()
    for want in scheduler._wanted():
        need = want.need
        if (need.mutant, need.seed) in under_way or not want.is_certain:
            continue
        homes = [home.device.id for home in scheduler._homes(want.experiment)]
        bases = {outcome.device for outcome in known.finished("base", need.seed)}
        if not homes or slot.device.id in homes or slot.device.id in bases:
            return f"{need} waits"
        queued[homes[0]] += 1
        if queued[homes[0]] > 1:
            return f"{need} waits behind another"
    return ""


@settings(max_examples=150)
@given(
    drawn=st.integers(0, 2**32),
    devices=st.integers(1, 4),
    seeds=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    faults=st.integers(0, 4),
    profile=st.sampled_from([CPU, AHEAD]),
)
@example(drawn=1601, devices=3, seeds=[4, 2], faults=1, profile=AHEAD)
def test_whatever_happens_every_pair_shares_a_device_and_every_experiment_ends(
    drawn: int,
    devices: int,
    seeds: list[int],
    faults: int,
    profile: Profile,
):
    chance = random.Random(drawn)
    alarms: list[str] = []
    broken: list[str] = []

    def end(trial: Paper) -> Result:
        fault = len(broken) < faults and chance.random() < 0.1
        broken.extend([trial.device.id] * fault)
        return at_random(chance, fault=fault)

    def look() -> None:
        assert not {slot.device.id for slot in scheduler.slots} & set(broken)
        for slot in scheduler.slots:
            assert slot.waiting is None or slot.waiting.started.state == "up"
            assert slot.waiting is None or profile.ahead
            if slot.running is None:
                assert not idles_although_it_pays(scheduler, slot)

    experiments = [
        an_experiment(f"x{i}", seeds=most, claim=chance.choice(CLAIMS))
        for i, most in enumerate(seeds)
    ]
    scheduler, lab = on_paper(
        "abcd"[:devices],
        experiments,
        end,
        hand=Hand(pick=chance.choice, look=look),
        profile=profile,
        alarm=alarms.append,
    )

    try:
        ends = all_decided(scheduler)
    except SessionError:
        assert len(broken) == devices
        scheduler.stop()
        ends = {}
    else:
        assert sorted(map(str, ends)) == [f"x{i}" for i in range(len(seeds))]

    places = {trial.run_id: trial for trial in lab.trials}
    for verdict in ends.values():
        if isinstance(verdict, Verdict) and verdict.delta_bpb is not None:
            both = [places[run] for run in verdict.runs]
            bases = {
                (t.device.id, t.need.seed) for t in both if t.need.mutant == "base"
            }
            candidates = [t for t in both if t.need.mutant != "base"]
            assert len(candidates) == verdict.candidates
            known = lab.known.outcomes
            bases |= {(o.device, o.seed) for o in known if o.mutant == "base"}
            assert bases >= {(t.device.id, t.need.seed) for t in candidates}
    done = [o for o in lab.known.outcomes if o.status == "finished"]
    assert (
        max(Counter((o.mutant, o.seed, o.device) for o in done).values(), default=1)
        == 1
    )
    of_candidates = Counter((o.mutant, o.seed) for o in done if o.mutant != "base")
    assert max(of_candidates.values(), default=1) == 1
    assert {t.state for t in lab.trials} <= {"ended", "abandoned", "stopped"}
    assert sorted(lab.kept) == [t.run_id for t in lab.trials if t.state == "ended"]
    assert len(alarms) == len(broken)


# --- real trials, side by side on one CPU


@pytest.fixture
def start(
    data: Prepared, tmp_path: Path, zygote: Zygote
) -> Iterator[Callable[..., Scheduler]]:
    """Return what schedules trials of bigrams in real processes; all end afterwards."""
    started = []

    def start(devices: str, seeds: int, profile: Profile, watch=None) -> Scheduler:
        base = unchanged(module())
        lab = Lab(
            project=tmp_path,
            library=ROOT,
            cache=tmp_path,
            profile=profile,
            base=base,
            data=data,
            context=current_context(
                profile,
                cpu(),
                data="d",
                base=base.digest,
                shared=False,
                confined=True,
            ),
            known=Known(base=base.digest, prior=NOISE),
            verdicts=[],
            zygote=zygote,
        )
        experiment = an_experiment("x", seeds=seeds, mutant=unchanged(module("x = 1")))
        experiment.plan = attrs.evolve(experiment.plan, base=base.digest)
        experiment.work.configuration.update(A=1)
        scheduler = Scheduler(
            lab=lab,
            devices=[a_device(name) for name in devices],
            undecided=[experiment],
            watch=watch or (lambda device, label, progress: None),
        )
        started.append(scheduler)
        return scheduler

    yield start
    for scheduler in started:
        scheduler.stop()


def rows(scheduler: Scheduler) -> list[dict[str, Any]]:
    journal = scheduler.lab.journal
    ran = [journal.run(run)["run"] for run in journal.runs()]
    # Of two that were named in one second, the names say nothing.
    return sorted(ran, key=lambda row: row["started_at"])


QUICK_AHEAD = attrs.evolve(QUICK, ahead=True)


@pytest.mark.slow
def test_two_devices_train_at_once_and_each_next_trial_is_up_before_its_device_is_free(
    start: Callable[..., Scheduler],
):
    told = []
    scheduler = start("ab", 2, QUICK_AHEAD, lambda *said: told.append(said))

    (end,) = all_decided(scheduler).values()

    ran = rows(scheduler)
    assert [row["status"] for row in ran] == ["finished"] * 4, ran
    assert isinstance(end, Verdict)
    assert (end.word, end.candidates, end.bases) == ("measured", 2, 2)
    base = scheduler.lab.base.digest
    for device, seed in (("a", 0), ("b", 1)):
        first, second = (row for row in ran if row["device"] == device)
        assert (first["mutant"], first["seed"]) == (base, seed)
        assert (second["mutant"], second["seed"]) == (end.mutant, seed)
        assert first["gap_seconds"] is None
        assert second["ahead_seconds"] > first["ahead_seconds"]
        # From clock to clock: all that the first did after training lies between.
        after = sum(first[f"{phase}_seconds"] for phase in ("save", "serve", "score"))
        assert after < second["gap_seconds"] < second["wall_seconds"] + 60
    a, b = (
        [row["started_at"] for row in ran if row["device"] == name] for name in "ab"
    )
    assert b[0] < a[1]
    assert a[0] < b[1]
    assert {(d.id, label) for d, label, progress in told if progress} == {
        ("a", "base, seed 0"),
        ("a", "x, seed 0"),
        ("b", "base, seed 1"),
        ("b", "x, seed 1"),
    }
    assert nothing_is_left()


def test_ctrl_c_ends_what_trains_and_what_waits(
    start: Callable[..., Scheduler], tmp_path: Path
):
    # Whoever starts the tests in the background lets them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    up: list[psutil.Process] = []
    steps = iter(range(20))

    def watch(device: Device, label: str, progress: Progress | None) -> None:
        if progress is None or progress.loss_nats is None:
            return
        if len(up) < 16:  # two trials of four children with a warden each
            up[:] = of_trials()
        elif next(steps, None) == 19:
            os.kill(os.getpid(), signal.SIGINT)

    long = attrs.evolve(QUICK_AHEAD, budget_seconds=60.0)
    scheduler = start("a", 1, long, watch)

    with pytest.raises(KeyboardInterrupt):
        scheduler.next_decided()
    partial = list((tmp_path / "runs" / ".partial").iterdir())
    scheduler.stop()

    assert len(partial) == 2
    assert nothing_is_left()
    assert not any(process.is_running() for process in up)
    assert list((tmp_path / "runs" / ".partial").iterdir()) == []
    assert rows(scheduler) == []
