"""Several conversations at once, beside what trains."""

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence

import attrs

from core.agent.budget import Budget, Spent
from core.agent.calls import Barred, Correspondent, Stopped, Totals, Unanswered
from core.agent.conversation import Assignment, Conversation, Outcome
from core.agent.dryrun import Ground
from core.settings import AgentSettings
from core.spec import Case
from core.store.history import Trace
from core.store.journal import Journal


def assignments(cases: Sequence[Case], journal: Journal) -> list[Assignment]:
    """Return what is to be written for *cases*: one codemod an experiment.

    Raises:
        StoreError: The record of an earlier attempt is damaged.
    """
    grouped: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        grouped.setdefault((case.file, case.name), []).append(case)
    past = [
        journal.note("attempt", name)["attempt"] for name in journal.notes("attempt")
    ]
    past.sort(key=lambda attempt: attempt["ended_at"])
    found = []
    for (file, name), own in grouped.items():
        earlier = tuple(
            attempt
            for attempt in past
            if (attempt["id"], attempt["spec"]) == (f"{file}::{name}", own[0].asked)
        )
        found.append(
            Assignment(cases=tuple(own), ordinal=len(earlier), earlier=earlier)
        )
    return found


@attrs.define(eq=False)
class Writer:
    """Writes codemods in threads of its own, and tells of each when it is done.

    Attributes:
        settings: Model and limits.
        ground: What codemods are tried on.
        correspondent: Who asks.
        history: What was done to a symbol.
        done: Told of each outcome, or of the error that broke the session's machinery,
            from a thread of the writer's.
        show: Told, from these threads too, what is going on and what it came to so far;
            an empty text at the end.
    """

    settings: AgentSettings
    ground: Ground
    correspondent: Correspondent
    history: Callable[[str], Sequence[Trace]]
    done: Callable[[Outcome | Exception], None]
    show: Callable[[str], None] = lambda text: None
    _doing: dict[str, str] = attrs.field(factory=dict)
    _waiting: "queue.SimpleQueue[Assignment]" = attrs.field(factory=queue.SimpleQueue)

    def start(self, assigned: Sequence[Assignment]) -> None:
        """Begin with *assigned*, as many at once as the settings say."""
        for assignment in assigned:
            self._waiting.put(assignment)
        for number in range(min(self.settings.conversations, len(assigned))):
            # Daemons: a session that ends does not wait for a server that hangs.
            threading.Thread(
                target=self._work, name=f"writer {number}", daemon=True
            ).start()

    def stop(self) -> None:
        """Ask nothing more; answers that have come are kept."""
        self.correspondent.close()

    @property
    def totals(self) -> Totals:
        """What the calls come to so far."""
        return self.correspondent.totals

    @property
    def budget(self) -> Budget:
        """What may be spent, and was."""
        return self.correspondent.budget

    def _work(self) -> None:
        with contextlib.suppress(queue.Empty, Stopped):
            while True:
                assignment = self._waiting.get_nowait()
                try:
                    self.done(self._outcome(assignment))
                except Stopped:
                    raise
                except Exception as error:  # whoever waits for it must not wait on
                    self.done(error)
                finally:
                    self._doing.pop(assignment.id, None)
                    self._tell()

    def _tell(self) -> None:
        """Say what is going on, in a line."""
        doing = dict(self._doing)
        budget = f"${self.budget.spent_usd:.2f} of ${self.budget.usd:g}"
        if not doing:
            self.show("")
            return
        name, what = next(iter(doing.items()))
        more = f" (+{len(doing) - 1})" if len(doing) > 1 else ""
        self.show(f"agent, {budget}: {name.rpartition('::')[2]}, {what}{more}")

    def _outcome(self, assignment: Assignment) -> Outcome:
        """Return what came of an assignment, whatever the server does.

        Raises:
            Stopped: The session ends.
            DeltaspecError: What codemods are tried on does not work.
            OSError: A file cannot be written.
        """

        def show(text: str) -> None:
            self._doing[assignment.id] = text
            self._tell()

        conversation = Conversation(
            assignment=assignment,
            ground=self.ground,
            correspondent=self.correspondent,
            settings=self.settings,
            history=self.history,
            show=show,
        )
        try:
            return conversation.run()
        except Spent as spent:
            return self._unfinished(assignment, f"{spent}: raise --usd")
        except (Barred, Unanswered) as why:
            return self._unfinished(assignment, str(why))

    def _unfinished(self, assignment: Assignment, reason: str) -> Outcome:
        """Return that an attempt waits: what was answered is kept, and used again."""
        return Outcome(assignment=assignment, reason=reason, is_over=False)
