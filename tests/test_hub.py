"""Shards are fetched by huggingface_hub's own client, from a hub on this machine."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from textwrap import dedent

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from core.errors import DataError
from core.training.data import Shards, Source, hub, open_source, prepare
from core.training.data.hub import fetch
from tests.conftest import ROOT
from tests.hub import Hub, HubProcess

REPOSITORY, COMMIT = "somebody/texts", "c0ffee" * 6 + "beef"
TRAINING = ("shard_0.parquet", "shard_1.parquet", "shard_2.parquet")
SHARDS = Shards(
    name="texts",
    repository=REPOSITORY,
    commit=COMMIT,
    training=TRAINING,
    validation="shard_9.parquet",
)
PLACE = f"texts-{COMMIT[:12]}"
ELSEWHERE = (
    "look at the network, or name a mirror in HF_ENDPOINT; what has arrived is kept, and"
    " the same command goes on."
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder with the shards, of some ten thousand bytes each."""
    folder = tmp_path_factory.mktemp("files")
    for number, name in enumerate(SHARDS.files):
        texts = [f"text {at} of shard {number}, {at * at}.\n" for at in range(1000)]
        pq.write_table(pa.table({"text": texts}), folder / name)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Wait little between attempts, and let no cache of the hub's be found."""
    monkeypatch.setattr(hub, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(hub, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    yield
    huggingface_hub.close_session()


def use(monkeypatch, url):
    """Name the hub, as HF_ENDPOINT does where a process starts with it."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        url + "/{repo_id}/resolve/{revision}/{filename}",
    )


@pytest.fixture
def serve(files, monkeypatch):
    """Return what starts a hub with faults; it is the one that is asked."""
    started = []

    def start(**how):
        folder = how.pop("folder", files)
        server = Hub(folder, REPOSITORY, COMMIT, **how).__enter__()
        started.append(server)
        use(monkeypatch, server.url)
        return server

    yield start
    for server in started:
        server.__exit__()


def fetched(cache, shards=SHARDS):
    said = []
    source = fetch(shards, cache, lambda stage, share: said.append((stage, share)))
    return source, said


def refusal(cache, shards=SHARDS):
    with pytest.raises(DataError) as caught:
        fetched(cache, shards)
    return str(caught.value)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def same(folder, files):
    return all(
        (folder / name).read_bytes() == (files / name).read_bytes()
        for name in SHARDS.files
    )


def test_climbmix_is_ten_shards_of_a_pinned_commit_and_the_last_for_validation():
    found = open_source("climbmix")

    assert found.repository == "karpathy/climbmix-400b-shuffle"
    assert found.commit == "915333b4f8b8684f39aeaafea600fea6f43fb703"
    assert found.training == tuple(f"shard_{n:05}.parquet" for n in range(10))
    assert found.validation == "shard_06542.parquet"


def test_climbmix_says_how_many_shards():
    assert len(open_source("climbmix:6542").training) == 6542


@pytest.mark.parametrize("count", [0, 6543])
def test_climbmix_has_only_so_many_shards(count):
    with pytest.raises(DataError) as caught:
        open_source(f"climbmix:{count}")

    assert str(caught.value) == (
        f"climbmix:{count} asks for {count} shards to train on, and climbmix has 1 to"
        " 6,542.\n\nhint: name a number in that range, as climbmix:10."
    )


def test_shards_are_fetched_whole_with_the_validation_shard_first(
    tmp_path, serve, files
):
    serve()

    source, said = fetched(tmp_path)

    assert isinstance(source, Source)
    assert [file.path.name for file in source.files] == list(SHARDS.files)
    assert [file.validation for file in source.files] == [True, False, False, False]
    assert same(tmp_path / PLACE, files)
    assert names(tmp_path / PLACE) == sorted(SHARDS.files)
    size = sum((files / name).stat().st_size for name in SHARDS.files)
    stage = f"fetching 4 shards, {size / 1e6:,.0f} MB"
    assert {name for name, _ in said} == {"asking the hub for 4 shards", stage}
    assert said[-1] == (stage, 1.0)


def test_what_is_here_is_not_asked_for_and_needs_no_network(tmp_path, serve):
    server = serve()
    first, _ = fetched(tmp_path)
    server.__exit__()

    second, said = fetched(tmp_path)

    assert second == first
    assert said == []


def test_only_a_shard_that_is_missing_is_fetched(tmp_path, serve, files):
    server = serve()
    fetched(tmp_path)
    server.requests.clear()
    (tmp_path / PLACE / "shard_1.parquet").unlink()

    fetched(tmp_path)

    assert server.requests == [("shard_1.parquet", "")]
    assert same(tmp_path / PLACE, files)


def test_fewer_shards_of_the_same_set_are_fetched_once(tmp_path, serve):
    server = serve()
    few = Shards(
        name="few",
        repository=REPOSITORY,
        commit=COMMIT,
        training=TRAINING[:1],
        validation=SHARDS.validation,
    )
    fetched(tmp_path, few)

    fetched(tmp_path)

    assert sorted(name for name, _ in server.requests) == sorted(SHARDS.files)


def test_a_connection_that_is_cut_is_taken_up_where_it_was(tmp_path, serve, files):
    server = serve(faults={"shard_1.parquet": [{"cut": 3000}, {"cut": 3000}]})

    fetched(tmp_path)

    asked = [at for name, at in server.requests if name == "shard_1.parquet"]
    assert asked == ["", "bytes=3000-", "bytes=3000-"]
    assert same(tmp_path / PLACE, files)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_hub_that_is_busy_or_broken_is_asked_again(tmp_path, serve, files, status):
    faults = {"shard_1.parquet": [{"status": status}]}
    server = serve(faults=faults, head_faults={"shard_2.parquet": [{"status": status}]})

    fetched(tmp_path)

    assert [name for name, _ in server.requests].count("shard_1.parquet") == 2
    assert same(tmp_path / PLACE, files)


@pytest.mark.parametrize(
    "headers", [{"Retry-After": "7"}, {"RateLimit": '"resolvers";r=0;t=7'}]
)
def test_a_rate_limit_is_waited_for_as_long_as_the_hub_says(
    tmp_path, serve, monkeypatch, headers
):
    monkeypatch.setattr(hub, "LONGEST_WAIT_SECONDS", 0.3)
    limited = {"status": 429, "headers": headers}
    server = serve(faults={"shard_1.parquet": [limited, limited]})
    began = time.monotonic()

    fetched(tmp_path)

    asked = [name for name, _ in server.requests]
    assert asked.count("shard_1.parquet") == 3
    assert time.monotonic() - began >= 2 * 0.3


def test_a_hub_that_stays_broken_is_named_with_what_it_answers(tmp_path, serve):
    server = serve(faults={"shard_1.parquet": [{"status": 500}] * hub.ATTEMPTS})

    message = refusal(tmp_path)

    assert message == (
        f"shard_1.parquet of {REPOSITORY} cannot be fetched from {server.url}: 500"
        f" Internal Server Error.\n\nhint: {ELSEWHERE}"
    )
    assert not (tmp_path / PLACE / "shard_1.parquet").exists()


def test_a_shard_that_the_hub_does_not_have_is_not_asked_for_again(
    tmp_path, serve, files
):
    some = tmp_path / "files"
    some.mkdir()
    for name in SHARDS.files[:-1]:
        (some / name).symlink_to(files / name)
    server = serve(folder=some)

    message = refusal(tmp_path)

    assert message == (
        f"shard_2.parquet of {REPOSITORY} cannot be fetched from {server.url}: 404 Not"
        f" Found.\n\nhint: {ELSEWHERE}"
    )
    assert server.requests == []


def test_a_hub_that_is_out_of_reach_is_named(tmp_path, serve):
    server = serve()
    server.__exit__()

    message = refusal(tmp_path)

    first, hint = message.split("\n\n")
    assert first.startswith("shard_")
    assert first.endswith(
        f".parquet of {REPOSITORY} cannot be fetched from {server.url}: [Errno 111]"
        " Connection refused."
    )
    assert hint == f"hint: {ELSEWHERE}"
    assert names(tmp_path / PLACE) == []


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        (
            "mirror.example",
            "Request URL is missing an 'http://' or 'https://' protocol",
        ),
        ("http://mirror:port", "Invalid port: 'port'"),
    ],
)
def test_an_endpoint_that_is_no_address_is_named(
    tmp_path, monkeypatch, endpoint, reason
):
    use(monkeypatch, endpoint)

    message = refusal(tmp_path)

    assert message.partition(" of ")[2] == (
        f"{REPOSITORY} cannot be fetched from {endpoint}: {reason}.\n\nhint: {ELSEWHERE}"
    )


def test_a_shard_that_stays_truncated_says_how_much_there_is(tmp_path, serve, files):
    faults = {"shard_1.parquet": [{"short": 3000}] * (hub.ATTEMPTS + 1)}
    server = serve(faults=faults)
    size = (files / "shard_1.parquet").stat().st_size

    message = refusal(tmp_path)

    assert message == (
        f"shard_1.parquet of {REPOSITORY} cannot be fetched from {server.url}: 3,000 of"
        f" {size:,} bytes came, and no more.\n\nhint: {ELSEWHERE}"
    )
    assert not (tmp_path / PLACE / "shard_1.parquet").exists()


def test_a_shard_that_is_truncated_once_is_completed(tmp_path, serve, files):
    server = serve(faults={"shard_1.parquet": [{"short": 3000}]})

    fetched(tmp_path)

    asked = [at for name, at in server.requests if name == "shard_1.parquet"]
    assert asked == ["", "bytes=3000-"]
    assert same(tmp_path / PLACE, files)


@pytest.mark.parametrize("fault", [{"damaged": 1}, {"long": 3000}])
def test_a_damaged_shard_is_fetched_again(tmp_path, serve, files, fault):
    server = serve(faults={"shard_1.parquet": [fault]})

    fetched(tmp_path)

    asked = [at for name, at in server.requests if name == "shard_1.parquet"]
    assert asked == ["", ""]
    assert same(tmp_path / PLACE, files)


def test_a_shard_that_stays_damaged_is_not_kept(tmp_path, serve, files):
    server = serve(faults={"shard_1.parquet": [{"damaged": 1}] * 2})
    content = (files / "shard_1.parquet").read_bytes()
    damaged = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]

    message = refusal(tmp_path)

    assert message == (
        f"shard_1.parquet of {REPOSITORY} arrived damaged from {server.url}, twice: its"
        f" SHA-256 is {hashlib.sha256(damaged).hexdigest()}, and"
        f" {hashlib.sha256(content).hexdigest()} was stated.\n\n"
        "hint: run the same command later, or fetch from elsewhere: HF_ENDPOINT."
    )
    assert not [n for n in names(tmp_path / PLACE) if n.startswith("shard_1")]


def test_a_server_without_ranges_begins_the_shard_anew(tmp_path, serve, files):
    server = serve(faults={"shard_1.parquet": [{"cut": 3000}, {"whole": 1}]})

    fetched(tmp_path)

    asked = [at for name, at in server.requests if name == "shard_1.parquet"]
    assert asked == ["", "bytes=3000-"]
    assert same(tmp_path / PLACE, files)


@pytest.mark.parametrize(
    ("header", "value", "found"),
    [
        ("X-Repo-Commit", "f" * 40, f"commit {'f' * 40}, size "),
        ("X-Linked-Size", None, f"commit {COMMIT}, size None, etag "),
        ("X-Linked-Etag", None, "etag 0123456789abcdef, where"),
    ],
)
def test_a_mirror_that_does_not_state_what_the_hub_does_is_refused(
    tmp_path, serve, header, value, found
):
    server = serve(stated={header: value})

    message = refusal(tmp_path)

    assert message.startswith(
        f"{server.url} does not state commit, size and SHA-256 of shard_"
    )
    assert found in message
    assert message.endswith(
        f", where commit {COMMIT} was asked for.\n\n"
        "hint: unset HF_ENDPOINT, or name a mirror that passes on the hub's"
        " X-Repo-Commit, X-Linked-Size and X-Linked-Etag."
    )


def test_offline_says_which_shards_are_missing_and_where(
    tmp_path, serve, files, monkeypatch
):
    serve()
    fetched(tmp_path)
    for name in ("shard_0.parquet", "shard_2.parquet"):
        (tmp_path / PLACE / name).unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    assert refusal(tmp_path) == (
        f"2 of 4 shards of texts are not in {tmp_path / PLACE}, and HF_HUB_OFFLINE is"
        " set.\n\n"
        "hint: unset it, or copy them there: shard_0.parquet, shard_2.parquet."
    )


def in_hub_cache(tmp_path, files, damage=b""):
    """Put the shards where huggingface_hub would, as if it had fetched them."""
    folder = tmp_path / "hub" / f"datasets--{REPOSITORY.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    for name in SHARDS.files:
        content = (files / name).read_bytes()
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content + damage)
        (snapshot / name).symlink_to(blob)


def test_offline_shards_of_the_hubs_own_cache_are_used(tmp_path, files, monkeypatch):
    in_hub_cache(tmp_path, files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    source, _ = fetched(tmp_path)

    assert len(source.files) == 4
    assert same(tmp_path / PLACE, files)


def test_damaged_shards_of_the_hubs_own_cache_are_fetched(tmp_path, serve, files):
    in_hub_cache(tmp_path, files, damage=b"!")
    server = serve()

    fetched(tmp_path)

    assert len(server.requests) == 4
    assert same(tmp_path / PLACE, files)


def test_a_shard_whose_hub_cache_is_gone_is_fetched(tmp_path, serve, files):
    in_hub_cache(tmp_path, files)
    fetched(tmp_path)
    for blob in tmp_path.glob("hub/*/blobs/*"):
        blob.unlink()
    serve()

    fetched(tmp_path)

    assert same(tmp_path / PLACE, files)
    assert not (tmp_path / PLACE / "shard_1.parquet").is_symlink()


def test_too_little_room_is_said_before_anything_is_fetched(tmp_path, serve):
    server = serve(stated={"X-Linked-Size": str(10**18)})

    message = refusal(tmp_path)

    first, hint = message.split("\n\n")
    needed = f"{4 * 10**18:,}"
    assert first.startswith(
        f"No room is left for 4 shards in {tmp_path / PLACE}: {needed} bytes are"
        " needed, and "
    )
    assert first.endswith(" are free.")
    assert hint == (
        "hint: free space there, name another folder as the cache, or ask for fewer"
        " shards."
    )
    assert server.requests == []


def test_a_shard_without_the_column_says_which_it_has(tmp_path, serve, files):
    other = tmp_path / "files"
    other.mkdir()
    for name in SHARDS.files:
        pq.write_table(pa.table({"content": ["a"]}), other / name)
    serve(folder=other)

    assert refusal(tmp_path) == (
        f"{tmp_path / PLACE / 'shard_9.parquet'} has no column 'text' of strings. It"
        " has: content (string).\n\n"
        "hint: rename the column that holds the documents to 'text'."
    )


# --- in processes of their own

FETCH = """
    import pathlib, resource, signal, sys
    from core.errors import DataError
    from core.training.data import Shards, hub

    hub.FIRST_WAIT_SECONDS, hub.BLOCK_BYTES = 0.05, 1000
    shards = Shards(name="texts", repository=sys.argv[1], commit=sys.argv[2],
                    training=tuple(sys.argv[4:]), validation="shard_9.parquet")
    if "--full" in sys.argv[3]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        hub.fetch(shards, pathlib.Path(sys.argv[3].split()[0]), lambda *_: None)
    except DataError as error:
        print(error)
    except KeyboardInterrupt:
        print("interrupted")
    """


def start_fetching(cache, url, full=False, training=TRAINING):
    """Fetch in a process that HF_ENDPOINT tells where from."""
    where = f"{cache} --full" if full else str(cache)
    return subprocess.Popen(
        [sys.executable, "-c", dedent(FETCH), REPOSITORY, COMMIT, where, *training],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_ENDPOINT": url,
            "HF_HOME": str(cache / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_hub_that_is_killed_within_a_shard_and_comes_back_is_met_where_it_was(
    tmp_path, files, monkeypatch
):
    log = tmp_path / "log.txt"
    settings = {
        "folder": str(files),
        "repository": REPOSITORY,
        "commit": COMMIT,
        "log": str(log),
    }
    few = Shards(
        name="few",
        repository=REPOSITORY,
        commit=COMMIT,
        training=(),
        validation=SHARDS.validation,
    )
    monkeypatch.setattr(hub, "FIRST_WAIT_SECONDS", 0.5)
    deadly = settings | {"faults": {"shard_9.parquet": [{"die": 3000}]}}
    first = HubProcess(tmp_path, deadly)
    second = []

    def start_again():
        first.process.wait()
        second.append(HubProcess(tmp_path, settings, first.port))

    again = threading.Thread(target=start_again)
    with first:
        use(monkeypatch, f"http://127.0.0.1:{first.port}")
        again.start()
        source, _ = fetched(tmp_path, few)
        again.join()
    with second[0]:
        assert first.process.returncode == -signal.SIGKILL

    (shard,) = source.files
    assert shard.path.read_bytes() == (files / "shard_9.parquet").read_bytes()
    assert log.read_text().splitlines() == [
        "shard_9.parquet ",
        "shard_9.parquet bytes=3000-",
    ]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_command_that_ends_within_a_shard_goes_on_there(tmp_path, serve, files, how):
    server = serve(faults={"shard_1.parquet": [{"hang": 3000}, *[{"cut": 0}] * 9]})
    ended = start_fetching(tmp_path, server.url)
    assert server.hanging.wait(30)
    part = next_part(tmp_path / PLACE, 3000)
    ended.send_signal(how)
    server.released.set()
    output, _ = ended.communicate(timeout=60)
    expected = (-how, "") if how == signal.SIGKILL else (0, "interrupted\n")
    assert (ended.returncode, output) == expected
    assert not (tmp_path / PLACE / "shard_1.parquet").exists()
    server.requests.clear()
    server.faults.clear()

    fetched(tmp_path)

    asked = [at for name, at in server.requests if name == "shard_1.parquet"]
    assert asked == ["bytes=3000-"]
    assert same(tmp_path / PLACE, files)
    assert not part.exists()


def next_part(folder, size):
    """Return the part of shard_1 as soon as it has that many bytes."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for part in folder.glob("shard_1.*.part"):
            if part.stat().st_size == size:
                return part
    raise AssertionError(f"no such part in {folder}")


def test_two_commands_at_once_fetch_each_shard_once(tmp_path, serve, files):
    server = serve(faults={"shard_1.parquet": [{"hang": 3000}]})
    first = start_fetching(tmp_path, server.url)
    assert server.hanging.wait(30)
    said = []
    waiting = threading.Event()

    def report(stage, share):
        said.append(stage)
        waiting.set()

    second = threading.Thread(target=fetch, args=(SHARDS, tmp_path, report))
    second.start()
    assert waiting.wait(30)
    server.released.set()
    second.join()

    assert first.communicate(timeout=60)[0] == ""
    assert said == ["waiting for another process that prepares the same"]
    assert [n for n, _ in server.requests].count("shard_0.parquet") == 1
    assert same(tmp_path / PLACE, files)


def test_a_disk_that_fills_up_leaves_no_part_of_a_shard(tmp_path, serve):
    server = serve()

    full = start_fetching(tmp_path, server.url, full=True)
    output, _ = full.communicate(timeout=60)

    first, hint = output.strip().split("\n\n")
    assert first.startswith(f"No room is left for {tmp_path / PLACE}: ")
    assert first.endswith("% of the corpus.")
    assert hint == (
        "hint: free space or raise the quota there, or name another folder as the"
        " cache."
    )
    assert names(tmp_path / PLACE) == []


def test_what_is_fetched_is_prepared_with_the_shard_that_is_set_apart(tmp_path, serve):
    serve()
    sizes = {"vocab_size": 280, "sequence_len": 16, "cache": tmp_path}

    prepared = prepare(SHARDS, **sizes)

    assert prepared.counts["split_by"] == "pinned"
    assert prepared.counts["training"]["documents"] == 3000
    assert prepared.counts["validation"]["documents"] == 1000


def test_a_corpus_of_ones_own_is_prepared_without_the_hubs_client():
    code = "import sys, core.cli; print(sys.modules.keys() & {'huggingface_hub'})"

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )

    assert done.stdout == "set()\n", done.stderr
