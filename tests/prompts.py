"""What the Messages API refuses to be asked, and the parts of a prompt that it caches."""

import hashlib
import json
from typing import Any

CHARACTERS_A_TOKEN = 4
MAX_BREAKPOINTS = 4
LOOKBACK_BLOCKS = 20  # before a breakpoint, in which an earlier one is still found

COUNTED = {
    *("cache_control", "messages", "model", "output_config", "system", "thinking"),
    *("tool_choice", "tools"),
}
ASKED = COUNTED | {
    *("diagnostics", "inference_geo", "max_tokens", "metadata", "service_tier"),
    *("speed", "stop_sequences", "stream"),
}
TOOL_USE = {"type", "id", "name", "input", "cache_control", "caller", "toolset_name"}
BLOCKS = {
    "text": {"type", "text", "cache_control", "citations"},
    "thinking": {"type", "thinking", "signature"},
    "tool_use": TOOL_USE,
    "tool_result": {"type", "tool_use_id", "content", "is_error", "cache_control"},
}
OPTIONAL = {
    *("cache_control", "caller", "citations", "content", "is_error", "toolset_name"),
}
SPOKEN_BY = {
    "user": {"text", "tool_result"},
    "assistant": {"text", "thinking", "tool_use"},
}

Json = dict[str, Any]


class Refused(Exception):
    """What is answered with an error."""

    def __init__(
        self, message: str, status: int = 400, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}


def text_of(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def tokens(characters: int) -> int:
    return max(1, characters // CHARACTERS_A_TOKEN) if characters else 0


def blocks_of(content: str | list[Json]) -> list[Json]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def opening(body: Json) -> str:
    """Return the text of the system prompt and of the first message."""
    first = body["messages"][0]["content"]
    blocks = [*blocks_of(body.get("system", [])), *blocks_of(first)]
    return "\n".join(block.get("text", "") for block in blocks)


def prompt(body: Json) -> list[tuple[str, Json | None]]:
    """Return the text of each block in the order of the cache, and its breakpoint."""
    blocks = [*body.get("tools", []), *blocks_of(body.get("system", []))]
    parts = [("", block) for block in blocks]
    for message in body["messages"]:
        parts += [(message["role"], block) for block in blocks_of(message["content"])]
    marks = [block.get("cache_control") for _, block in parts]
    marks[-1] = marks[-1] or body.get("cache_control")
    texts = [
        f"{role} {text_of({k: v for k, v in block.items() if k != 'cache_control'})}\n"
        for role, block in parts
    ]
    return list(zip(texts, marks, strict=True))


class Cache:
    """The prefixes that ended at a breakpoint of an earlier prompt, for each model."""

    def __init__(self) -> None:
        self._prefixes: set[str] = set()

    def usage(self, body: Json) -> Json:
        """Return what of a prompt is read from here, and write the rest of it."""
        prefixes: list[tuple[str, int]] = []
        marks: list[tuple[int, str]] = []
        digest, characters = hashlib.sha256(body["model"].encode()), 0
        for at, (text, mark) in enumerate(prompt(body)):
            digest.update(text.encode())
            characters += len(text)
            prefixes.append((digest.hexdigest(), tokens(characters)))
            if mark is not None:
                marks.append((at, mark.get("ttl", "5m")))
        read = 0
        for at, _ in marks:
            for sha256, count in prefixes[max(0, at - LOOKBACK_BLOCKS) : at + 1]:
                read = max(read, count if sha256 in self._prefixes else 0)
        written, cached = {"5m": 0, "1h": 0}, read
        for at, ttl in marks:
            sha256, count = prefixes[at]
            written[ttl] += max(0, count - cached)
            cached = max(cached, count)
            self._prefixes.add(sha256)
        return {
            "input_tokens": prefixes[-1][1] - cached,
            "cache_creation_input_tokens": cached - read,
            "cache_read_input_tokens": read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": written["5m"],
                "ephemeral_1h_input_tokens": written["1h"],
            },
        }


def check(body: Json, known: set[str]) -> None:
    """Refuse a request that the API would refuse.

    Args:
        body: The request.
        known: The names that it may hold.

    Raises:
        Refused: A rule is broken; the text is the API's where it is known.
    """
    for name in sorted(body.keys() - known):
        raise Refused(f"{name}: Extra inputs are not permitted")
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise Refused("model: Field required")
    if "max_tokens" in known and not (
        type(body.get("max_tokens")) is int and body["max_tokens"] >= 1
    ):
        raise Refused("max_tokens: Input should be greater than or equal to 1")
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        raise Refused("messages: at least one message is required")
    choice = body.get("tool_choice", {"type": "auto"}).get("type")
    if choice not in {"auto", "none"}:
        raise Refused(f"tool_choice: this model refuses the forced use {choice!r}")
    thinking = body.get("thinking", {"type": "adaptive"})
    if thinking.get("type") == "enabled" and not (
        1024 <= thinking.get("budget_tokens", 0) < body.get("max_tokens", 2**31)
    ):
        raise Refused("thinking.budget_tokens: must be from 1024 to below max_tokens")
    check_tools(body.get("tools", []))
    for at, block in enumerate(blocks_of(body.get("system", []))):
        check_block(block, f"system.{at}", {"text"})
    check_messages(body["messages"], has_tools=bool(body.get("tools")))
    check_breakpoints([mark for _, mark in prompt(body) if mark is not None])


def check_tools(tools: list[Json]) -> None:
    names = [tool.get("name") for tool in tools]
    if len(set(names)) < len(names):
        raise Refused("tools: Tool names must be unique.")
    for at, tool in enumerate(tools):
        if not tool.get("name"):
            raise Refused(f"tools.{at}.name: Field required")
        if tool.get("input_schema", {}).get("type") != "object":
            raise Refused(f"tools.{at}.input_schema.type: Field required")


def check_block(block: Json, place: str, allowed: set[str]) -> None:
    kind = block.get("type")
    if kind not in allowed:
        raise Refused(f"{place}: Input tag {kind!r} is none of {sorted(allowed)}")
    for name in sorted(block.keys() - BLOCKS[kind]):
        raise Refused(f"{place}.{kind}.{name}: Extra inputs are not permitted")
    for name in sorted(BLOCKS[kind] - OPTIONAL - block.keys()):
        raise Refused(f"{place}.{kind}.{name}: Field required")
    if kind == "text" and not block["text"].strip():
        raise Refused(f"{place}: text content blocks must be non-empty")
    if kind == "tool_use" and not isinstance(block["input"], dict):
        raise Refused(f"{place}.tool_use.input: Input should be an object")
    if kind == "tool_result":
        for at, part in enumerate(blocks_of(block.get("content") or [])):
            check_block(part, f"{place}.tool_result.content.{at}", {"text"})


def check_messages(messages: list[Json], *, has_tools: bool) -> None:
    """Refuse turns out of order, and uses of tools that are not answered at once."""
    asked: list[str] = []  # by the turn before
    used: set[str] = set()
    for at, message in enumerate(messages):
        place, role = f"messages.{at}", ("user", "assistant")[at % 2]
        if message.get("role") != role:
            raise Refused(
                f"{place}: roles must alternate between 'user' and 'assistant', and"
                f" begin with 'user', but found {message.get('role')!r}"
            )
        content = blocks_of(message.get("content", []))
        if not content:
            raise Refused(f"{place}: all messages must have non-empty content")
        for number, block in enumerate(content):
            check_block(block, f"{place}.content.{number}", SPOKEN_BY[role])
        kinds = [block["type"] for block in content]
        if not has_tools and {"tool_use", "tool_result"} & set(kinds):
            raise Refused("tools: must be defined where their use is in the messages")
        check_answers(content, asked, place)
        asked = [block["id"] for block in content if block["type"] == "tool_use"]
        if len(set(asked)) < len(asked) or used & set(asked):
            raise Refused(f"{place}: `tool_use` ids must be unique")
        used |= set(asked)
    if messages[-1]["role"] == "assistant":
        raise Refused(
            "This model does not support assistant message prefill. The conversation"
            " must end with a user message."
        )


def check_answers(content: list[Json], asked: list[str], place: str) -> None:
    kinds = [block["type"] for block in content]
    if kinds != sorted(kinds, key=lambda kind: kind != "tool_result") and asked:
        raise Refused(f"{place}: `tool_result` blocks must come first")
    answered = [b["tool_use_id"] for b in content if b["type"] == "tool_result"]
    if missing := [use for use in asked if use not in answered]:
        raise Refused(
            f"{place}: `tool_use` ids were found without `tool_result` blocks"
            f" immediately after: {', '.join(missing)}."
        )
    if strange := [use for use in answered if use not in asked]:
        raise Refused(
            f"{place}: unexpected `tool_use_id` found in `tool_result` blocks:"
            f" {', '.join(strange)}."
        )
    if len(set(answered)) < len(answered):
        raise Refused(f"{place}: each `tool_use` must have a single result.")


def check_breakpoints(marks: list[Json]) -> None:
    if len(marks) > MAX_BREAKPOINTS:
        raise Refused(
            f"A maximum of {MAX_BREAKPOINTS} blocks with cache_control may be provided."
            f" Found {len(marks)}."
        )
    for mark in marks:
        if mark.get("type") != "ephemeral" or mark.get("ttl", "5m") not in {"5m", "1h"}:
            raise Refused(f"cache_control: {mark} is not ephemeral for 5m or 1h")
