"""Listen to the processes of a trial: what they say, how they end, how long it takes."""

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

from core.channel import BadLine
from core.launch import Crash, Status, Step
from core.launch.child import Child, Unkillable
from core.launch.clock import Clock
from core.launch.log import escaped
from core.profile import Profile

VMSTAT = Path("/proc/vmstat")
HANG_STEPS = 20  # a step that takes twenty times the median hangs, however slow it is
WALL_FACTOR = 10  # wall-clock seconds that a second of the budget may take
MAX_TOKENS = 2**53  # a child can claim anything, and a column holds 63 bits
GRACE_STEPS = 3  # two steps may be queued when the budget ends
# What CUDA says when the machine failed and not the module.
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
    ("trainer", "train"): {"step", "trained", "saved"},
    ("trainer", "save"): {"saved"},
    ("server", "start"): {"ready"},
    ("server", "serve"): {"serving"},
    ("judge", "start"): {"ready"},
    ("judge", "score"): {"alive", "scored"},
}


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
    def start(cls, profile: Profile, pid: int) -> "Budget":
        """Begin now, on the clock of the process *pid*."""
        clock = Clock.of(profile.clock, pid)
        began, seconds = clock.now(), profile.budget_seconds
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
        show: Called at each step and phase.
        look: Called while the trial trains, to look at its GPU.
        children: The processes, by name.
        said: What was heard and not yet asked for.
        curve: Every step that was heard of.
        phase: What the trial is at.
        phase_seconds: How long the earlier phases took.
        budget: What training may take, once it has begun.
    """

    profile: Profile
    stop_fd: int
    show: Callable[[Progress], None]
    look: Callable[[], None] = lambda: None
    children: dict[str, Child] = attrs.field(factory=dict)
    said: list[tuple[str, dict[str, Any]]] = attrs.field(factory=list)
    curve: list[Step] = attrs.field(factory=list)
    phase: str = "start"
    phase_seconds: dict[str, float] = attrs.field(factory=dict)
    budget: Budget | None = None
    _oom_kills: int = attrs.field(factory=kernel_oom_kills)
    _phase_began: float = attrs.field(factory=time.monotonic)
    _last_sign: float = attrs.field(factory=time.monotonic)

    def begin(self) -> float:
        """Begin the first phase: the device is free now.  Returns the time."""
        self._phase_began = self._last_sign = time.monotonic()
        self._oom_kills = kernel_oom_kills()
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
    ) -> dict[str, Any]:
        """Return the message *event* of the child *name*.

        Args:
            name: The child that has to say it.
            event: What it has to say.
            deadline: When the wait for it is a hang.
            budget: What training may take; a step that is still under way when it is
                used up has the grace that the profile allows.

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
                left = min(self.grace() - budget.overrun(), budget.wall_ends_at - now)
                if left <= 0:
                    raise self.overran(name, budget)
            self.listen(min(limit - now, left))

    def overran(self, name: str, budget: Budget) -> Failed:
        """Return the failure of a trainer that did not stop when it had to."""
        seconds = budget.overrun()
        self.children[name].end(dump=True)
        return Failed(
            Status.CRASHED,
            f"training was still under way {seconds:.1f} s after its budget of "
            f"{self.profile.budget_seconds:g} s (step {len(self.curve)}).",
            Crash.OVERRAN,
        )

    def patience(self) -> float:
        """Return how long the present phase may go without a sign of life, in seconds."""
        if self.phase in ("start", "save", "serve"):
            return math.inf  # they have a deadline instead
        return max(self.profile.hang_seconds, HANG_STEPS * self.median_step())

    def grace(self) -> float:
        """Return how long after the budget the last steps may end, in seconds."""
        return max(self.profile.grace_seconds, GRACE_STEPS * self.median_step())

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
        # While it scores, the judge waits for the server.
        silent = "server" if self.phase == "score" else awaited
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
            timeout = None if math.isinf(seconds) else max(seconds, 0.0)
            ready = [key for key, _ in selector.select(timeout)]
        if any(key.fd == self.stop_fd for key in ready):
            raise Stopped
        # The judge first: a server whose judge has gone fails as well, and is not to blame.
        for key in sorted(ready, key=lambda key: key.data.name != "judge"):
            self.take(key.data)
        if self.phase == "train":
            self.look()

    def take(self, child: Child) -> None:
        """Take in what one child says."""
        try:
            messages = child.events.available()
        except BadLine as bad:
            raise self.blame(child.name, f"the {child.name} sent {bad}.") from bad
        for message in messages:
            self._last_sign = time.monotonic()
            match message:
                case {"event": "failed", "crash": str(crash), "message": str(text)}:
                    known = crash if crash in set(Crash) else Crash.EXCEPTION
                    raise self.blame(child.name, text, Crash(known))
                case {"event": str(event)} if not self.may_say(child.name, event):
                    raise self.blame(
                        child.name,
                        f"the {child.name} said {event[:40]!r} in phase {self.phase}.",
                    )
                case {
                    "event": "step",
                    "loss_nats": float(loss),
                    "tokens": int(tokens),
                } if type(tokens) is int and 0 <= tokens < MAX_TOKENS:
                    self.see_step(loss, tokens)
                case {"event": "alive"}:
                    pass
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
        over = event in said or ("trained" in said and event == "step")
        return event in MAY_SAY.get((name, self.phase), ()) and not over

    def may_have_ended(self, name: str) -> bool:
        """Return whether *name* has said all that it had to say."""
        last = {"trainer": "saved", "judge": "scored"}.get(name)
        return any(
            speaker == name and message.get("event") == last
            for speaker, message in self.said
        )

    def see_step(self, loss: float, tokens: int) -> None:
        """Add a step to the curve, at the time when we heard of it."""
        seconds = 0.0 if self.budget is None else self.budget.used()
        self.curve.append(
            Step(
                step=len(self.curve) + 1,
                seconds=seconds,
                tokens=tokens,
                loss_nats=loss,
            )
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
            by = "with its warden" if code is None else signal.Signals(-code).name
            return Failed(
                Status.KILLED, f"the {name} was killed ({by}) in phase {self.phase}."
            )
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        return self.blame(
            name, f"the {name} ended {how} in phase {self.phase}, without a result."
        )

    def blame(self, name: str, message: str, crash: Crash = Crash.EXCEPTION) -> Failed:
        """Return a failure: the candidate's own, unless it is ours or the machine's."""
        message = escaped(message)
        if name == "judge" or any(error in message for error in MACHINE_ERRORS):
            return Failed(Status.INFRASTRUCTURE, message)
        return Failed(Status.CRASHED, message, crash)

    def end(self) -> tuple[float | None, int]:
        """End every child; return the trainer's peak MiB and what was left behind.

        Raises:
            Unkillable: One could not be ended; all others were.
        """
        peak_mib, left_behind, unkillable = None, 0, None
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
