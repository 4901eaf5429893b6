"""The command, as a console script calls it."""

import os
import pty
import re
import resource
import signal
import subprocess
import sys
import tomllib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.cli import main
from core.gates import configuration
from core.settings import TRAINING_MODULE
from core.training.data import open_rows, open_source, prepare
from core.training.data.climbmix import COMMIT, REPOSITORY
from tests.conftest import ROOT
from tests.hub import Hub
from tests.test_data import documents, write_parquet

COMMAND = [
    sys.executable,
    "-c",
    "import sys; from core.cli import main; sys.exit(main())",
]
SIZES = ("--vocab-size", "280", "--sequence-len", "16")


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    """Return the user's cache, an empty one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "HF_HOME", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "caches" / "deltaspec"


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    write_parquet(folder / "shard_0.parquet", documents(300))
    write_parquet(folder / "shard_val.parquet", [*documents(100, seed=1), "", ""])
    (folder / "README.md").write_text("about")
    return folder


def refusal(capsys, *arguments):
    """Return what a command prints that fails, all of it."""
    assert main(["prepare", *map(str, arguments)]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    return errors


def folders(cache):
    return [path.name for path in (cache / "data").iterdir() if path.is_dir()]


def test_the_script_is_what_the_project_installs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["scripts"] == {"deltaspec": f"{main.__module__}:main"}


def test_help_takes_less_than_a_second():
    def seconds():  # of processors, which others may be using
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = seconds()
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True)

    assert seconds() - before < 1
    assert "fetch a corpus, train its tokenizer, pack it into rows" in done.stdout


def test_it_says_what_it_made_and_what_it_left_out(corpus, cache_home, capsys):
    code = main(["prepare", str(corpus), *SIZES])

    output, errors = capsys.readouterr()
    (folder,) = folders(cache_home)
    prepared = prepare(
        open_source(corpus),
        vocab_size=280,
        sequence_len=16,
        cache=cache_home / "data",
    )
    training = open_rows(prepared.training, 16)
    validation = open_rows(prepared.validation, 16)
    cropped = sum(
        prepared.counts[s]["cropped_tokens"] for s in ("training", "validation")
    )
    unfinished = sum(
        prepared.counts[s]["unfinished_tokens"] for s in ("training", "validation")
    )
    tokens = sum(prepared.counts[s]["tokens"] for s in ("training", "validation"))
    text_bytes = sum(len(text) for s in (0, 1) for text in documents([300, 100][s], s))
    pieces = sum(prepared.counts[s]["pieces"] for s in ("training", "validation"))
    assert code == 0
    assert prepared.fingerprint == folder
    assert re.sub(r"(?<=seconds) .*", "", output) == "\n".join([
        f"fingerprint        {folder}",
        f"training tokens    {training.size:,} in {len(training):,} rows of 17",
        f"validation tokens  {validation.size:,} in {len(validation):,} rows of 17",
        f"bytes per token    {text_bytes / (tokens - pieces):.3f}",
        "documents          300 for training, 100 for validation, in files that are set",
        "                   apart",
        "left out           1 files of another kind",
        "                   2 documents without text",
        f"                   {cropped:,} tokens cropped to fill rows: {cropped / tokens:.1%}",
        f"                   {unfinished:,} tokens of last rows that were not full",
        "seconds",
        f"folder             {prepared.folder}",
        "",
    ])
    assert [re.sub(r"[\d.]+ s$", "", line) for line in errors.splitlines()] == [
        "reading the corpus: ",
        "training the tokenizer: ",
        "packing: ",
    ]


def test_without_sizes_it_prepares_what_a_session_on_gpus_trains_on(cache_home, capsys):
    sizes = configuration((ROOT / TRAINING_MODULE).read_text())

    main(["prepare", "stdlib"])

    output, _ = capsys.readouterr()
    assert f" rows of {sizes['SEQUENCE_LEN'] + 1:,}\n" in output
    assert output.endswith("finds it: pytest specs/ --data stdlib\n")
    assert max(map(len, re.sub(r"\nfolder .*", "", output).splitlines())) <= 80
    stages = []
    prepare(
        open_source("stdlib"),
        vocab_size=sizes["VOCAB_SIZE"],
        sequence_len=sizes["SEQUENCE_LEN"],
        cache=cache_home / "data",
        progress=lambda stage, share: stages.append(stage),
    )
    assert stages == []


def test_another_cache_is_used_alone(corpus, cache_home, tmp_path, capsys):
    main(["prepare", str(corpus), *SIZES, "--cache", str(tmp_path / "mine")])

    output, _ = capsys.readouterr()
    assert f"\nfolder             {tmp_path / 'mine' / 'data'}/" in output
    assert not cache_home.exists()


def test_a_folder_of_text_files_is_a_corpus(tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(40):
        text = "".join(documents(30, seed=number))
        (folder / f"{number}.txt").write_text(text)

    code = main(["prepare", str(folder), *SIZES])

    assert code == 0
    assert "for validation, whole files\n" in capsys.readouterr().out


# --- what goes wrong


def test_an_empty_folder_is_refused(tmp_path, cache_home, capsys):
    folder = tmp_path / "empty"
    folder.mkdir()

    assert refusal(capsys, folder) == (
        f"{folder} holds no corpus: none of its 0 files is parquet or text.\n\n"
        "hint: put .parquet files there, or text as .c, .cpp, .go, .h, .java, .js, .md,"
        " .py, .rs, .rst, .tex, .text, .ts, .txt.\n"
    )
    assert not (cache_home / "data").exists()


def test_a_missing_column_is_refused(corpus, cache_home, capsys):
    path = corpus / "shard_1.parquet"
    pq.write_table(pa.table({"content": ["a"]}), path)

    assert refusal(capsys, corpus) == (
        f"{path} has no column 'text' of strings. It has: content (string).\n\n"
        "hint: rename the column that holds the documents to 'text'.\n"
    )
    assert not (cache_home / "data").exists()


def test_a_damaged_shard_leaves_nothing_half_made(corpus, cache_home, capsys):
    path = corpus / "shard_1.parquet"
    write_parquet(path, documents(100, seed=2))
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)

    errors = refusal(capsys, corpus, *SIZES)

    message = errors.partition(f"{path} cannot be read: ")[2]
    assert message.endswith(
        ".\n\nhint: fetch or write the file again, or take it out of the corpus.\n"
    )
    assert folders(cache_home) == []


def test_shards_are_of_climbmix_alone(capsys):
    assert refusal(capsys, "stdlib", "--shards", 3) == (
        "--shards 3 chooses from climbmix, and the corpus is stdlib.\n\n"
        "hint: leave --shards out, or name climbmix.\n"
    )


def test_climbmix_has_no_shard_zero(capsys):
    assert refusal(capsys, "climbmix", "--shards", 0) == (
        "climbmix:0 asks for 0 shards to train on, and climbmix has 1 to 6,542.\n\n"
        "hint: name a number in that range, as climbmix:10.\n"
    )


def test_a_cache_that_cannot_be_written_is_refused(corpus, tmp_path, capsys):
    (tmp_path / "file").write_text("")

    assert refusal(capsys, corpus, *SIZES, "--cache", tmp_path / "file") == (
        f"{tmp_path / 'file' / 'data'} cannot be written: Not a directory.\n\n"
        "hint: name another folder as the cache.\n"
    )


def test_a_command_that_is_no_command_is_explained(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["prepar"])

    assert ended.value.code == 2
    assert "invalid choice: 'prepar'" in capsys.readouterr().err


# --- in a process of its own


@pytest.fixture
def hub(tmp_path):
    """Return a stand-in for the hub that has a little of climbmix."""
    folder = tmp_path / "climbmix"
    for number, name in enumerate(("00000", "00001", "06542")):
        write_parquet(folder / f"shard_{name}.parquet", documents(500, seed=number))
    with Hub(folder, REPOSITORY, COMMIT) as server:
        yield server


def prepare_climbmix(hub, tmp_path, **how):
    """Run the command in a process that is told of the hub by HF_ENDPOINT."""
    return subprocess.Popen(
        [*COMMAND, "prepare", "climbmix", "--shards", "2", *SIZES],
        env={
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        },
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how,
    )


def test_climbmix_is_fetched_and_prepared_and_sessions_find_it(
    hub, tmp_path, cache_home
):
    done = prepare_climbmix(hub, tmp_path)
    output, errors = done.communicate(timeout=60)

    assert done.returncode == 0, errors
    assert "1,000 for training, 500 for validation" in output
    assert [re.sub(r"[\d.]+ s$", "", line) for line in errors.splitlines()] == [
        "asking the hub for 3 shards: ",
        "fetching 3 shards, 0 MB: ",
        "reading the corpus: ",
        "training the tokenizer: ",
        "packing: ",
    ]
    stages = []
    found = prepare(
        open_source("climbmix:2"),
        vocab_size=280,
        sequence_len=16,
        cache=cache_home / "data",
        progress=lambda stage, share: stages.append(stage),
    )
    assert f"fingerprint        {found.fingerprint}\n" in output
    assert "packing" not in stages


def test_ctrl_c_leaves_nothing_half_made_and_says_how_to_go_on(
    hub, tmp_path, cache_home
):
    hub.faults["shard_00001.parquet"] = [{"hang": 3000}, *[{"cut": 0}] * 9]
    ended = prepare_climbmix(hub, tmp_path)
    assert hub.hanging.wait(30)

    ended.send_signal(signal.SIGINT)
    hub.released.set()
    output, errors = ended.communicate(timeout=60)

    assert (ended.returncode, output) == (130, "")
    assert errors.endswith(
        "interrupted: nothing is half-made, and the same command goes on\n"
    )
    (folder,) = folders(cache_home)
    assert not (cache_home / "data" / folder / "shard_00001.parquet").exists()
    hub.faults.clear()
    again = prepare_climbmix(hub, tmp_path)
    assert again.communicate(timeout=60)[0].startswith("fingerprint ")


@pytest.mark.parametrize("colour", [True, False])
def test_a_terminal_shows_bars_and_no_colour_where_none_is_wanted(
    hub, tmp_path, monkeypatch, colour
):
    monkeypatch.setenv("TERM", "xterm-256color")
    if not colour:
        monkeypatch.setenv("NO_COLOR", "1")
    ours, theirs = pty.openpty()
    done = prepare_climbmix(hub, tmp_path, stderr=theirs)
    os.close(theirs)

    shown = b""
    while block := read(ours):
        shown += block
    os.close(ours)
    done.communicate(timeout=60)

    assert done.returncode == 0
    assert "━" in shown.decode()
    assert (b"\x1b[38;" in shown) == colour


def read(terminal):
    """Return what a terminal shows next, nothing once its process has ended."""
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so of a terminal that nobody writes to any more
        return b""


def test_the_options_of_a_session_name_climbmix():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert "corpus: stdlib, climbmix, or a file or folder of" in done.stdout
