"""Run the trials of all selected experiments, one a device, until each has a verdict."""

import contextlib
import os
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import attrs

from core.device import Device
from core.errors import SessionError
from core.evidence import Verdict
from core.gates import Work
from core.launch import Result
from core.launch.watch import Progress, Stopped
from core.pipeline import Lab
from core.plan import Lost, Need, Plan, base_due

Watcher = Callable[[Device, str, Progress | None], None]


@attrs.frozen(kw_only=True)
class Ended:
    """A trial came back from a device.

    Attributes:
        need: What was run.
        work: For whom; None for the base.
        device: Where.
        run: Its name.
        result: How it went; None if the session stopped it.
        error: What broke on our side, if anything did.
        started: When.
    """

    need: Need
    work: Work | None
    device: Device
    run: str = ""
    result: Result | None = None
    error: BaseException | None = None
    started: datetime | None = None


@attrs.define(eq=False)
class Undecided:
    """An experiment on its way to a verdict.

    Attributes:
        key: Whatever the caller knows it by.
        work: Case and mutant.
        plan: What it needs.
        need: The trial that it waits for; None when it has to be asked.
        started: When its first trial of this session began; None before.
    """

    key: object
    work: Work
    plan: Plan
    need: Need | None = None
    started: datetime | None = None


@attrs.frozen(kw_only=True)
class Decided:
    """The end of an experiment, and when its trials of this session began and ended."""

    key: object
    end: Verdict | Lost
    started: datetime
    ended: datetime


@attrs.define(eq=False)
class Scheduler:
    """Plan together, run one trial a device, hand out each verdict when it is there.

    Attributes:
        lab: What trials share.
        devices: One trial at a time on each.
        undecided: In the order in which they are served.
        watch: Told what each device does, from the device's own thread.
    """

    lab: Lab
    devices: Sequence[Device]
    undecided: list[Undecided]
    watch: Watcher
    running: set[Need] = attrs.field(factory=set)
    _free: list[Device] = attrs.field(init=False)
    _ended: "queue.SimpleQueue[Ended]" = attrs.field(factory=queue.SimpleQueue)
    _threads: ThreadPoolExecutor = attrs.field(init=False)
    _stop: tuple[int, int] = attrs.field(factory=os.pipe)
    _stopped: bool = False

    def __attrs_post_init__(self) -> None:
        self._free = list(self.devices)
        self._threads = ThreadPoolExecutor(len(self.devices), "device")

    def next_decided(self) -> Decided:
        """Return the next experiment that has come to its end; waits for it.

        Raises:
            DeltaspecError: A trial could not be run, or could not be kept.
        """
        while True:
            for experiment in self.undecided:
                # A look is read once, when its trial has ended: to read it again with
                # every base run that comes in would be to test it again.
                if experiment.need is not None:
                    continue
                step = experiment.plan.advance(self.lab.known)
                if not isinstance(step, Need):
                    self.undecided.remove(experiment)
                    return self._decided(experiment, step)
                experiment.need = step
            self._fill()
            self._take(self._ended.get())

    def stop(self) -> None:
        """End every trial that is under way, and wait until nothing of it is left."""
        if self._stopped:
            return
        self._stopped = True
        os.write(self._stop[1], b"stop")
        self._threads.shutdown(wait=True, cancel_futures=True)
        while self.running:
            with contextlib.suppress(queue.Empty):
                self._take(self._ended.get(timeout=0))
                continue
            break
        for fd in self._stop:
            os.close(fd)

    def _decided(self, experiment: Undecided, end: Verdict | Lost) -> Decided:
        if isinstance(end, Verdict):
            self.lab.record_verdict(end, experiment.work)
        now = datetime.now(UTC)
        return Decided(
            key=experiment.key,
            end=end,
            started=experiment.started or now,
            ended=now,
        )

    def _fill(self) -> None:
        """Give every free device the most urgent trial that nobody runs yet."""
        needs = self._needs()
        while self._free:
            found = next(needs, None)
            if found is None:
                break
            need, experiment = found
            work = None if need.mutant == self.lab.base.digest else experiment.work
            device = self._free.pop(0)
            self.running.add(need)
            experiment.started = experiment.started or datetime.now(UTC)
            self._threads.submit(self._run, need, work, device)
        assert self.running, "nothing runs and nothing is decided"

    def _needs(self) -> Iterator[tuple[Need, Undecided]]:
        """Yield the trials that are waited for and that nobody runs, most urgent first."""
        for experiment in self.undecided:
            need = experiment.need
            assert need is not None
            if need in self.running:
                continue
            base = base_due(self.lab.known, datetime.now(UTC))
            if base not in (None, *self.running) and need.mutant != base.mutant:
                # The machine may not be what it was when the base was last measured.
                yield base, experiment
            yield need, experiment

    def _run(self, need: Need, work: Work | None, device: Device) -> None:
        """Run one trial in a device's thread; whatever happens, say so."""
        label = f"{'base' if work is None else work.case.label}, seed {need.seed}"
        ended = Ended(need=need, work=work, device=device)
        try:
            run, result, started = self.lab.run(
                need,
                work,
                device,
                self._stop[0],
                lambda progress: self.watch(device, label, progress),
            )
            ended = attrs.evolve(ended, run=run, result=result, started=started)
        except Stopped:
            pass
        except BaseException as error:  # raised again in the thread that waits for it
            ended = attrs.evolve(ended, error=error)
        finally:
            self.watch(device, label, None)
            self._ended.put(ended)

    def _take(self, ended: Ended) -> None:
        self.running.discard(ended.need)
        self._free.append(ended.device)
        for experiment in self.undecided:
            if experiment.need == ended.need:
                experiment.need = None
        if isinstance(ended.error, OSError):
            raise _unkept(ended.error) from ended.error
        if ended.error is not None:
            raise ended.error
        if ended.result is not None and ended.started is not None:
            try:
                self.lab.record(
                    ended.run,
                    ended.need,
                    ended.work,
                    ended.device,
                    ended.result,
                    ended.started,
                )
            except OSError as error:
                raise _unkept(error) from error


def _unkept(error: OSError) -> SessionError:
    return SessionError(
        f"a trial could not be run or kept: {error}.",
        hint="free space below runs/, then run again: what has finished is kept.",
    )
