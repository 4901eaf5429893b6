"""A stand-in for the Messages API: its protocol on this machine, and its failures.

It answers from scripts, and holds what it is asked to the rules of the real one. It
differs in three things: a token is four characters, a cached prefix may be as short as
one block, and it is kept for as long as the server lives.

    python -m tests.messages FILE  # a JSON object of what Messages takes; prints the port
"""

import functools
import hashlib
import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from tests.conftest import ROOT
from tests.prompts import (
    ASKED,
    COUNTED,
    Cache,
    Json,
    Refused,
    blocks_of,
    check,
    opening,
    prompt,
    text_of,
    tokens,
)

CHARACTERS_A_DELTA = 24
GARBAGE = "<html>\n\n<body>upstream connect error</body>\n\n</html>\n"
MAX_BODY_BYTES = 32 * 2**20

INTERRUPTED = ({"type": "text", "text": "This answer is here to be interrupted."},)
ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class Messages(ThreadingHTTPServer):
    """Conversations that go as written.

    A reply is ``{"blocks": [...]}``, as the API has them but without ids, with
    ``stop_reason`` where it is none of ``tool_use`` and ``end_turn``, ``stop_details``,
    and ``usage`` where it is not to be counted. ``{"truncated": n}`` the last block, a
    tool's input, ends after n characters, as at max_tokens. Or it is a failure, with or
    without blocks: ``{"status": 529}``, with ``headers`` and ``message``; ``{"cut": n}``
    the connection ends after n events; ``{"ends": n}`` the answer does; ``{"hang": n}``
    nothing comes after n events; ``{"error_event": "overloaded_error"}`` an error comes
    in the middle of the events; ``{"garbage": true}`` the answer is something else;
    ``{"silent": true}`` there is none; ``{"bad_json": true}`` a tool's input is broken.
    An answer that is not streamed is one JSON text, which a failure meets in its
    middle.

    Args:
        scripts: For each conversation ``{"when": [words], "replies": [reply, ...]}``. A
            request belongs to the first script whose words are all in its system prompt
            or first message, and that has a reply left; with ``"repeat": true`` the
            last one never runs out.
        key: The API key that is accepted.
        log: Where a line of JSON is written for each request for a message: ``n`` from
            1, ``when`` of its script or null, ``body_sha256``, ``status``.
    """

    daemon_threads = True

    def __init__(
        self,
        scripts: list[Json],
        *,
        key: str = "sk-test",
        port: int = 0,
        log: Path | str | None = None,
    ) -> None:
        self.scripts, self.key = scripts, key
        self.log = log
        self.requests: list[Json] = []  # for messages, in order of arrival
        self.counts: list[Json] = []  # for count_tokens
        self.seen = threading.Condition()  # notified of each request for a message
        self.hanging = threading.Event()  # set where nothing comes any more
        self.released = threading.Event()
        self._used: Counter[int] = Counter()
        self._cache = Cache()
        # Of the scripts, not of what was sent: a conversation outlives a server.
        self._signed = {
            (block["thinking"], signature(block))
            for script in scripts
            for reply in script["replies"]
            for block in reply.get("blocks", ())
            if block["type"] == "thinking"
        }
        self._thoughts: dict[str, list[Json]] = {}  # before a tool use, by its id
        super().__init__(("127.0.0.1", port), Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def note(self, headers: Json, body: Json) -> int:
        """Return the number of this request."""
        with self.seen:
            self.requests.append({"headers": headers, "body": body})
            self.seen.notify_all()
            return len(self.requests)

    def write(
        self, number: int, when: list[str] | None, raw: bytes, status: int
    ) -> None:
        if self.log is None:
            return
        sha256 = hashlib.sha256(raw).hexdigest()
        line = {"n": number, "when": when, "body_sha256": sha256, "status": status}
        with self.seen, open(self.log, "a") as file:
            print(json.dumps(line), file=file)

    def take(self, body: Json) -> tuple[Json, Json]:
        """Return the script that wants this request, and its next reply."""
        text = opening(body)
        unmet = []
        with self.seen:
            for number, script in enumerate(self.scripts):
                missing = [word for word in script["when"] if word not in text]
                replies, used = script["replies"], self._used[number]
                if missing:
                    unmet.append(f"{script['when']} lacks {missing}")
                elif used >= len(replies) and not script.get("repeat"):
                    unmet.append(f"{script['when']} has given its {used} replies")
                else:
                    self._used[number] += 1
                    return script, replies[min(used, len(replies) - 1)]
        raise Refused(f"No script wants this request: {'; '.join(unmet)}.")

    def check_thinking(self, body: Json) -> None:
        """Refuse thinking that is not as it was given."""
        for at, message in enumerate(body["messages"]):
            content = blocks_of(message["content"])
            thoughts = [block for block in content if block["type"] == "thinking"]
            for block in thoughts:
                if (block["thinking"], block["signature"]) not in self._signed:
                    raise Refused(
                        f"messages.{at}: Invalid `signature` in `thinking` block"
                    )
            for block in content:
                if block["type"] != "tool_use":
                    continue
                if self._thoughts.get(block["id"], thoughts) != thoughts:
                    raise Refused(
                        f"messages.{at}: Expected the `thinking` blocks of the turn,"
                        f" but found {len(thoughts)}. They cannot be modified."
                    )

    def message(self, number: int, raw: bytes, body: Json, reply: Json) -> Json:
        """Return the message that a reply is, as the API has it without a stream."""
        unique = hashlib.sha256(f"{number} ".encode() + raw).hexdigest()
        content: list[Json] = []
        for at, block in enumerate(reply.get("blocks", INTERRUPTED)):
            if block["type"] == "tool_use":
                use = f"toolu_{unique[:20]}{at:02}"
                content.append(block | {"id": use, "caller": {"type": "direct"}})
            elif block["type"] == "thinking":
                content.append(block | {"signature": signature(block)})
            else:
                content.append(block)
        thoughts = [block for block in content if block["type"] == "thinking"]
        uses = [block["id"] for block in content if block["type"] == "tool_use"]
        self._thoughts.update(dict.fromkeys(uses, thoughts))
        with self.seen:
            usage = self._cache.usage(body)
        usage |= {"output_tokens": tokens(len(text_of(content)))}
        usage |= {"service_tier": "standard"}
        if thoughts:
            count = tokens(sum(len(block["thinking"]) for block in thoughts))
            usage["output_tokens_details"] = {"thinking_tokens": count}
        stop = "tool_use" if uses else "end_turn"
        return {
            "id": f"msg_{unique[:22]}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": content,
            "stop_reason": reply.get("stop_reason", stop),
            "stop_sequence": None,
            "stop_details": reply.get("stop_details"),
            "usage": usage | reply.get("usage", {}),
        }

    def __enter__(self) -> Self:
        self._thread = threading.Thread(
            target=functools.partial(self.serve_forever, poll_interval=0.01)
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that hangs up: it was killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def signature(block: Json) -> str:
    default = hashlib.sha256(block["thinking"].encode()).hexdigest()
    return block.get("signature", default)


def pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), CHARACTERS_A_DELTA):
        yield text[start : start + CHARACTERS_A_DELTA]


def deltas(block: Json, reply: Json, *, is_last: bool) -> tuple[Json, list[Json]]:
    """Return how a block starts, and what is added to it."""
    if block["type"] == "text":
        added = [{"type": "text_delta", "text": part} for part in pieces(block["text"])]
        return block | {"text": ""}, added
    if block["type"] == "thinking":
        thoughts = pieces(block["thinking"])
        added = [{"type": "thinking_delta", "thinking": part} for part in thoughts]
        added.append({"type": "signature_delta", "signature": block["signature"]})
        return block | {"thinking": "", "signature": ""}, added
    text = text_of(block["input"])
    if reply.get("bad_json"):
        text = "{=" + text[1:]
    if is_last:
        text = text[: reply.get("truncated", len(text))]
    parts = ["", *pieces(text)]
    added = [{"type": "input_json_delta", "partial_json": part} for part in parts]
    return block | {"input": {}}, added


def events(message: Json, reply: Json) -> Iterator[Json]:
    """Yield what a message is streamed as."""
    content, usage = message["content"], message["usage"]
    began = {"content": [], "stop_reason": None, "stop_details": None}
    began["usage"] = usage | {"output_tokens": 1}
    began["usage"].pop("output_tokens_details", None)
    yield {"type": "message_start", "message": message | began}
    yield {"type": "ping"}
    for at, block in enumerate(content):
        start, added = deltas(block, reply, is_last=at == len(content) - 1)
        yield {"type": "content_block_start", "index": at, "content_block": start}
        for delta in added:
            yield {"type": "content_block_delta", "index": at, "delta": delta}
        yield {"type": "content_block_stop", "index": at}
    names = ("stop_reason", "stop_sequence", "stop_details")
    unsaid = ("cache_creation", "service_tier")
    yield {
        "type": "message_delta",
        "delta": {name: message[name] for name in names},
        "usage": {name: n for name, n in usage.items() if name not in unsaid},
    }
    yield {"type": "message_stop"}


class Answer(BaseHTTPRequestHandler):
    server: Messages
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # events are small, and each is sent at once

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.refuse(Refused("Not Found", 404), "req_0")

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        if self.path == "/v1/messages/count_tokens":
            self.count(headers, body, raw)
        elif self.path == "/v1/messages":
            self.converse(headers, body, raw)
        else:
            self.refuse(Refused("Not Found", 404), "req_0")

    def check(self, headers: Json, body: Any, raw: bytes, known: set[str]) -> None:
        key = self.server.key
        given = headers.get("authorization"), headers.get("x-api-key")
        if f"Bearer {key}" != given[0] and key != given[1]:
            raise Refused("invalid x-api-key", 401)
        if "anthropic-version" not in headers:
            raise Refused("anthropic-version: header is required")
        if len(raw) > MAX_BODY_BYTES:
            raise Refused("Request exceeds the maximum size", 413)
        if not isinstance(body, dict):
            raise Refused("The request body is not valid JSON")
        check(body, known)
        self.server.check_thinking(body)

    def count(self, headers: Json, body: Any, raw: bytes) -> None:
        self.server.counts.append({"headers": headers, "body": body})
        try:
            self.check(headers, body, raw, COUNTED)
        except Refused as refused:
            self.refuse(refused, "req_0")
            return
        total = tokens(sum(len(text) for text, _ in prompt(body)))
        self.answer_json(200, {"input_tokens": total}, {"request-id": "req_0"})

    def converse(self, headers: Json, body: Any, raw: bytes) -> None:
        server = self.server
        number, when = server.note(headers, body), None
        request_id = f"req_{number:06}"
        try:
            self.check(headers, body, raw, ASKED)
            script, reply = server.take(body)
            when = script["when"]
            if "status" in reply:
                message = reply.get("message", ERRORS.get(reply["status"], "Error"))
                raise Refused(message, reply["status"], reply.get("headers"))
        except Refused as refused:
            server.write(number, when, raw, refused.status)
            self.refuse(refused, request_id)
            return
        server.write(number, when, raw, 200)
        if "silent" in reply:
            self.hang()
            self.close_connection = True
            return
        message = server.message(number, raw, body, reply)
        send = self.stream if body.get("stream") else self.send_whole
        send(message, reply, {"request-id": request_id} | reply.get("headers", {}))

    def stream(self, message: Json, reply: Json, headers: dict[str, str]) -> None:
        kind = {"Content-Type": "text/event-stream; charset=utf-8"}
        self.begin(200, kind | {"Transfer-Encoding": "chunked"} | headers)
        sent = list(events(message, reply))
        if "error_event" in reply:
            error = {"type": reply["error_event"], "message": "Overloaded"}
            sent[len(sent) // 2 :] = [{"type": "error", "error": error}]
        if "garbage" in reply:
            sent = []
            self.chunk(GARBAGE)
        stop = min(reply.get(kind, len(sent)) for kind in ("cut", "ends", "hang"))
        for event in sent[:stop]:
            self.chunk(f"event: {event['type']}\ndata: {text_of(event)}\n\n")
        if not self.is_interrupted(reply):
            self.chunk("")

    def send_whole(self, message: Json, reply: Json, headers: dict[str, str]) -> None:
        if "error_event" in reply:
            status = {kind: at for at, kind in ERRORS.items()}[reply["error_event"]]
            self.refuse(Refused("Overloaded", status), headers["request-id"])
            return
        content = GARBAGE.encode() if "garbage" in reply else text_of(message).encode()
        half = content[: len(content) // 2]
        stated = str(len(half if "ends" in reply else content))
        kind = "text/html" if "garbage" in reply else "application/json"
        self.begin(200, {"Content-Type": kind, "Content-Length": stated} | headers)
        is_whole = not reply.keys() & {"cut", "ends", "hang"}
        self.wfile.write(content if is_whole else half)
        self.is_interrupted(reply)

    def is_interrupted(self, reply: Json) -> bool:
        if "hang" in reply:
            self.hang()
        if not reply.keys() & {"cut", "hang"}:
            return False
        self.close_connection = True
        return True

    def hang(self) -> None:
        self.server.hanging.set()
        self.server.released.wait()

    def chunk(self, text: str) -> None:
        """Send a piece of an answer; the empty one ends it."""
        content = text.encode()
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")

    def refuse(self, refused: Refused, request_id: str) -> None:
        kind = ERRORS.get(refused.status, "api_error")
        error = {"type": kind, "message": str(refused)}
        body = {"type": "error", "error": error, "request_id": request_id}
        headers = {"request-id": request_id} | refused.headers
        self.answer_json(refused.status, body, headers)

    def answer_json(self, status: int, body: Json, headers: dict[str, str]) -> None:
        content = text_of(body).encode()
        kind = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        self.begin(status, kind | headers)
        self.wfile.write(content)

    def begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


class MessagesProcess:
    """A server in a process of its own.

    Args:
        folder: Where its settings are written.
        settings: What ``Messages`` takes, as JSON has it.
        port: One of an earlier server, or 0.
    """

    def __init__(self, folder: Path, settings: Json, port: int = 0) -> None:
        file = folder / "messages.json"
        file.write_text(json.dumps(settings | {"port": port}, default=str))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.messages", str(file)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


if __name__ == "__main__":
    with Messages(**json.loads(Path(sys.argv[1]).read_text())) as server:
        print(server.server_port, flush=True)
        signal.pause()
