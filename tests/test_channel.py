import json
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.channel import MAX_LINE_BYTES, BadLine, Reader, encode, write

STEP = {"event": "step", "loss_nats": 7.5, "tokens": 2048}

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
messages = st.dictionaries(st.text(max_size=8), plain, max_size=4)


@pytest.fixture
def pipe():
    """Return a reader and the end that feeds it; both are closed afterwards."""
    ours, theirs = os.pipe()
    open_fds = {ours, theirs}

    def hang_up():
        open_fds.discard(theirs)
        os.close(theirs)

    yield Reader(ours), theirs, hang_up
    for fd in open_fds:
        os.close(fd)


def everything(reader):
    found = []
    while not reader.ended:
        found += reader.available()
    return found


def refusal(reader):
    with pytest.raises(BadLine) as caught:
        everything(reader)
    return str(caught.value)


def test_a_message_that_comes_in_pieces_is_read_when_it_is_whole(pipe):
    reader, fd, _ = pipe
    line = encode(STEP)

    found = []
    for at in range(len(line)):
        os.write(fd, line[at : at + 1])
        found.append(reader.available())

    assert found == [[]] * (len(line) - 1) + [[STEP]]


def test_messages_that_come_together_are_read_in_their_order(pipe):
    reader, fd, _ = pipe

    os.write(fd, encode({"n": 1}) + encode({"n": 2}) + encode({"n": 3})[:4])
    first = reader.available()
    os.write(fd, encode({"n": 3})[4:])

    assert first == [{"n": 1}, {"n": 2}]
    assert reader.available() == [{"n": 3}]


@given(st.lists(messages, max_size=5), st.data())
def test_whatever_is_sent_arrives_however_it_is_cut(sent, data):
    ours, theirs = os.pipe()
    stream = b"".join(map(encode, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    reader, found = Reader(ours), []

    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if end > start:
            os.write(theirs, stream[start:end])
            found += reader.available()
    os.close(theirs)
    found += everything(reader)
    os.close(ours)

    assert found == sent


def test_a_loss_that_is_not_a_number_can_be_told(pipe):
    reader, fd, _ = pipe

    write(fd, {"loss": float("nan"), "nats": float("inf")})
    (said,) = reader.available()

    assert said["loss"] != said["loss"]
    assert said["nats"] == float("inf")


def test_what_a_killed_child_had_begun_to_say_is_no_message(pipe):
    reader, fd, hang_up = pipe

    os.write(fd, encode(STEP) + encode(STEP)[:-5])
    hang_up()

    assert everything(reader) == [STEP]
    assert reader.receive() is None


@pytest.mark.parametrize(
    "line",
    [
        b"Traceback (most recent call last):",
        b"",
        b"[1, 2]",
        b"null",
        b"3",
        b'"step"',
        b'{"event": ',
        b"\xff\xfe",
        b"9" * 5000,
        b"[" * 30_000,
        b'{"a":' * 10_000,
    ],
    ids=lambda line: repr(line)[:20],
)
def test_what_is_no_json_object_is_refused_and_shown(pipe, line):
    reader, fd, _ = pipe
    os.write(fd, line + b"\n")

    text = refusal(reader)

    assert text == repr(line[:80])


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(pipe):
    reader, _, _ = pipe
    flood = subprocess.Popen(
        [sys.executable, "-c", "import os\nwhile True: os.write(1, b'x' * 65536)"],
        stdout=subprocess.PIPE,
    )
    reader.fd = flood.stdout.fileno()

    text = refusal(reader)
    flood.kill()
    flood.wait()
    flood.stdout.close()

    assert text == f"a line of more than {MAX_LINE_BYTES:,} bytes"


def test_a_message_larger_than_the_pipe_arrives_whole(pipe):
    reader, fd, hang_up = pipe
    large = {"text": "ä" * 150_000}  # a pipe takes 64 KiB at a time
    sender = threading.Thread(target=lambda: (write(fd, large), hang_up()))

    sender.start()
    found = everything(reader)
    sender.join()

    assert found == [large]


def test_a_process_at_the_other_end_is_answered(pipe):
    code = (
        "from core.channel import Reader, write\n"
        "reader = Reader(0)\n"
        "while (said := reader.receive()) is not None:\n"
        "    write(1, {'heard': said['n']})\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    answers = Reader(child.stdout.fileno())
    heard = []

    for n in range(3):
        write(child.stdin.fileno(), {"n": n})
        heard.append(answers.receive())
    child.stdin.close()
    gone = answers.receive()
    child.wait()
    child.stdout.close()

    assert heard == [{"heard": 0}, {"heard": 1}, {"heard": 2}]
    assert gone is None
    assert child.returncode == 0


def test_nothing_to_read_yet_is_no_message_on_a_pipe_that_does_not_wait(pipe):
    reader, _, _ = pipe
    os.set_blocking(reader.fd, False)

    assert reader.available() == []
    assert not reader.ended


def test_messages_that_come_together_are_received_one_after_the_other(pipe):
    reader, fd, hang_up = pipe
    os.write(fd, encode({"n": 1}) + encode({"n": 2}))
    hang_up()

    received = [reader.receive() for _ in range(3)]

    assert received == [{"n": 1}, {"n": 2}, None]


@given(messages)
def test_a_message_is_one_line(message):
    line = encode(message)

    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert json.loads(line) == message
