"""The real client asks the stand-in for the Messages API, and meets its failures."""

import json
import threading

import httpx2
import pytest

from tests.messages import Messages, MessagesProcess

anthropic = pytest.importorskip("anthropic", reason="the extra agent is not installed")

MODEL = "claude-opus-5-5"
QUESTION = {"role": "user", "content": "How wide is a window?"}
TOOL = {"name": "write", "description": "Write.", "input_schema": {"type": "object"}}
TEXT = {"type": "text", "text": "A quarter of it, as ½ is \u2028 too much, " * 3}
THINKING = {"type": "thinking", "thinking": "What does the spec say?", "signature": "s"}
USE = {"type": "tool_use", "name": "write", "input": {"source": "WINDOW = 4\n" * 9}}
LATER = {"type": "tool_use", "name": "write", "input": {"source": "", "n": [1, None]}}
ALL = [THINKING, TEXT, USE, LATER]
MARK = {"type": "ephemeral"}
FAILURES = (httpx2.HTTPError, anthropic.AnthropicError, AssertionError, ValueError)
# Long enough for an answer on a busy machine: silence is all that lasts longer.
TIMEOUT = httpx2.Timeout(60, read=1)
EVENTS_OF_TEXT = 2 + 7 + 2  # start and ping; the block; the end


def conversation(*replies, when=()):
    return {"when": list(when), "replies": list(replies)}


def says(*blocks, **more):
    return conversation({"blocks": list(blocks), **more})


def client_of(server, **options):
    settings = {"api_key": "sk-test", "max_retries": 0} | options
    return anthropic.Anthropic(base_url=server.url, **settings)


def asked(client, *messages, **options):
    settings = {"model": MODEL, "max_tokens": 2000, "tools": [TOOL]} | options
    with client.messages.stream(messages=messages or [QUESTION], **settings) as stream:
        return stream.get_final_message()


def failure(server, **options):
    """Return what the client raises, and what had arrived until then."""
    settings = {"model": MODEL, "max_tokens": 2000, "tools": [TOOL]}
    with (
        client_of(server, **options) as client,
        client.messages.stream(messages=[QUESTION], **settings) as stream,
    ):
        with pytest.raises(FAILURES) as caught:
            stream.get_final_message()
        try:
            arrived = stream.current_message_snapshot
        except AssertionError:
            arrived = None
    return caught.value, arrived


def data(message):
    return [block.to_dict(mode="json") for block in message.content]


def answered(message):
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "written"}
        for block in message.content
        if block.type == "tool_use"
    ]
    return {"role": "user", "content": results}


def test_text_is_streamed_in_pieces():
    settings = {"model": MODEL, "max_tokens": 9, "messages": [QUESTION]}
    with (
        Messages([says(TEXT)]) as server,
        client_of(server) as client,
        client.messages.stream(**settings) as stream,
    ):
        pieces = list(stream.text_stream)
        message = stream.get_final_message()

    assert len(pieces) > 1
    assert "".join(pieces) == TEXT["text"] == message.content[0].text
    assert message.stop_reason == "end_turn"
    assert stream.request_id == "req_000001"


def test_thinking_and_uses_of_tools_arrive_whole_with_ids_of_their_own():
    with Messages([says(*ALL)]) as server, client_of(server) as client:
        message = asked(client)

    thinking, text, *uses = data(message)
    assert thinking == THINKING
    assert text == TEXT
    assert [use["input"] for use in uses] == [USE["input"], LATER["input"]]
    assert len({use["id"] for use in uses}) == 2
    assert message.stop_reason == "tool_use"
    assert message.usage.output_tokens_details.thinking_tokens == 5
    assert message.usage.output_tokens > 5


def test_an_answer_that_is_not_streamed_says_the_same():
    scripts = [conversation({"blocks": ALL}, {"blocks": ALL})]
    with Messages(scripts) as server, client_of(server) as client:
        streamed = asked(client)
        whole = client.messages.create(
            model=MODEL, max_tokens=2000, tools=[TOOL], messages=[QUESTION]
        )

    assert [block.type for block in whole.content] == [b["type"] for b in ALL]
    assert [b.input for b in whole.content[2:]] == [
        b.input for b in streamed.content[2:]
    ]
    assert whole.usage == streamed.usage


def test_a_conversation_goes_on_from_what_was_kept_as_json():
    scripts = [conversation({"blocks": ALL}, {"blocks": [TEXT]})]
    with Messages(scripts) as server, client_of(server) as client:
        first = asked(client)
        kept = json.loads(json.dumps(data(first)))
        turn = {"role": "assistant", "content": kept}
        second = asked(client, QUESTION, turn, answered(first))

    assert second.content[0].text == TEXT["text"]
    assert server.requests[1]["body"]["messages"][1] == turn


def test_each_conversation_has_the_replies_of_the_script_whose_words_it_holds():
    texts = [{"type": "text", "text": text} for text in ("one", "two", "other")]
    window = conversation(
        {"blocks": [texts[0]]}, {"blocks": [texts[1]]}, when=["window", "Be brief"]
    )
    other = {"when": [], "replies": [{"blocks": [texts[2]]}], "repeat": True}
    with Messages([window, other]) as server, client_of(server) as client:
        system = [{"type": "text", "text": "Be brief."}]
        heard = [asked(client, system=system).content[0].text for _ in range(4)]
        heard.append(asked(client).content[0].text)

    assert heard == ["one", "two", "other", "other", "other"]


def test_a_request_that_no_script_wants_is_refused_with_the_words_that_it_lacks():
    rope = conversation({"blocks": [TEXT]}, when=["window", "rope"])
    with (
        Messages([conversation(when=["window"]), rope]) as server,
        client_of(server) as client,
        pytest.raises(anthropic.BadRequestError) as caught,
    ):
        asked(client)

    assert caught.value.api_message == (
        "No script wants this request: ['window'] has given its 0 replies;"
        " ['window', 'rope'] lacks ['rope']."
    )


def test_each_request_is_a_line_of_the_log(tmp_path):
    log = tmp_path / "log.jsonl"
    scripts = [conversation({"status": 529}, {"blocks": [TEXT]}, when=["window"])]
    with Messages(scripts, log=log) as server:
        with client_of(server) as client:
            with pytest.raises(anthropic.OverloadedError):
                asked(client)
            asked(client)
        with (
            client_of(server, api_key="sk-other") as client,
            pytest.raises(anthropic.AuthenticationError),
        ):
            asked(client)

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    seen = [(line["n"], line["when"], line["status"]) for line in lines]
    assert seen == [(1, ["window"], 529), (2, ["window"], 200), (3, None, 401)]
    assert len({line["body_sha256"] for line in lines}) == 1
    assert "sk-" not in log.read_text()


def test_a_server_of_its_own_process_answers_and_logs(tmp_path):
    log = tmp_path / "log.jsonl"
    settings = {"scripts": [says(TEXT)], "key": "sk-own", "log": log}
    with (
        MessagesProcess(tmp_path, settings) as server,
        client_of(server, api_key="sk-own") as client,
    ):
        message = asked(client)

    assert data(message) == [TEXT]
    assert json.loads(log.read_text())["status"] == 200


# What the cache counts


def counted(message):
    usage = message.usage
    return (
        usage.cache_read_input_tokens,
        usage.cache_creation_input_tokens,
        usage.input_tokens,
    )


def test_a_prefix_is_written_to_the_cache_then_read():
    system = [{"type": "text", "text": "The rules. " * 99, "cache_control": MARK}]
    scripts = [says(TEXT) | {"repeat": True}]
    with Messages(scripts) as server, client_of(server) as client:
        first = asked(client, system=system)
        again = asked(client, {"role": "user", "content": "And now?"}, system=system)
        changed = asked(client, system=[system[0] | {"text": "Other rules."}])
        model = asked(client, system=system, model="claude-haiku-5-5")
        total = client.messages.count_tokens(
            model=MODEL, messages=[QUESTION], tools=[TOOL], system=system
        )

    read, written, rest = counted(first)
    assert (read, rest) == (0, total.input_tokens - written)
    assert first.usage.cache_creation.ephemeral_5m_input_tokens == written > 200
    assert counted(again)[:2] == (written, 0)
    assert counted(changed)[0] == 0 < counted(changed)[1]
    assert counted(model) == counted(first)


def test_a_breakpoint_that_moves_with_the_conversation_finds_the_earlier_one():
    scripts = [conversation({"blocks": ALL}, {"blocks": [TEXT]})]
    with Messages(scripts) as server, client_of(server) as client:
        first = asked(client, cache_control={"type": "ephemeral", "ttl": "1h"})
        turns = QUESTION, first.to_param(), answered(first)
        second = asked(client, *turns, cache_control=MARK)

    assert counted(first)[0] == counted(first)[2] == 0
    assert first.usage.cache_creation.ephemeral_1h_input_tokens == counted(first)[1]
    assert counted(second)[0] == counted(first)[1]
    assert counted(second)[2] == 0
    assert second.usage.cache_creation.ephemeral_5m_input_tokens == counted(second)[1]


def test_a_request_that_fails_writes_nothing_to_the_cache():
    scripts = [conversation({"status": 500}, {"blocks": [TEXT]})]
    with Messages(scripts) as server, client_of(server) as client:
        with pytest.raises(anthropic.InternalServerError):
            asked(client, cache_control=MARK)
        message = asked(client, cache_control=MARK)

    assert counted(message)[0] == 0


# What is refused


USED = {"type": "tool_use", "id": "toolu_1", "name": "write", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "done"}
ASSISTANT = {"role": "assistant", "content": [USED]}
THOUGHT = {"role": "assistant", "content": [THINKING | {"thinking": "Other."}]}


def user(*content):
    return {"role": "user", "content": list(content)}


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ([QUESTION], {"max_tokens": 0}, "max_tokens: Input should be greater than"),
        ([QUESTION], {"model": ""}, "model: Field required"),
        ([QUESTION], {"extra_body": {"temperature": 1}}, "temperature: Extra inputs"),
        ([QUESTION], {"tool_choice": {"type": "any"}}, "forced use 'any'"),
        ([QUESTION], {"tool_choice": {"type": "tool", "name": "write"}}, "'tool'"),
        ([QUESTION], {"tools": [TOOL, TOOL]}, "Tool names must be unique"),
        ([QUESTION], {"tools": [{"name": "write"}]}, "tools.0.input_schema.type"),
        ([QUESTION], {"system": ""}, "system.0: text content blocks must be non-empty"),
        (
            [QUESTION],
            {"thinking": {"type": "enabled", "budget_tokens": 2000}},
            "thinking.budget_tokens: must be from 1024 to below max_tokens",
        ),
        ([QUESTION], {"cache_control": {"type": "for ever"}}, "is not ephemeral"),
        (
            [user(*[{"type": "text", "text": "a", "cache_control": MARK}] * 5)],
            {},
            "A maximum of 4 blocks with cache_control may be provided. Found 5.",
        ),
        ([user({"type": "text", "text": " "})], {}, "must be non-empty"),
        ([user({"type": "text", "text": "a", "n": 1})], {}, "text.n: Extra inputs"),
        (
            [user({"type": "text"})],
            {},
            "messages.0.content.0.text.text: Field required",
        ),
        ([user(USED)], {}, "Input tag 'tool_use' is none of ['text', 'tool_result']"),
        ([user()], {}, "messages.0: all messages must have non-empty content"),
        ([ASSISTANT], {}, "messages.0: roles must alternate"),
        ([QUESTION, QUESTION], {}, "messages.1: roles must alternate"),
        ([QUESTION, ASSISTANT], {}, "does not support assistant message prefill"),
        ([QUESTION, ASSISTANT, QUESTION], {}, "without `tool_result` blocks"),
        ([user(RESULT)], {}, "messages.0: unexpected `tool_use_id` found"),
        ([QUESTION, ASSISTANT, user(RESULT, RESULT)], {}, "have a single result"),
        (
            [QUESTION, ASSISTANT, user({"type": "text", "text": "So:"}, RESULT)],
            {},
            "messages.2: `tool_result` blocks must come first",
        ),
        (
            [QUESTION, ASSISTANT, user(RESULT), ASSISTANT, user(RESULT)],
            {},
            "messages.3: `tool_use` ids must be unique",
        ),
        (
            [QUESTION, ASSISTANT, user(RESULT)],
            {"tools": []},
            "tools: must be defined where their use is in the messages",
        ),
        ([QUESTION, THOUGHT, QUESTION], {}, "Invalid `signature` in `thinking` block"),
    ],
)
def test_what_the_api_refuses_is_refused_here(messages, options, message):
    with Messages([says(*ALL)]) as server, client_of(server) as client:
        with pytest.raises(anthropic.BadRequestError) as caught:
            asked(client, *messages, **options)

        assert message in caught.value.api_message
        assert data(asked(client))  # the reply is still there


def test_thinking_must_come_back_with_the_use_of_a_tool_that_it_led_to():
    with Messages([says(*ALL)]) as server, client_of(server) as client:
        first = asked(client)
        without = {"role": "assistant", "content": data(first)[1:]}
        with pytest.raises(anthropic.BadRequestError) as caught:
            asked(client, QUESTION, without, answered(first))

    assert caught.value.api_message == (
        "messages.1: Expected the `thinking` blocks of the turn, but found 0. They"
        " cannot be modified."
    )


# What the client makes of failures


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, "BadRequestError", "invalid_request_error"),
        (401, "AuthenticationError", "authentication_error"),
        (413, "ContentTooLargeError", "request_too_large"),
        (429, "RateLimitError", "rate_limit_error"),
        (500, "InternalServerError", "api_error"),
        (529, "OverloadedError", "overloaded_error"),
    ],
)
def test_a_status_is_an_error_of_its_class_with_the_id_of_the_request(
    status, error, kind
):
    reply = {"status": status, "message": "No."}
    with (
        Messages([conversation(reply)]) as server,
        client_of(server) as client,
        pytest.raises(anthropic.APIStatusError) as caught,
    ):
        asked(client)

    assert type(caught.value) is getattr(anthropic, error)
    assert (caught.value.status_code, caught.value.type) == (status, kind)
    assert (caught.value.api_message, caught.value.request_id) == ("No.", "req_000001")


def test_another_key_is_refused():
    with (
        Messages([says(TEXT)]) as server,
        client_of(server, api_key="sk-0") as client,
        pytest.raises(anthropic.AuthenticationError, match="invalid x-api-key"),
    ):
        asked(client)


def test_the_client_tries_again_what_may_pass_with_the_same_bytes(tmp_path):
    log = tmp_path / "log.jsonl"
    soon = {"retry-after-ms": "1"}
    faults = [{"status": status, "headers": soon} for status in (429, 500, 529)]
    scripts = [conversation(*faults, {"blocks": [TEXT]})]
    with (
        Messages(scripts, log=log) as server,
        client_of(server, max_retries=3) as client,
    ):
        message = asked(client)

    assert data(message) == [TEXT]
    counts = [one["headers"]["x-stainless-retry-count"] for one in server.requests]
    assert counts == ["0", "1", "2", "3"]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["status"] for line in lines] == [429, 500, 529, 200]
    assert len({line["body_sha256"] for line in lines}) == 1


@pytest.mark.parametrize("status", [400, 401, 413])
def test_the_client_does_not_try_again_what_would_fail_again(status):
    scripts = [conversation({"status": status}, {"blocks": [TEXT]})]
    with (
        Messages(scripts) as server,
        client_of(server, max_retries=3) as client,
        pytest.raises(anthropic.APIStatusError),
    ):
        asked(client)

    assert len(server.requests) == 1


def test_a_cut_stream_is_an_error_of_httpx2_and_is_not_tried_again():
    scripts = [conversation({"blocks": ALL, "cut": 8}, {"blocks": [TEXT]})]
    with Messages(scripts) as server:
        error, arrived = failure(server, max_retries=3)

    assert type(error) is httpx2.RemoteProtocolError
    assert not isinstance(error, anthropic.AnthropicError)
    assert [block.type for block in arrived.content] == ["thinking", "text"]
    assert (arrived.stop_reason, arrived.usage.output_tokens) == (None, 1)
    assert arrived.usage.input_tokens > 1
    assert len(server.requests) == 1


def test_of_a_stream_that_is_cut_before_its_first_event_nothing_has_arrived():
    with Messages([says(TEXT, cut=0)]) as server:
        error, arrived = failure(server)

    assert type(error) is httpx2.RemoteProtocolError
    assert arrived is None


def test_a_stream_that_ends_early_is_no_error_but_has_no_stop_reason():
    with Messages([says(TEXT, ends=5)]) as server, client_of(server) as client:
        message = asked(client)

    assert message.stop_reason is None
    assert TEXT["text"].startswith(message.content[0].text) != TEXT["text"]


def test_a_stream_that_ends_before_message_stop_is_whole():
    stop = EVENTS_OF_TEXT - 1
    text = {"type": "text", "text": "x" * 24 * 5}
    with Messages([says(text, ends=stop)]) as server, client_of(server) as client:
        message = asked(client)

    assert (data(message), message.stop_reason) == ([text], "end_turn")
    assert message.usage.output_tokens > 1


def test_a_stream_that_hangs_is_a_read_timeout_of_httpx2():
    scripts = [conversation({"blocks": ALL, "hang": 8}, {"blocks": [TEXT]})]
    with Messages(scripts) as server:
        error, arrived = failure(server, timeout=TIMEOUT, max_retries=3)

        assert server.hanging.is_set()
    assert type(error) is httpx2.ReadTimeout
    assert [block.type for block in arrived.content] == ["thinking", "text"]
    assert len(server.requests) == 1


def test_silence_before_the_first_byte_is_a_timeout_of_the_client_and_tried_again():
    scripts = [conversation({"silent": True}, {"silent": True}, {"blocks": [TEXT]})]
    with (
        Messages(scripts) as server,
        client_of(server, timeout=TIMEOUT, max_retries=1) as client,
    ):
        with pytest.raises(anthropic.APITimeoutError):
            asked(client)

        assert len(server.requests) == 2


def test_a_server_that_hangs_goes_on_when_it_is_released():
    with Messages([says(TEXT, hang=4)]) as server:
        caught = []
        thread = threading.Thread(target=lambda: caught.append(failure(server)))
        thread.start()
        assert server.hanging.wait(60)
        with server.seen:
            assert server.seen.wait_for(lambda: server.requests, 60)
        server.released.set()
        thread.join(60)

    assert type(caught[0][0]) is httpx2.RemoteProtocolError


@pytest.mark.parametrize("kind", ["overloaded_error", "api_error"])
def test_an_error_within_a_stream_has_the_status_200_and_its_type_in_its_body(kind):
    scripts = [conversation({"blocks": ALL, "error_event": kind}, {"blocks": [TEXT]})]
    with Messages(scripts) as server:
        error, arrived = failure(server, max_retries=3)

    assert type(error) is anthropic.APIStatusError
    assert (error.status_code, error.type) == (200, kind)
    assert arrived.stop_reason is None
    assert len(server.requests) == 1


def test_something_else_than_events_is_an_assertion_of_the_client():
    with Messages([conversation({"garbage": True})]) as server:
        error, arrived = failure(server)

    assert type(error) is AssertionError
    assert arrived is None


def test_broken_input_of_a_tool_is_a_plain_value_error():
    with Messages([says(TEXT, USE, bad_json=True)]) as server:
        error, arrived = failure(server)

    assert type(error) is ValueError
    assert "Unable to parse tool parameter JSON from model." in str(error)
    assert arrived.content[1].input == {}


def test_input_that_max_tokens_cut_loses_its_last_value_without_an_error():
    use = USE | {"input": {"path": "a.py", "source": "WINDOW = 4\n"}}
    reply = {"blocks": [use], "truncated": 30, "stop_reason": "max_tokens"}
    with Messages([conversation(reply)]) as server, client_of(server) as client:
        message = asked(client)

    assert message.content[0].input == {"path": "a.py"}
    assert message.stop_reason == "max_tokens"


def test_a_refusal_is_a_stop_reason_with_details():
    details = {"type": "refusal", "category": "frontier_llm", "explanation": "No."}
    reply = {"blocks": [], "stop_reason": "refusal", "stop_details": details}
    with Messages([conversation(reply)]) as server, client_of(server) as client:
        message = asked(client)

    assert (message.content, message.stop_reason) == ([], "refusal")
    assert message.stop_details.to_dict() == details


def test_usage_can_be_stated():
    usage = {"output_tokens": 2000, "cache_read_input_tokens": 9}
    with Messages([says(TEXT, usage=usage)]) as server, client_of(server) as client:
        message = asked(client)

    assert message.usage.output_tokens == 2000
    assert message.usage.cache_read_input_tokens == 9


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"cut": 1}, anthropic.APIConnectionError),
        ({"hang": 1}, anthropic.APITimeoutError),
        ({"ends": 1}, json.JSONDecodeError),
        ({"error_event": "overloaded_error"}, anthropic.OverloadedError),
    ],
)
def test_without_a_stream_a_failure_is_an_error_of_the_client(fault, error):
    with (
        Messages([says(TEXT, **fault)]) as server,
        client_of(server, timeout=TIMEOUT) as client,
        pytest.raises(FAILURES) as caught,
    ):
        client.messages.create(model=MODEL, max_tokens=9, messages=[QUESTION])

    assert type(caught.value) is error


def test_without_a_stream_a_page_is_a_string_and_no_error():
    settings = {"model": MODEL, "max_tokens": 9, "messages": [QUESTION]}
    garbage = conversation({"garbage": True})
    with Messages([garbage]) as server, client_of(server) as client:
        message = client.messages.create(**settings)

    assert type(message) is str


def test_a_key_that_is_passed_is_the_only_credential_but_headers_come_from_outside(
    monkeypatch,
):
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_PROFILE"):
        monkeypatch.setenv(name, "another")
    with Messages([says(TEXT) | {"repeat": True}]) as server:
        with client_of(server) as client:
            asked(client)
        monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "Authorization: Bearer another")
        with client_of(server) as client, pytest.raises(anthropic.AuthenticationError):
            asked(client)

    headers = server.requests[0]["headers"]
    assert headers["authorization"] == "Bearer sk-test"
    assert "x-api-key" not in headers
    assert "another" not in json.dumps(headers)
