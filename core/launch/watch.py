"""Listen to the processes of a trial: what they say, how they end, how long it takes."""

import contextlib
import itertools
import math
import selectors
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import psutil

from core.channel import BadLine
from core.launch import Crash, Status, Step
from core.launch.clock import Clock
from core.launch.handout import HandOut
from core.launch.log import escaped
from core.process.child import Child, Unkillable, Unread, signal_name
from core.profile import Profile
from core.scratch import size_mib

VMSTAT = Path("/proc/vmstat")
HANG_STEPS = 20  # a step that takes twenty times the median hangs, however slow it is
WALL_FACTOR = 10  # wall-clock seconds that a second of the budget may take
SAID_CHARACTERS = 500  # that are kept of why a child failed
LOOK_SECONDS = 1.0  # between two looks at what a trial has written and started
MOST_PROCESSES = 512  # of a trial; a compiler has some for each core
GRACE_SHARE = 0.1  # of the budget, at most, for what is under way when it ends
ANSWER_FACTOR = 2  # times as long as its tokens took in training; it is a third of that
GRACE_STEPS = 3  # two steps may be queued when the budget ends
# What CUDA says when the machine failed and not the module.  Believed before the clock
# starts, when to run again gains nothing; then the driver is asked instead.
MACHINE_ERRORS = (
    "uncorrectable ECC error",
    "uncorrectable NVLink error",
    "GPU is lost",
    "no CUDA-capable device is detected",
    "CUDA-capable device(s) is/are busy or unavailable",
    "system not yet initialized",
)
# What each process has to say in each phase; the trainer saves before we have entered it.
MAY_SAY = {
    ("trainer", "start"): {"ready"},
    ("trainer", "train"): {"ask", "step", "trained", "saved"},
    ("trainer", "save"): {"saved"},
    ("server", "start"): {"ready"},
    ("server", "serve"): {"serving"},
    ("judge", "start"): {"ready"},
    ("judge", "score"): {"alive", "scored"},
}
# Before all that, and before anything edited runs, a process says how it is confined.
CONFINED, UNCONFINED = "confined", "unconfined"
# Of ln V: the first loss of a model that has seen nothing is about 1, of a model that
# starts from the frequencies of tokens about 0.8.
LEAST_FIRST_LOSS = 0.6


SERVERS = ("server 1", "server 2")


class Stopped(Exception):
    """The session ends before the trial has."""


class Failed(Exception):
    """The trial cannot go on."""

    def __init__(
        self, status: Status, message: str, crash: Crash | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.crash = crash


def kernel_oom_kills() -> int:
    """Return how many processes this machine's kernel has killed for want of memory."""
    counters = dict(line.split() for line in VMSTAT.read_text().splitlines())
    return int(counters.get("oom_kill", 0))


@attrs.frozen(kw_only=True)
class Progress:
    """What a watcher may show while a trial runs.

    Attributes:
        phase: start, train, save, serve or score.
        seconds: Since the phase began.
        of_seconds: How many there will be, where that is known.
        loss_nats: Of the latest step, while training.
    """

    phase: str
    seconds: float
    of_seconds: float | None = None
    loss_nats: float | None = None


@attrs.frozen(kw_only=True)
class Budget:
    """The time that training may take, and when it began.

    Attributes:
        clock: What it is measured on.
        began: What the clock showed then.
        ends_at: What it will show at the end.
        wall_ends_at: When even a CPU that is busy elsewhere must have come so far.
    """

    clock: Clock
    began: float
    ends_at: float
    wall_ends_at: float

    @classmethod
    def start(cls, profile: Profile, pid: int, seconds: float) -> "Budget":
        """Begin now, with *seconds* on the clock of the process *pid*."""
        clock = Clock.of(profile.clock, pid)
        began = clock.now()
        return cls(
            clock=clock,
            began=began,
            ends_at=began + seconds,
            wall_ends_at=time.monotonic()
            + WALL_FACTOR * seconds
            + profile.hang_seconds,
        )

    def used(self) -> float:
        """Return how much of it is used, in seconds."""
        return self.clock.now() - self.began

    def overrun(self) -> float:
        """Return for how many seconds it has been used up; negative before."""
        return self.clock.now() - self.ends_at


@attrs.define(eq=False)
class Watch:
    """The state of one trial while it runs.

    Attributes:
        profile: Budget and limits.
        stop_fd: Becomes readable when the session ends.
        folders: Where its processes write.
        show: Called at each step and phase.
        look: Called while the trial trains, to look at its GPU.
        children: The processes, by name; servers have one name and a number.
        confined: How each confined itself, by name.
        hand_out: The batches; None until the clock starts.
        said: What was heard and not yet asked for.
        curve: Every step that was heard of.
        phase: What the trial is at.
        phase_seconds: How long the earlier phases took.
        budget: What training may take, once it has begun.
        serving: What each server may take for the weights, by name.
        answer_seconds: What an answer may take in addition.
    """

    profile: Profile
    stop_fd: int
    folders: list[Path]
    show: Callable[[Progress], None]
    look: Callable[[], None] = lambda: None
    children: dict[str, Child] = attrs.field(factory=dict)
    confined: dict[str, str] = attrs.field(factory=dict)
    hand_out: HandOut | None = None
    said: list[tuple[str, dict[str, Any]]] = attrs.field(factory=list)
    curve: list[Step] = attrs.field(factory=list)
    phase: str = "start"
    phase_seconds: dict[str, float] = attrs.field(factory=dict)
    budget: Budget | None = None
    serving: dict[str, Budget] = attrs.field(factory=dict)
    answer_seconds: float = math.inf
    _answers: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(SERVERS, 0))
    _waited_for: str = SERVERS[0]  # by the judge
    _next_look: float = 0.0
    _oom_kills: int = attrs.field(factory=kernel_oom_kills)
    _pids: int = attrs.field(factory=lambda: len(psutil.pids()))  # of the machine
    _phase_began: float = attrs.field(factory=time.monotonic)
    _last_sign: float = attrs.field(factory=time.monotonic)

    def begin(self) -> float:
        """Begin the first phase: the device is free now.  Returns the time."""
        self._phase_began = self._last_sign = time.monotonic()
        self._oom_kills = kernel_oom_kills()
        self._pids = len(psutil.pids())
        self.show(Progress(phase=self.phase, seconds=0.0))
        return self._phase_began

    def enter(self, phase: str) -> None:
        """Leave the present phase for *phase*."""
        now = time.monotonic()
        self.phase_seconds[self.phase] = now - self._phase_began
        self.phase, self._phase_began, self._last_sign = phase, now, now
        self.show(Progress(phase=phase, seconds=0.0))

    def await_message(
        self,
        name: str,
        event: str,
        *,
        deadline: float = math.inf,
        budget: Budget | None = None,
        grace_seconds: float | None = None,
    ) -> dict[str, Any]:
        """Return the message *event* of the child *name*.

        Args:
            name: The child that has to say it.
            event: What it has to say.
            deadline: When the wait for it is a hang.
            budget: What training may take.
            grace_seconds: How much later it may be said; what the last steps may take,
                unless it is given.

        Raises:
            Failed: A child ended, failed, fell silent, or said nonsense.
            Stopped: The session ends.
        """
        while True:
            for index, (speaker, message) in enumerate(self.said):
                if speaker == name and message.get("event") == event:
                    return self.said.pop(index)[1]
            limit = min(deadline, self._last_sign + self.patience())
            now = time.monotonic()
            if now >= limit:
                raise self.hung(name, now)
            left = math.inf
            if budget is not None:
                # CPU seconds pass no faster than wall-clock ones; then we look again.
                grace = self.grace() if grace_seconds is None else grace_seconds
                left = min(grace - budget.overrun(), budget.wall_ends_at - now)
                if left <= 0:
                    raise self.overran(name, budget)
            self.listen(min(limit - now, left))

    def overran(self, name: str, budget: Budget) -> Failed:
        """Return the failure of who did not stop when it had to."""
        seconds, waited = budget.overrun(), time.monotonic() - self._phase_began
        self.children[name].end(dump=True)
        if self.phase in ("serve", "score"):
            what, limit = "load the weights", self.profile.load_seconds
            if self.phase == "score":
                times = self._answers[name]
                how_often = "once" if times == 1 else f"{times} times"
                what = f"{what}, and to answer {how_often}"
                limit += self.answering_seconds(name)
            return Failed(
                Status.CRASHED,
                f"the {name} took more than {limit:.1f} s to {what}.",
                Crash.OVERRAN,
            )
        was = {"train": "training was still under way", "save": "there were no weights"}
        of_budget = f"its budget of {self.profile.budget_seconds:g} s"
        when = f"{seconds:.1f} s after {of_budget}"
        if seconds < 0:  # its CPU clock hardly runs
            when = (
                f"after {waited:.0f} s, {-seconds:.1f} s before the end of {of_budget}"
            )
            when += " of CPU time"
        return Failed(
            Status.CRASHED,
            f"{was[self.phase]} {when} (step {len(self.curve)}).",
            Crash.OVERRAN,
        )

    def patience(self) -> float:
        """Return how long the present phase may go without a sign of life, in seconds."""
        if self.phase in ("start", "save", "serve"):
            return math.inf  # they have a deadline instead
        return max(self.profile.hang_seconds, HANG_STEPS * self.median_step())

    def grace(self) -> float:
        """Return how long after the budget the last steps may end, in seconds.

        The steps say when they ended, so their length must not buy much.
        """
        steps = GRACE_STEPS * self.median_step()
        most = GRACE_SHARE * self.profile.budget_seconds
        return max(self.profile.grace_seconds, min(steps, most))

    def median_step(self) -> float:
        """Return the median of the latest steps' seconds, 0 before there are two."""
        seconds = [step.seconds for step in self.curve[-51:]]
        if len(seconds) < 2:
            return 0.0
        return statistics.median(
            later - earlier for earlier, later in itertools.pairwise(seconds)
        )

    def hung(self, awaited: str, now: float) -> Failed:
        """Return the failure of a trial in which *awaited* said nothing for too long."""
        silent = self._waited_for if self.phase == "score" else awaited
        self.children[silent].end(dump=True)
        return self.blame(
            silent,
            f"the {silent} gave no sign of life for {now - self._last_sign:.1f} s "
            f"(phase {self.phase}, step {len(self.curve)}).",
            Crash.HANG,
        )

    def listen(self, seconds: float) -> None:
        """Take in what the children say within *seconds*."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.stop_fd, selectors.EVENT_READ)
            for child in self.children.values():
                if not child.events.ended and not child.closed:
                    selector.register(child.events.fd, selectors.EVENT_READ, child)
            timeout = min(max(seconds, 0.0), LOOK_SECONDS)
            ready = [key for key, _ in selector.select(timeout)]
        if any(key.fd == self.stop_fd for key in ready):
            raise Stopped
        # The judge first: a server whose judge has gone fails as well, and is not to blame.
        for key in sorted(ready, key=lambda key: key.data.name != "judge"):
            self.take(key.data)
        if self.phase == "train":
            self.look()
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            self.look_at_disk()
            self.look_at_processes()

    def look_at_processes(self) -> None:
        """End a trial that starts processes without end.

        Raises:
            Failed: It has.
        """
        if len(psutil.pids()) - self._pids <= MOST_PROCESSES:  # cheap: no look at each
            return
        running = 0
        for child in self.children.values():
            if not child.closed:
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    warden = psutil.Process(psutil.Process(child.pid()).ppid())
                    running += len(warden.children(recursive=True))
        if running > MOST_PROCESSES:
            raise Failed(
                Status.CRASHED,
                f"the trial runs {running:,} processes: at most {MOST_PROCESSES}.",
                Crash.EXCEPTION,
            )

    def look_at_disk(self) -> None:
        """End a trial that writes more than it may.

        Raises:
            Failed: It has.
        """
        try:
            written_mib = sum(map(size_mib, self.folders))
        except OSError as error:
            raise Failed(
                Status.CRASHED,
                "the trial nests its folders deeper than a path is long.",
                Crash.EXCEPTION,
            ) from error
        if written_mib > self.profile.file_mib:
            raise Failed(
                Status.CRASHED,
                f"the trial wrote {written_mib:,.0f} MiB to its folders: at most "
                f"{self.profile.file_mib:,.0f}.",
                Crash.EXCEPTION,
            )

    def take(self, child: Child) -> None:
        """Take in what one child says."""
        try:
            messages = child.events.available()
        except BadLine as bad:
            raise self.blame(child.name, f"the {child.name} sent {bad}.") from bad
        for message in messages:
            self._last_sign = time.monotonic()
            match message:
                case {"event": "unconfined", "message": str(text)} if (
                    child.name not in self.confined and child.is_confined
                ):
                    raise Failed(
                        Status.INFRASTRUCTURE,
                        f"the {child.name} is not confined: {escaped(text)}.",
                    )
                case {"event": "confined", "level": str(level), "tried": int()} if (
                    child.name not in self.confined and child.is_confined
                ):
                    self.confined[child.name] = level
                case {"event": "failed", "crash": str(crash), "message": str(text)}:
                    known = crash if crash in set(Crash) else Crash.EXCEPTION
                    raise self.blame(child.name, text[:SAID_CHARACTERS], Crash(known))
                case {"event": str(event)} if not self.may_say(child.name, event):
                    raise self.blame(
                        child.name,
                        f"the {child.name} said {event[:40]!r} in phase {self.phase}.",
                    )
                case {"event": "ask", "rows": int(rows)} if type(rows) is int:
                    self.give(child, rows)
                case {"event": "step", "loss_nats": float(loss)}:
                    self.see_step(loss)
                case {"event": "alive", "answered": int(of), "waits_for": int(after)}:
                    self.see_answer(SERVERS[of])
                    self._waited_for = SERVERS[after]
                case {"event": "ready" | "trained" | "saved" | "serving" | "scored"}:
                    self.said.append((child.name, message))
                case _:
                    said = str(message)[:80]
                    raise self.blame(child.name, f"the {child.name} sent {said}.")
        if child.events.ended and not self.may_have_ended(child.name):
            raise self.died(child.name)

    def may_say(self, name: str, event: str) -> bool:
        """Return whether *event* is what *name* has to say now, and has not said yet."""
        said = {message["event"] for speaker, message in self.said if speaker == name}
        over = event in said or ("trained" in said and event in ("ask", "step"))
        role = "server" if name in SERVERS else name
        is_confined = name in self.confined or not self.children[name].is_confined
        return is_confined and event in MAY_SAY.get((role, self.phase), ()) and not over

    def give(self, child: Child, rows: int) -> None:
        """Hand out a batch, if the budget is not over yet."""
        assert self.budget is not None
        assert self.hand_out is not None
        used = self.budget.used()
        try:
            if used >= self.profile.budget_seconds:
                child.send({"over": True})
            elif not self.hand_out.give(rows):
                raise self.blame(child.name, f"the {child.name} asked for {rows} rows.")
            else:
                child.send({"progress": used / self.profile.budget_seconds})
        except Unread as unread:
            raise self.blame(child.name, f"{unread}.") from unread

    def may_have_ended(self, name: str) -> bool:
        """Return whether *name* has said all that it had to say."""
        last = {"trainer": "saved", "judge": "scored"}.get(name)
        return any(
            speaker == name and message.get("event") == last
            for speaker, message in self.said
        )

    def see_answer(self, name: str) -> None:
        """Refuse a server that does more than to answer."""
        self._answers[name] += 1
        if self.serving[name].overrun() > self.answering_seconds(name):
            raise self.overran(name, self.serving[name])

    def answering_seconds(self, name: str) -> float:
        """Return what a server may take for what it has answered, in seconds."""
        # The first answer is the one before which there is something to learn from.
        more = ANSWER_FACTOR * (self._answers[name] - 1)
        if self.profile.clock == "wall":  # which goes on while the other one answers
            more *= len(SERVERS)
        return self.answer_seconds * (1 + more)

    def see_step(self, loss: float) -> None:
        """Add a step to the curve, at the time when we heard of it."""
        assert self.budget is not None
        assert self.hand_out is not None
        step = len(self.curve) + 1
        tokens = self.hand_out.tokens_after(step)
        if tokens is None:
            raise self.blame(
                "trainer", f"the trainer logged {step} losses for {step - 1} batches."
            )
        at_random = math.log(self.hand_out.vocab_size)
        if step == 1 and loss < LEAST_FIRST_LOSS * at_random:
            raise Failed(
                Status.INVALID,
                f"the first step's loss is {loss:.2f} nats, and a model that has seen "
                f"nothing starts near ln V = {at_random:.2f}: it was trained before its "
                "clock started.",
            )
        seconds = self.budget.used()
        self.curve.append(
            Step(step=step, seconds=seconds, tokens=tokens, loss_nats=loss)
        )
        self.show(
            Progress(
                phase=self.phase,
                seconds=seconds,
                of_seconds=self.profile.budget_seconds,
                loss_nats=loss,
            )
        )

    def died(self, name: str) -> Failed:
        """Return the failure of a child that ended before its work was done."""
        code = self.children[name].exit().returncode
        if code == -signal.SIGKILL and kernel_oom_kills() > self._oom_kills:
            return self.blame(
                name, f"the kernel killed the {name} for want of memory.", Crash.OOM
            )
        if code is None or code in (-signal.SIGKILL, -signal.SIGTERM):
            by = "with its warden" if code is None else signal_name(-code)
            return Failed(
                Status.KILLED, f"the {name} was killed ({by}) in phase {self.phase}."
            )
        how = f"by {signal_name(-code)}" if code < 0 else f"with status {code}"
        return self.blame(
            name, f"the {name} ended {how} in phase {self.phase}, without a result."
        )

    def blame(self, name: str, message: str, crash: Crash = Crash.EXCEPTION) -> Failed:
        """Return a failure: the candidate's own, unless it is ours or the machine's."""
        message = escaped(message)
        is_early = self.phase == "start"
        of_machine = is_early and any(error in message for error in MACHINE_ERRORS)
        if name == "judge" or of_machine:
            return Failed(Status.INFRASTRUCTURE, message)
        return Failed(Status.CRASHED, message, crash)

    def end(self) -> tuple[float | None, int]:
        """End every child; return the trainer's peak MiB and what was left behind.

        Raises:
            Unkillable: One could not be ended; all others were.
        """
        peak_mib, left_behind, unkillable = None, 0, None
        # All at once: a GPU lets go of each slowly.
        for child in self.children.values():
            child.dismiss()
        for child in self.children.values():
            try:
                ended = child.end()
            except Unkillable as error:
                unkillable = error
                continue
            left_behind += ended.left_behind
            if child.name == "trainer":
                peak_mib = ended.peak_mib
        if unkillable is not None:
            raise unkillable
        return peak_mib, left_behind
