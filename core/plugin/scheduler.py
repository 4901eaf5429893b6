"""Run the trials of all selected experiments, one a device, until each has a verdict."""

import contextlib
import os
import queue
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import attrs

from core.device import Device
from core.errors import SessionError
from core.evidence import Claim, Verdict
from core.gates import Work
from core.launch import Result
from core.launch.local import LocalTrial
from core.launch.watch import Progress, Stopped
from core.pipeline import Lab, Unkept
from core.plan import Lost, Need, Plan, base_due, trial

Watcher = Callable[[Device, str, Progress | None], None]


@attrs.define(eq=False)
class Undecided:
    """An experiment on its way to a verdict.

    Attributes:
        key: Whatever the caller knows it by.
        work: Case and mutant; None where the base is all that runs.
        plan: What it needs.
        need: The trial that it waits for; None when it has to be asked, or needs none.
        end: What came of it; it is told next.
        started: When its first trial of this session began; None before.
    """

    key: object
    work: Work | None
    plan: Plan
    need: Need | None = None
    end: Verdict | Lost | None = None
    started: datetime | None = None


def base_alone(base: str, seeds: int) -> Undecided:
    """Return what ends when the base has run with so many seeds; it decides nothing.

    Args:
        base: Digest of the base.
        seeds: Two or more.
    """
    plan = Plan(mutant=base, base=base, claim=Claim(), looks=seeds, allowed=seeds)
    return Undecided(key=None, work=None, plan=plan)


@attrs.frozen(kw_only=True)
class Decided:
    """The end of an experiment, and when its trials of this session began and ended."""

    key: object
    end: Verdict | Lost
    started: datetime
    ended: datetime


@attrs.frozen(kw_only=True, eq=False)
class Turn:
    """A trial that a device was given.

    Attributes:
        need: What runs: a candidate, or the base with its seed.
        experiment: For whom.
        started: Its processes.
    """

    need: Need
    experiment: Undecided
    started: LocalTrial


@attrs.frozen(kw_only=True, eq=False)
class Want:
    """A trial of a candidate that waits.

    Attributes:
        need: What has to run.
        experiment: For whom.
        is_certain: It has to run whatever the looks before it say.
    """

    need: Need
    experiment: Undecided
    is_certain: bool


@attrs.define(eq=False)
class Slot:
    """A device, the trial on it, and the one whose processes wait for it."""

    device: Device
    running: Turn | None = None
    waiting: Turn | None = None

    def turns(self) -> Iterator[Turn]:
        """Yield what the device was given."""
        yield from filter(None, (self.running, self.waiting))


@attrs.frozen(kw_only=True)
class Trains:
    """The clock of a device's trial has started: time to start the next one's processes."""

    slot: Slot


@attrs.frozen(kw_only=True)
class Ended:
    """A trial came back from a device.

    Attributes:
        slot: Where it was.
        result: How it went; None if the session stopped it.
        error: What broke on our side, if anything did.
        began: When it took the device.
    """

    slot: Slot
    result: Result | None = None
    error: BaseException | None = None
    began: datetime | None = None


@attrs.frozen(kw_only=True)
class Arrived:
    """What was expected is there: its experiments can be planned, or never will.

    Attributes:
        what: Whatever it was announced with.
    """

    what: object


@attrs.define(eq=False)
class Scheduler:
    """Plan together, run one trial a device, hand out each verdict when it is there.

    A candidate runs where the base has run with its seed, and an experiment stays on one
    device unless another has nothing else that is certain to be needed.

    Attributes:
        lab: What trials share.
        devices: One trial at a time on each.
        undecided: In the order in which they are served.
        watch: Told what each device does, from the device's own thread.
        alarm: Told at once what somebody should look at: a device that is taken out, a
            trial that compiled on the clock.
        expected: How much more will arrive, from other threads; devices run what is
            there, and do not wait for it.
    """

    lab: Lab
    devices: Sequence[Device]
    undecided: list[Undecided]
    watch: Watcher
    alarm: Callable[[str], None] = lambda text: None
    expected: int = 0
    slots: list[Slot] = attrs.field(init=False)
    _events: "queue.SimpleQueue[Trains | Ended | Arrived]" = attrs.field(
        factory=queue.SimpleQueue
    )
    _threads: ThreadPoolExecutor = attrs.field(init=False)
    _stop: tuple[int, int] = attrs.field(factory=os.pipe)
    _unkept: deque[Unkept] = attrs.field(factory=deque)
    _stopped: bool = False
    _fault: str = ""

    def __attrs_post_init__(self) -> None:
        self.slots = [Slot(device) for device in self.devices]
        self._threads = ThreadPoolExecutor(len(self.devices), "device")

    def arrive(self, what: object) -> None:
        """Say that something is there that was expected; any thread may."""
        self._events.put(Arrived(what=what))

    def next_decided(self) -> Decided | Arrived:
        """Return the next experiment that has come to its end, or what has arrived.

        Waits for it.

        Raises:
            DeltaspecError: A trial could not be run, or could not be kept.
        """
        while True:
            self._advance()
            free = [slot for slot in self.slots if slot.running is None]
            for slot in free:  # first of all: what one gives up, another may take
                if slot.waiting and not self._is_wanted(slot, slot.waiting):
                    self._abandon(slot)
            for slot in free:
                self._give(slot)
            self._keep()  # while the next ones are on their way
            for experiment in self.undecided:
                if experiment.end is not None:
                    self.undecided.remove(experiment)
                    return self._decided(experiment, experiment.end)
            if not self.slots:
                raise SessionError(
                    f"no device is left: {self._fault}.",
                    hint="look at nvidia-smi, end what is on the GPU or reset it, and "
                    "run again: what has finished is kept.",
                )
            is_busy = any(slot.running for slot in self.slots)
            assert is_busy or self.expected, "nothing runs"
            match self._events.get():
                case Arrived() as arrived:
                    self.expected -= 1
                    return arrived
                case Ended() as ended:
                    self._take(ended)
                case Trains(slot=slot) if slot.waiting is None:
                    slot.waiting = self._next_turn(slot)

    def _advance(self) -> None:
        """Read the looks whose trials have ended.

        Each once: to read it again with every base run that comes in would be to test it
        again.
        """
        for experiment in self.undecided:
            if experiment.need is None and experiment.end is None:
                step = experiment.plan.advance(self.lab.known)
                if isinstance(step, Need):
                    experiment.need = step
                else:
                    experiment.end = step

    def _keep(self) -> None:
        """Write down the trials that have ended; one that cannot be is tried once more."""
        while self._unkept:
            try:
                self.lab.keep(self._unkept[0])
            except OSError as error:
                raise _unwritten(error) from error
            self._unkept.popleft()

    def stop(self) -> None:
        """End every trial that is under way, and wait until nothing of it is left."""
        if self._stopped:
            return
        self._stopped = True
        os.write(self._stop[1], b"stop")
        with contextlib.ExitStack() as after:  # whatever of it fails
            after.callback(self._take_rest)
            after.callback(self._threads.shutdown, wait=True)
            for slot in self.slots:
                after.callback(self._abandon, slot)

    def _take_rest(self) -> None:
        """Keep what has finished meanwhile, each for itself."""
        with contextlib.ExitStack() as after:  # whatever of it fails
            for fd in self._stop:
                after.callback(os.close, fd)
            after.callback(self._keep_rest)
            events = []
            while not self._events.empty():
                events.append(self._events.get())
            for event in reversed(events):  # the stack turns them round
                if isinstance(event, Ended):
                    after.callback(self._take, event)

    def _keep_rest(self) -> None:
        """Write down what can be; the session has ended, so the rest is only said."""
        while self._unkept:
            unkept = self._unkept.popleft()
            try:
                self.lab.keep(unkept)
            except OSError as error:
                self.alarm(f"{unkept.run} has finished and could not be kept: {error}")

    def _decided(self, experiment: Undecided, end: Verdict | Lost) -> Decided:
        if isinstance(end, Verdict) and experiment.work is not None:
            try:
                self.lab.record_verdict(end, experiment.work)
            except OSError as error:
                raise _unwritten(error) from error
        now = datetime.now(UTC)
        return Decided(
            key=experiment.key,
            end=end,
            started=experiment.started or now,
            ended=now,
        )

    def _give(self, slot: Slot) -> None:
        """Let a free device run what waits for it, or else what is most urgent."""
        slot.running, slot.waiting = slot.waiting or self._next_turn(slot), None
        if slot.running is not None:
            experiment = slot.running.experiment
            experiment.started = experiment.started or datetime.now(UTC)
            self._threads.submit(self._run, slot, slot.running)

    def _next_turn(self, slot: Slot) -> Turn | None:
        """Start the processes of the most urgent trial for a device, if there is one."""
        chosen = self._choose(slot)
        if chosen is None:
            return None
        need, experiment = chosen
        work = None if need.mutant == self.lab.base.digest else experiment.work
        label = f"{'base' if work is None else work.case.label}, seed {need.seed}"

        def show(progress: Progress) -> None:
            self.watch(slot.device, label, progress)
            begins = progress.phase == "train" and progress.loss_nats is None
            if begins and self.lab.profile.ahead:
                self._events.put(Trains(slot=slot))

        try:
            started = self.lab.start(need, work, slot.device, self._stop[0], show)
        except OSError as error:
            raise _unwritten(error) from error
        return Turn(need=need, experiment=experiment, started=started)

    def _choose(self, slot: Slot) -> tuple[Need, Undecided] | None:
        """Return the most urgent trial for a device, and for whom it is."""
        # Where the base runs for it, the candidate follows; nobody else prepares that.
        given = {turn.need for turn in slot.turns()} | {
            Need(mutant=turn.experiment.plan.mutant, seed=turn.need.seed)
            for other in self.slots
            if other is not slot
            for turn in other.turns()
        }
        wanted = [want for want in self._wanted() if want.need not in given]
        if not wanted:
            return None
        due = base_due(self.lab.known, datetime.now(UTC), slot.device.id)
        is_alone = wanted[0].need.mutant == self.lab.base.digest
        if due and not is_alone and due not in {turn.need for turn in slot.turns()}:
            # The machine may not be what it was when the base was last measured.
            return due, wanted[0].experiment
        experiments = dict.fromkeys(want.experiment for want in wanted)
        homes = {experiment: self._homes(experiment) for experiment in experiments}
        for is_certain in (True, False):
            among = [want for want in wanted if want.is_certain is is_certain]
            chosen = (
                next((w for w in among if slot in homes[w.experiment]), None)
                or next((w for w in among if not homes[w.experiment]), None)
                or self._queued_elsewhere(slot, among, homes)
            )
            if chosen is not None:
                return self._first(slot, chosen.need), chosen.experiment
        return None

    def _queued_elsewhere(
        self, slot: Slot, among: list[Want], homes: dict[Undecided, list[Slot]]
    ) -> Want | None:
        """Return what a device without work of its own takes from a busy one.

        If only here the base has to run first, that pays where as much waits there.
        """
        queued = Counter(id(homes[want.experiment][0]) for want in among)
        pays = [
            (queued[id(home)], want)
            for want in among
            for home in homes[want.experiment][:1]
            if queued[id(home)] > 1
            or self._first(slot, want.need) == want.need
            or self._first(home, want.need) != want.need
        ]
        return max(pays, key=lambda pair: pair[0])[1] if pays else None

    def _wanted(self) -> Iterator[Want]:
        """Yield the trials of candidates that wait, in the order of the experiments.

        One pair is never enough, and what predicts nothing, or predicts no effect, is
        decided at the last look: these looks are as certain as the due one.
        """
        for experiment in self.undecided:
            plan, need = experiment.plan, experiment.need
            if need is None:  # its look is about to be read, or its end to be told
                continue
            yield Want(need=need, experiment=experiment, is_certain=True)
            certain = plan.allowed if not plan.claim.delta_bpb else 2
            for later in plan.ahead(self.lab.known):
                yield Want(
                    need=later,
                    experiment=experiment,
                    is_certain=later.seed <= plan.seed(certain),
                )

    def _homes(self, experiment: Undecided) -> list[Slot]:
        """Return the devices that an experiment has been on, or is given to.

        It stays there if it can: what differs between seeds is learned from seeds on
        one device.
        """
        ran = {
            outcome.device
            for look in range(1, experiment.plan.allowed + 1)
            for outcome in self.lab.known.finished(
                experiment.plan.mutant, experiment.plan.seed(look)
            )
        }
        return [
            slot
            for slot in self.slots
            if slot.device.id in ran
            or any(turn.experiment is experiment for turn in slot.turns())
        ]

    def _first(self, slot: Slot, need: Need) -> Need:
        """Return what has to run first for *need*: the base with its seed, or itself."""
        first = trial(self.lab.known, need, slot.device.id)
        runs = {turn.need for turn in slot.turns()}
        return need if first in runs else first

    def _is_wanted(self, slot: Slot, turn: Turn) -> bool:
        """Return whether a trial is still wanted that was chosen some minutes ago."""
        known, need, here = self.lab.known, turn.need, slot.device.id
        wanted = list(self._wanted())
        if need.mutant == self.lab.base.digest:
            ran = {outcome.device for outcome in known.finished(need.mutant, need.seed)}
            due = base_due(known, datetime.now(UTC), here)
            return here not in ran and (
                need == due or any(need.seed == want.need.seed for want in wanted)
            )
        # Its partner may have failed.
        is_paired = trial(known, need, here) == need
        return is_paired and any(need == want.need for want in wanted)

    def _abandon(self, slot: Slot) -> None:
        """End the processes that wait for a device."""
        turn, slot.waiting = slot.waiting, None
        if turn is not None:
            self.lab.abandon(turn.started)

    def _run(self, slot: Slot, turn: Turn) -> None:
        """Run one trial in a device's thread; whatever happens, say so."""
        ended = Ended(slot=slot)
        try:
            result, began = self.lab.run(turn.started)
            ended = attrs.evolve(ended, result=result, began=began)
        except Stopped:
            pass
        except BaseException as error:  # raised again in the thread that waits for it
            ended = attrs.evolve(ended, error=error)
        finally:
            # First: whoever waits for it must not wait for ever.
            self._events.put(ended)
            self.watch(slot.device, "", None)

    def _take(self, ended: Ended) -> None:
        """Keep what a trial gave; take a device out that is not sound any more."""
        slot = ended.slot
        turn, slot.running = slot.running, None
        assert turn is not None
        if ended.error is not None:
            if isinstance(ended.error, OSError):
                raise _unwritten(ended.error) from ended.error
            raise ended.error
        if ended.result is None or ended.began is None:
            return
        is_base = turn.need.mutant == self.lab.base.digest
        try:
            unkept = self.lab.take_in(
                turn.started.trial.run_id,
                turn.need,
                None if is_base else turn.experiment.work,
                slot.device,
                ended.result,
                ended.began,
            )
        except OSError as error:
            raise _unwritten(error) from error
        self._unkept.append(unkept)
        for experiment in self.undecided:
            need = experiment.need
            if need == turn.need or (
                need is not None
                and need.seed == turn.need.seed
                and experiment.plan.blocked(self.lab.known, need)
            ):
                experiment.need = None
        if ended.result.compilations:
            self.alarm(
                f"{turn.started.trial.run_id}: torch.compile was at work while the clock "
                f"ran ({ended.result.compilations} graphs), which cost training time"
            )
        if ended.result.device_fault:
            self._take_out(slot, ended.result.device_fault)

    def _take_out(self, slot: Slot, fault: str) -> None:
        """Give a device no more trials; the others take over what it was to run."""
        self._abandon(slot)
        self.slots.remove(slot)
        self._fault = fault
        self.alarm(f"{fault}: no more trials run on it")


def _unwritten(error: OSError) -> SessionError:
    return SessionError(
        f"a trial could not be run or kept: {error}.",
        hint="free space below runs/, then run again: what has finished is kept.",
    )
