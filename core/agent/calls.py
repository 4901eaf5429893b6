"""One call of a model: asked, retried, journalled, and never paid twice.

An answer is kept before it is used.  A conversation that was killed asks the same
questions again, in the same order, and finds their answers here.
"""

import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs

from core.agent.budget import Budget
from core.agent.prices import Price, Usage
from core.errors import SessionError
from core.launch.log import escaped
from core.settings import AgentSettings
from core.store.journal import Journal, new_id

if TYPE_CHECKING:
    import anthropic

KEY = "ANTHROPIC_API_KEY"
CHARACTERS_A_TOKEN = 2  # at least, in code and prose: what a prompt can cost at most
SHOWN_CHARACTERS = 300  # of what a server says of a failure
LONGEST_PAUSE_SECONDS = 8.0  # before a stream that was cut is asked for again
BARRED = (401, 402, 403, 404)  # key, account, permission, model
# A question whose answer ended so is not asked again.
ENDINGS = {
    "end_turn": "answered",
    "tool_use": "answered",
    "stop_sequence": "answered",
    "max_tokens": "truncated",
    "model_context_window_exceeded": "truncated",
    "refusal": "refused",
}


class Stopped(Exception):
    """The session ends."""


class Unanswered(Exception):
    """A question got no answer; the same question may get one later."""


class Barred(Exception):
    """The server takes no question of ours: key, account or model."""


@attrs.frozen(kw_only=True)
class Question:
    """What is asked, and for whom.

    Attributes:
        purpose: ``implement`` or ``check``.
        id: The experiment.
        attempt: To which attempt at it the question belongs.
        system: Blocks, the last of which ends the part that all questions share.
        messages: The conversation so far.
        tools: What may be called.
        schema: Of the answer, where it is data.
    """

    purpose: str
    id: str
    attempt: str
    system: tuple[str, ...]
    messages: Sequence[dict[str, Any]]
    tools: Sequence[dict[str, Any]] = ()
    schema: dict[str, Any] | None = None

    def body(self, settings: AgentSettings) -> dict[str, Any]:
        """Return what is sent."""
        system = [{"type": "text", "text": text} for text in self.system]
        system[-1]["cache_control"] = {"type": "ephemeral"}
        body = {
            "model": settings.model,
            "max_tokens": settings.output_tokens,
            "system": system,
            "messages": list(self.messages),
        }
        if self.tools:
            body["tools"] = list(self.tools)
            # The conversation grows: what was said is read from the cache, too.
            body["cache_control"] = {"type": "ephemeral"}
        if self.schema is not None:
            output = {"type": "json_schema", "schema": self.schema}
            body["output_config"] = {"format": output}
        return body


@attrs.frozen(kw_only=True)
class Answer:
    """What came back.

    Attributes:
        outcome: ``answered``, ``truncated``, ``refused`` or ``empty``.
        content: Blocks, as they can be sent back.
        usd: What it cost; 0 for one that was known.
        is_known: It was asked before, and kept.
    """

    outcome: str
    content: list[dict[str, Any]]
    usd: float
    is_known: bool = False

    def text(self) -> str:
        """Return what it says."""
        return "".join(b["text"] for b in self.content if b["type"] == "text")

    def tool_uses(self) -> list[dict[str, Any]]:
        """Return what it calls."""
        return [block for block in self.content if block["type"] == "tool_use"]


@attrs.define(eq=False)
class Totals:
    """What the calls of a session come to.

    Attributes:
        calls: Made, those that failed included.
        known: Answers that were known already.
        prompt_tokens: Of all prompts.
        cached_tokens: Of these, read from a cache.
        output_tokens: Of all answers.
    """

    calls: int = 0
    known: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


@attrs.define(eq=False)
class Correspondent:
    """Whoever asks; several threads may.

    Attributes:
        settings: Model and limits.
        price: Of the model.
        budget: Of the session.
        journal: Where calls are kept.
        totals: What they come to so far.
    """

    settings: AgentSettings
    price: Price
    budget: Budget
    journal: Journal
    totals: Totals = attrs.field(factory=Totals)
    _client: "anthropic.Anthropic" = attrs.field(init=False)
    _stop: threading.Event = attrs.field(factory=threading.Event)
    _mutex: threading.Lock = attrs.field(factory=threading.Lock)
    _is_asked: bool = False
    _is_heard: threading.Event = attrs.field(factory=threading.Event)
    _barred: str = ""

    def __attrs_post_init__(self) -> None:
        self._client = _client(self.settings)

    def close(self) -> None:
        """Ask nothing more."""
        self._stop.set()
        self._is_heard.set()
        self._client.close()

    def ask(self, question: Question) -> Answer:
        """Return the answer, the one that is known if the question was asked before.

        Raises:
            Spent: What it could cost is more than is left.
            Unanswered: There is none, after all retries.
            Barred: The server takes no question of ours.
            Stopped: The session ends.
        """
        body = question.body(self.settings)
        asked = _text(_without_results(body))
        digest = _digest(f"{question.attempt} {asked}")
        known = self._known(digest)
        if known is not None:
            with self._mutex:
                self.totals.known += 1
            return known
        at_most_usd = self.price.at_most_usd(
            len(_text(body)) // CHARACTERS_A_TOKEN, self.settings.output_tokens
        )
        for retry in range(self.settings.retries + 1):
            with self.budget.held(at_most_usd):
                answer, why = self._try(question, body, digest)
            if answer is not None:
                return answer
            if retry < self.settings.retries:
                pause = min(LONGEST_PAUSE_SECONDS, 0.5 * 2**retry)
                self._stop.wait(pause * random.uniform(0.5, 1.0))
        raise Unanswered(f"{why}, {self.settings.retries + 1} times")

    def _known(self, digest: str) -> Answer | None:
        """Return an answer that was paid for."""
        names = self.journal.folder.glob(f"*-{digest}.call.json")
        for name in sorted(path.name.removesuffix(".call.json") for path in names):
            record = self.journal.note("call", name)
            if record["answer"] is not None:
                return Answer(
                    outcome=record["call"]["outcome"],
                    content=record["answer"],
                    usd=0.0,
                    is_known=True,
                )
        return None

    def _try(
        self, question: Question, body: dict[str, Any], digest: str
    ) -> tuple[Answer | None, str]:
        """Ask once, in turn.

        The first question goes alone until its answer begins: what all share is in the
        server's cache then, and a key that is refused is refused once.

        Returns:
            The answer; or None, and why it broke off.
        """
        with self._mutex:
            is_first, self._is_asked = not self._is_asked, True
        if not is_first:
            self._is_heard.wait()
        if self._stop.is_set():
            raise Stopped
        if self._barred:
            raise Barred(self._barred)
        try:
            return self._stream(question, body, digest)
        except Barred as barred:
            self._barred = str(barred)
            raise
        finally:
            self._is_heard.set()

    def _stream(
        self, question: Question, body: dict[str, Any], digest: str
    ) -> tuple[Answer | None, str]:
        """Ask once; the client itself retries what failed before an answer began."""
        # An optional package, which takes more than a second to import
        import anthropic
        import httpx2

        began, started_at = time.monotonic(), datetime.now(UTC)
        request, message, failure = None, None, ""
        error: Exception | None = None
        try:
            with self._client.messages.stream(**body) as stream:
                request = stream.request_id
                for event in stream:
                    if message is not None or event.type == "message_start":
                        message = stream.current_message_snapshot
                        self._is_heard.set()
                    if self._stop.is_set():
                        raise Stopped
        except anthropic.APIStatusError as caught:
            error, failure = caught, caught.api_message or caught.message
        # The client wraps what fails before the first byte of an answer, and no more.
        except (anthropic.APIError, httpx2.HTTPError, ValueError) as caught:
            error, failure = caught, str(caught) or type(caught).__name__
        if error is None and (message is None or message.stop_reason not in ENDINGS):
            failure = "the answer ended before its end"
        elif error is None and any(
            block.type == "tool_use" and not isinstance(block.input, dict)
            for block in message.content
        ):
            failure = "a tool was called with something else than an object"
        row = {
            "call": f"{new_id()}-{digest}",
            "attempt": question.attempt,
            "id": question.id,
            "purpose": question.purpose,
            "model": self.settings.model,
            "prompt": _digest(_text(body)),
            "latency_seconds": time.monotonic() - began,
            "request": request,
            "started_at": started_at.replace(tzinfo=None).isoformat(),
        }
        # A proxy may say what it was given.
        failure = failure.replace(self._client.api_key or KEY, KEY)
        failure = escaped(failure)[:SHOWN_CHARACTERS]
        if failure:
            outcome = "failed" if request is None else "cut"
            self._keep({**row, "outcome": outcome, "message": failure}, message, None)
            if isinstance(error, anthropic.APIStatusError) and request is None:
                said = f"the server said {error.status_code}: {failure}"
                raise (Barred if error.status_code in BARRED else Unanswered)(said)
            if request is None:
                raise Unanswered(f"the server cannot be asked: {failure}")
            return None, failure
        content = _content(message)
        outcome = ENDINGS[message.stop_reason]
        if outcome == "answered" and not content:
            outcome = "empty"
        row |= {"outcome": outcome, "message": None}
        usd = self._keep(row, message, content)
        return Answer(outcome=outcome, content=content, usd=usd), ""

    def _keep(
        self, row: dict[str, Any], message: Any, content: list[dict[str, Any]] | None
    ) -> float:
        """Journal a call, before anything is made of it; return what it cost.

        Args:
            row: Its row, without what it cost.
            message: What had come, if anything had.
            content: The answer, if there is a whole one.
        """
        is_whole = content is not None
        usage = None if message is None else _usage(message, is_whole=is_whole)
        usd = None if usage is None else self.price.usd(usage)
        with self._mutex:
            self.totals.calls += 1
            if usage is not None:
                self.totals.prompt_tokens += usage.prompt_tokens
                self.totals.cached_tokens += usage.cache_read_tokens
                self.totals.output_tokens += usage.output_tokens
        self.budget.spend(usd or 0.0)
        row = {
            **dict.fromkeys(field.name for field in attrs.fields(Usage)),
            **({} if usage is None else attrs.asdict(usage)),
            **row,
            "usd": usd,
        }
        self.journal.keep_note("call", row["call"], {"call": row, "answer": content})
        return usd or 0.0


def _text(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _without_results(body: dict[str, Any]) -> dict[str, Any]:
    """Return a question without what tools gave.

    That may be something else after a restart: the history has grown.  The answers so
    far say where in a conversation a question stands.
    """
    messages = [
        {
            **message,
            "content": [
                {**block, "content": ""} if block["type"] == "tool_result" else block
                for block in message["content"]
            ],
        }
        for message in body["messages"]
    ]
    return {**body, "messages": messages}


def _content(message: Any) -> list[dict[str, Any]]:
    """Return the blocks of an answer as they can be sent back, and as they are kept."""
    blocks = [block.to_dict(mode="json", warnings=False) for block in message.content]
    # A text of nothing is refused; half a surrogate pair cannot be sent.
    spoken = [b for b in blocks if b["type"] != "text" or b["text"].strip()]
    # In the order of the journal: else a server's cache does not know them again.
    plain = json.dumps(spoken, ensure_ascii=False, sort_keys=True)
    return json.loads(plain.encode(errors="replace"))


def _usage(message: Any, *, is_whole: bool) -> Usage:
    """Return the tokens of a call; of one that was cut, at least what had come."""
    said = message.usage
    output_tokens = said.output_tokens
    if not is_whole:  # the server counts at the end
        came = sum(
            len(json.dumps(block.to_dict(mode="json", warnings=False)))
            for block in message.content
        )
        output_tokens = max(output_tokens, came // CHARACTERS_A_TOKEN)
    return Usage(
        input_tokens=said.input_tokens,
        output_tokens=output_tokens,
        cache_read_tokens=said.cache_read_input_tokens or 0,
        cache_write_tokens=said.cache_creation_input_tokens or 0,
    )


def _client(settings: AgentSettings) -> "anthropic.Anthropic":
    """Return the client, with the key of the environment.

    Raises:
        SessionError: There is no key, or no client.
    """
    try:
        import anthropic  # an optional package
    except ImportError as error:
        raise SessionError(
            "the package anthropic is not installed, and the agent asks through it.",
            hint="install the extra agent: pip install -c constraints.txt -e "
            "'.[agent]'.",
        ) from error
    key = os.environ.get(KEY, "")
    if not key:
        raise SessionError(
            f"{KEY} is not set, and the agent asks the Anthropic API.",
            hint=f"set {KEY} in the environment, or write the codemods yourself or with "
            "a coding agent of your own: AGENTS.md says how.",
        )
    return anthropic.Anthropic(
        api_key=key,
        max_retries=settings.retries,
        timeout=anthropic.Timeout(settings.timeout_seconds, connect=10.0),
        open_telemetry=False,  # what is asked goes to the server alone
    )
