import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from textwrap import dedent

import attrs
import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import StoreError
from core.evidence import Outcome, Verdict
from core.store import ingestion as store
from core.store.connection import STORAGE, Held, opened, past_words
from core.store.history import History, read_history
from core.store.ingestion import ingest
from core.store.journal import DAMAGED_HINT, NOTES, Journal, new_id

DOCUMENT = Path(__file__).parents[1] / "docs" / "sql.md"
TABLES = (
    "contexts",
    "experiments",
    "mutants",
    "symbol_changes",
    "runs",
    "curves",
    "verdicts",
)
STORE = Path(store.__file__).parent
MIGRATIONS = [
    (1, "0001_tables.sql"),
    (2, "0002_gpus.sql"),
    (3, "0003_belief.sql"),
    (4, "0004_steadiness.sql"),
    (5, "0005_epochs.sql"),
    (6, "0006_agent.sql"),
]
CURVE = [
    {"step": 1, "seconds": 0.5, "tokens": 2048, "loss_nats": 7.25},
    {"step": 2, "seconds": 1.0, "tokens": 4096, "loss_nats": 6.5},
]
START = datetime(2026, 11, 22, 22, 0)


# --- records as the pipeline makes them


# What runs that are older than the second migration do not have.
ON_A_GPU = {
    "median_step_seconds": 0.25,
    "p99_step_seconds": 0.5,
    "ahead_seconds": 250.0,
    "gap_seconds": 36.0,
    "compilations": 0,
    "rehearsal_mib": 16.0,
    "driver": "580.95.05",
    "sm_mhz": 1500.0,
    "power_watts": 600.0,
    "temperature_c": 60.0,
    "foreign_mib": 0.0,
    "device_fault": None,
}
# Nor what the third added.
BELIEVED = {
    "sandbox": "landlock 7 + seccomp",
    "source_sha256": 32 * "4e",
    "judge": "0123456789ab",
    "overtime_seconds": 0.125,
    "audit_probes": 2560,
    "audit_positions": 2_621_440,
    "audit_worst_nats": 0.03125,
    "audit_gain_nats": -0.0001,
    "audit_seed": 2**63 - 1,
}
# Nor what the fourth added.
STEADY = {"audit_mean_nats": 0.00025, "audit_loud_share": 0.0}
LATER = {"epochs": 0.5, **ON_A_GPU, **BELIEVED, **STEADY}


def described(mutant, name, context):
    """Return the rows that say what a trial or a verdict is about."""
    base = mutant == "base"
    return {
        "context": {
            "context": context,
            "profile": "gpu",
            "budget_seconds": 300.0,
            "device": "NVIDIA H200",
            "torch": "2.11.0+cu130",
            "attention": "sdpa",
            "data": "8c1f",
            "base": "base",
            "numerics": "77aa",
            "scored_tokens": 21_000_000,
        },
        "experiment": None
        if base
        else {
            "experiment": f"claim of {name}",
            "id": f"specs/attention.py::{name}",
            "file": "specs/attention.py",
            "name": name.split("[")[0],
            "swept": "{}",
            "hypothesis": "Queries and keys of one length need no warm-up.",
            "change": "Normalise queries and keys.",
            "tags": ["attention"],
            "delta_bpb": -0.001,
            "sd_bpb": 0.001,
            "within_bpb": None,
            "on_profile": "gpu",
            "mutant": mutant,
        },
        "mutant": {
            "mutant": mutant,
            "base": "base",
            "codemods": [] if base else [f"attention.{name}()"],
            "configuration": '{"DEPTH": 8}',
            "diff": "" if base else "-ROPE_BASE = 10000\n+ROPE_BASE = 200000\n",
            "source": f"ROPE_BASE = 200000  # {mutant}\n",
        },
        "changes": []
        if base
        else [
            {
                "mutant": mutant,
                "symbol": "ROPE_BASE",
                "kind": "constant",
                "edit": "changed",
                "old_source": "10000",
                "new_source": "200000",
            },
            {
                "mutant": mutant,
                "symbol": "norm_qk",
                "kind": "function",
                "edit": "added",
                "old_source": None,
                "new_source": "def norm_qk(q, k): ...",
            },
        ],
    }


def a_run(run, mutant="qk_norm", *, name=None, context="night", **said):
    """Return the record of a finished trial; *said* replaces what its row says."""
    row = {
        "run": run,
        "context": context,
        "mutant": mutant,
        "experiment": None if mutant == "base" else f"claim of {name or mutant}",
        "claim": None if mutant == "base" else "-0.001",
        "seed": 0,
        "status": "finished",
        "crash": None,
        "phase": "done",
        "message": "",
        "log_tail": [],
        "val_bpb": 0.9,
        "val_nats": 1000.0,
        "val_bytes": 1600,
        "val_tokens": 400,
        "train_seconds": 300.0,
        "train_tokens": 4096,
        "steps": 2,
        "start_seconds": 20.0,
        "save_seconds": 1.0,
        "serve_seconds": 3.0,
        "score_seconds": 12.0,
        "wall_seconds": 336.0,
        "peak_mib": 30_000.0,
        "left_behind": 0,
        "device": "GPU-1",
        "started_at": START.isoformat(),
        **LATER,
    }
    assert said.keys() <= row.keys()
    return {**described(mutant, name or mutant, context), "run": {**row, **said}}


def a_verdict(verdict, mutant="qk_norm", *, name=None, context="night", **said):
    """Return the record of a supported claim; *said* replaces what its row says."""
    row = {
        "verdict": verdict,
        "experiment": f"claim of {name or mutant}",
        "context": context,
        "mutant": mutant,
        "claim": "-0.001",
        "attempt": 0,
        "word": "supported",
        "reason": "Look 2 of 6.",
        "delta_bpb": -0.002,
        "lower_bpb": -0.003,
        "upper_bpb": -0.001,
        "predicted_bpb": -0.001,
        "size_held": True,
        "replication": 0.9,
        "noise_sd": 0.0018,
        "noise_df": 4.0,
        "looks": 6,
        "candidates": 2,
        "bases": 2,
        "seconds": 672.0,
        "runs": ["r1", "r2"],
        "decided_at": START.isoformat(),
    }
    assert said.keys() <= row.keys()
    return {**described(mutant, name or mutant, context), "verdict": {**row, **said}}


def older(record):
    """Return the record of a run as it was before the second migration."""
    row = {name: said for name, said in record["run"].items() if name not in LATER}
    return {**record, "run": row}


def crashed(run, mutant="qk_norm", **said):
    nothing = dict.fromkeys((
        "val_bpb",
        "val_nats",
        "val_bytes",
        "val_tokens",
        "train_seconds",
    ))
    failed = {"status": "crashed", "crash": "oom", "phase": "train"}
    return a_run(run, mutant, **{**nothing, **failed, **said})


def a_call(call, **said):
    """Return the record of an answer that was paid for."""
    row = {
        "call": call,
        "attempt": "a0",
        "id": "specs/attention.py::qk_norm",
        "purpose": "implement",
        "model": "claude-opus-5-5",
        "prompt": "0" * 32,
        "input_tokens": 20,
        "output_tokens": 900,
        "cache_read_tokens": 12_000,
        "cache_write_tokens": 400,
        "usd": 0.0225,
        "latency_seconds": 14.5,
        "outcome": "answered",
        "message": None,
        "request": "req_1",
        "started_at": START.isoformat(),
    }
    return {"call": row | said, "answer": []}


def an_attempt(attempt, **said):
    """Return the record of a codemod that was written."""
    row = {
        "attempt": attempt,
        "id": "specs/attention.py::qk_norm",
        "spec": "0" * 16,
        "model": "claude-opus-5-5",
        "outcome": "implemented",
        "reason": None,
        "rounds": 2,
        "calls": 4,
        "codemod": "",
        "ended_at": START.isoformat(),
    }
    return {"attempt": row | said}


def keep(journal, *records, curve=CURVE):
    """Journal *records* as the pipeline does."""
    for record in records:
        kind = next((kind for kind in NOTES if kind in record), None)
        if kind is not None:
            journal.folder.mkdir(exist_ok=True)
            journal.keep_note(kind, record[kind][kind], record)
        else:
            run = record["run"]["run"]
            (journal.begin(run) / "train.py").write_text(record["mutant"]["source"])
            journal.keep_run(run, record, curve)


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "runs")


@pytest.fixture
def database(tmp_path):
    return tmp_path / "runs.duckdb"


def inserted(database, journal):
    with opened(database, 0.0) as db:
        return ingest(db, journal)


def asked(database, sql):
    with duckdb.connect(str(database), read_only=True) as db:
        return db.sql(sql).fetchall()


def content(database):
    """Return every row of every table, in an order of its own."""
    return {
        table: sorted(map(repr, asked(database, f"from {table}"))) for table in TABLES
    }


def started(code, *arguments):
    """Start *code* in a process of its own, with pipes to talk to it."""
    return subprocess.Popen(
        [sys.executable, "-c", dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# Starts real processes that have imported already, and no threads.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


def exit_code(function, *arguments):
    """Run *function* in a process of its own; return how that ended."""
    process = FORKS.Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def die_at(moment, skipped=0):
    """Kill this process when it opens a file named *moment*, or at that audit event."""
    left = itertools.count(skipped, -1)

    def watch(event, arguments):
        opens = event == "open" and str(arguments[0]).endswith(moment)
        if (opens or event == moment) and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


# --- the journal


def keep_one_and_die_at(stop_at, folder):
    journal = Journal(folder)
    keep(journal, a_run("whole"))
    die_at(stop_at)
    keep(journal, a_run("cut"))


@pytest.mark.parametrize("stop_at", ["train.diff", "result.json", "os.rename"])
def test_a_trial_whose_session_is_killed_leaves_nothing_that_counts(
    journal, database, stop_at
):
    code = exit_code(keep_one_and_die_at, stop_at, journal.folder)

    left = [path.name for path in journal.partial.iterdir()]
    counted = inserted(database, journal)
    swept = journal.sweep()

    assert code == -signal.SIGKILL
    assert left == ["cut"]
    assert counted.runs == 1
    assert asked(database, "select run from runs") == [("whole",)]
    assert swept == 1
    assert list(journal.partial.iterdir()) == []
    assert journal.sweep() == 0


def keep_a_verdict_and_die_at(stop_at, folder):
    die_at(stop_at)
    keep(Journal(folder), a_verdict("v1"))


def test_a_verdict_whose_session_is_killed_leaves_nothing_that_counts(journal):
    code = exit_code(keep_a_verdict_and_die_at, "os.rename", journal.folder)

    before = [path.name for path in journal.folder.iterdir()]
    swept = journal.sweep()

    assert code == -signal.SIGKILL
    assert before == [".v1.tmp"]
    assert list(journal.notes("verdict")) == []
    assert swept == 0  # it was no trial, and its runs are there to decide again
    assert list(journal.folder.iterdir()) == []


def test_a_run_folder_holds_what_was_run_and_what_came_of_it(journal):
    folder = journal.begin("r1")
    for name in ("train.py", "log.txt", "judge.txt", "weights.safetensors"):
        (folder / name).write_text(name)
    (folder / "tmp").mkdir()

    journal.keep_run("r1", a_run("r1"), CURVE)

    kept = journal.folder / "r1"
    assert sorted(path.name for path in kept.iterdir()) == [
        "curve.parquet",
        "judge.txt",
        "log.txt",
        "result.json",
        "spec.json",
        "train.diff",
        "train.py",
    ]
    assert (
        kept / "train.diff"
    ).read_text() == "-ROPE_BASE = 10000\n+ROPE_BASE = 200000\n"
    assert json.loads((kept / "spec.json").read_text())["delta_bpb"] == -0.001
    assert journal.run("r1") == a_run("r1")
    assert journal.curve("r1").to_pylist() == CURVE


def test_a_trial_that_is_kept_twice_stays_as_it_was(journal):
    journal.begin("r1")
    journal.keep_run("r1", a_run("r1"), CURVE)

    journal.keep_run("r1", a_run("r1"), [])

    assert journal.curve("r1").to_pylist() == CURVE
    assert list(journal.runs()) == ["r1"]


@pytest.mark.parametrize("name", ["result.json", "curve.parquet", "train.diff"])
def test_a_trial_cannot_make_us_write_through_a_link_that_it_left(
    journal, tmp_path, name
):
    precious = tmp_path / "precious"
    precious.write_text("as it was")
    folder = journal.begin("r1")
    (folder / name).symlink_to(precious)

    journal.keep_run("r1", a_run("r1"), CURVE)

    assert precious.read_text() == "as it was"
    assert not (journal.folder / "r1" / name).is_symlink()


def test_a_trial_cannot_make_us_wait_for_a_pipe_that_it_left(journal):
    folder = journal.begin("r1")
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "log.txt")

    journal.keep_run("r1", a_run("r1"), CURVE)

    assert list(journal.runs()) == ["r1"]
    assert not (journal.folder / "r1" / "log.txt").exists()


def test_a_trial_without_a_step_has_an_empty_curve(journal, database):
    keep(journal, crashed("r1"), curve=[])

    inserted(database, journal)

    assert asked(database, "select run, val_bpb from runs") == [("r1", None)]
    assert asked(database, "from curves") == []


def test_a_number_that_is_not_finite_never_enters_the_journal(journal):
    with pytest.raises(ValueError, match="not JSON compliant"):
        keep(journal, a_run("r1", val_bpb=float("nan")))

    assert list(journal.runs()) == []


def test_ids_start_with_the_time_and_differ_within_a_second():
    ids = {new_id() for _ in range(100)}

    assert len(ids) == 100
    assert all(re.fullmatch(r"20\d{6}T\d{6}-[0-9a-f]{6}", one) for one in ids)


# --- what is damaged


def damage(path):
    path.write_text(path.read_text().replace("0.9", "0.8", 1))


def test_a_damaged_result_is_named_and_stops_no_other(journal, database):
    keep(journal, a_run("r1"), a_run("r2"), a_run("r3"), a_verdict("v1"))
    path = journal.folder / "r2" / "result.json"
    damage(path)

    with pytest.raises(StoreError) as caught:
        inserted(database, journal)

    assert str(caught.value) == (
        f"{path} is damaged: its content does not match its digest.\n\n"
        "hint: move what is damaged out of runs/: a trial is then run again where it "
        "is needed, and all else is kept."
    )
    assert asked(database, "select run from runs order by run") == [("r1",), ("r3",)]
    assert asked(database, "select verdict from verdicts") == [("v1",)]


def test_every_damaged_record_is_named_each_time_until_it_is_moved_away(
    journal, database
):
    keep(journal, a_run("r1"), a_run("r2"), a_run("r3"), a_verdict("v1"))
    damage(journal.folder / "r1" / "result.json")
    (journal.folder / "r3" / "curve.parquet").unlink()
    (journal.folder / "v1.verdict.json").write_text("{")
    texts = []

    for _ in range(2):
        with pytest.raises(StoreError) as caught:
            inserted(database, journal)
        texts.append(str(caught.value))
    for name in ("r1", "r3", "v1.verdict.json"):
        (journal.folder / name).rename(journal.folder.parent / name)

    runs = journal.folder
    digest = "its content does not match its digest."
    assert texts[0].split("\n") == [
        f"{runs}/r1/result.json is damaged: {digest}",
        f"{runs}/r3/curve.parquet is damaged: {runs}/r3/curve.parquet.",
        f"{runs}/v1.verdict.json is damaged: {digest}",
        "",
        f"hint: {DAMAGED_HINT}",
    ]
    assert texts[1] == texts[0]
    assert inserted(database, journal).runs == 0
    assert asked(database, "select run from runs") == [("r2",)]


def test_a_curve_that_was_cut_short_is_damaged(journal, database):
    keep(journal, a_run("r1"))
    path = journal.folder / "r1" / "curve.parquet"
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(StoreError) as caught:
        inserted(database, journal)

    assert str(caught.value).startswith(f"{path} is damaged: ")
    assert asked(database, "from runs") == []


def test_a_copied_run_folder_is_not_a_second_measurement(journal, database):
    keep(journal, a_run("r1"))
    shutil.copytree(journal.folder / "r1", journal.folder / "r1-copy")

    for _ in range(2):
        with pytest.raises(StoreError) as caught:
            inserted(database, journal)

    assert str(caught.value) == (
        f"{journal.folder}/r1-copy/result.json is damaged: it is the record of r1.\n\n"
        f"hint: {DAMAGED_HINT}"
    )
    assert asked(database, "select run from runs") == [("r1",)]


@settings(max_examples=200)
@given(st.data())
def test_a_changed_byte_is_noticed_or_changes_nothing(tmp_path_factory, data):
    journal = Journal(tmp_path_factory.getbasetemp() / "flipped")
    if not journal.folder.exists():
        keep(journal, a_run("r1", message="±"))
    path = journal.folder / "r1" / "result.json"
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255))

    path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
    try:
        read = journal.run("r1")
    except StoreError:
        read = None
    finally:
        path.write_bytes(whole)

    assert read in (None, a_run("r1", message="±"))


def test_what_is_no_run_folder_is_nobodys_business(journal, database):
    keep(journal, a_run("r1"))
    (journal.folder / "notes").mkdir()
    (journal.folder / "README.txt").write_text("mine")
    (journal.folder / ".verdict.json").write_text("{")

    found = inserted(database, journal)

    assert (found.runs, found.verdicts) == (1, 0)


# --- what is inserted


def test_the_same_seed_twice_is_two_rows(journal, database):
    keep(journal, a_run("r1", seed=7), a_run("r2", seed=7))

    inserted(database, journal)

    assert asked(database, "select run, seed from runs order by run") == [
        ("r1", 7),
        ("r2", 7),
    ]


def test_what_is_there_already_is_not_inserted_again(journal, database):
    keep(journal, a_run("r1"), a_verdict("v1"))

    first = inserted(database, journal)
    before = content(database)
    second = inserted(database, journal)

    assert (first.runs, first.verdicts) == (1, 1)
    assert (second.runs, second.verdicts) == (0, 0)
    assert content(database) == before


def test_what_many_trials_share_is_stored_once(journal, database):
    keep(journal, a_run("b1", "base"), a_run("r1"), a_run("r2"), a_verdict("v1"))
    inserted(database, journal)
    keep(journal, a_run("b2", "base"), a_run("r3"), a_verdict("v2"))

    inserted(database, journal)

    rows = {table: len(asked(database, f"from {table}")) for table in TABLES}
    assert rows == {
        "contexts": 1,
        "experiments": 1,
        "mutants": 2,
        "symbol_changes": 2,
        "runs": 5,
        "curves": 10,
        "verdicts": 2,
    }


def test_a_deleted_database_comes_back_equal_from_the_journal(journal, database):
    for night in range(3):
        keep(
            journal,
            a_run(f"{night}-b", "base", seed=night),
            a_run(f"{night}-r", seed=night, log_tail=["half ± \x00 done"]),
            crashed(f"{night}-x", "wide", seed=night),
            a_verdict(f"{night}-v", attempt=night),
        )
        inserted(database, journal)
    before = content(database)
    database.unlink()

    inserted(database, journal)

    assert content(database) == before
    assert all(before.values())


def insert_and_die(database, journal):
    with opened(database, 0.0) as db:
        ingest(db, journal)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_rebuild_is_not_fooled_by_a_log_that_the_deleted_database_left(
    journal, database
):
    keep(journal, a_run("r1"))
    exit_code(insert_and_die, database, journal)
    assert Path(f"{database}.wal").exists()
    database.unlink()

    inserted(database, journal)

    assert asked(database, "select run from runs") == [("r1",)]


def test_a_crashed_trial_has_no_score_rather_than_a_number(journal, database):
    keep(journal, crashed("r1", message="CUDA out of memory."))

    inserted(database, journal)

    assert asked(
        database, "select status, crash, val_bpb, val_nats, val_bytes from runs"
    ) == [("crashed", "oom", None, None, None)]
    assert asked(database, "select count(*) from runs where val_bpb < 1") == [(0,)]


def test_an_older_record_without_a_column_does_not_take_it_from_the_others(
    journal, database
):
    lacking = a_run("r1")
    del lacking["run"]["left_behind"]
    keep(journal, lacking, a_run("r2", left_behind=3))

    inserted(database, journal)

    assert asked(database, "select run, left_behind from runs order by run") == [
        ("r1", None),
        ("r2", 3),
    ]


def test_half_a_surrogate_pair_in_a_message_does_not_keep_a_trial_out(
    journal, database
):
    keep(journal, crashed("r1", message="bad \ud800 text"))

    inserted(database, journal)

    assert asked(database, "select message from runs") == [("bad ? text",)]


def test_what_is_known_is_not_read_again(journal, database):
    keep(journal, a_run("r1"), a_verdict("v1"))
    inserted(database, journal)
    damage(journal.folder / "r1" / "result.json")
    (journal.folder / "r1" / "curve.parquet").unlink()
    (journal.folder / "v1.verdict.json").write_text("{")
    keep(journal, a_run("r2"))

    found = inserted(database, journal)

    assert (found.runs, found.verdicts) == (1, 0)


# --- the file


HOLDS = """
    import sys, duckdb
    db = duckdb.connect(sys.argv[1])
    print("holding", flush=True)
    sys.stdin.read()
"""


def test_a_file_that_somebody_holds_delays_rows_and_loses_none(journal, database):
    keep(journal, a_run("r1"))
    inserted(database, journal)
    keep(journal, a_run("r2"))
    holder = started(HOLDS, database)
    assert holder.stdout.readline() == "holding\n"
    began = time.monotonic()

    with pytest.raises(Held) as caught:
        inserted_after(0.3, database, journal)
    waited = time.monotonic() - began
    holder.communicate("")

    assert waited >= 0.3
    assert caught.value.holder.endswith(f" (PID {holder.pid})")
    assert "python" in caught.value.holder
    assert inserted(database, journal).runs == 1
    assert asked(database, "select run from runs order by run") == [("r1",), ("r2",)]


def inserted_after(patience_seconds, database, journal):
    with opened(database, patience_seconds) as db:
        return ingest(db, journal)


def test_a_file_that_is_released_in_time_is_written(journal, database):
    keep(journal, a_run("r1"))
    holder = started(HOLDS, database)
    assert holder.stdout.readline() == "holding\n"
    found = []
    waiting = threading.Thread(
        target=lambda: found.append(inserted_after(60.0, database, journal))
    )

    waiting.start()
    holder.communicate("")
    waiting.join()

    assert found[0].runs == 1


def test_a_holder_whose_path_has_spaces_is_named(database, tmp_path):
    python = tmp_path / "my tools" / "python"
    python.parent.mkdir()
    shutil.copy(Path(sys.executable).resolve(), python)
    home = {"PYTHONHOME": sys.base_prefix, "PYTHONPATH": os.pathsep.join(sys.path)}
    holder = subprocess.Popen(
        [python, "-c", dedent(HOLDS), database],
        env={**os.environ, **home},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "holding\n"

    with pytest.raises(Held) as caught, opened(database, 0.0):
        pass
    holder.communicate("")

    assert caught.value.holder == f"{python} (PID {holder.pid})"


def test_a_reader_outside_keeps_the_writer_out_too(journal, database):
    keep(journal, a_run("r1"))
    inserted(database, journal)
    reader = started(HOLDS.replace("argv[1])", "argv[1], read_only=True)"), database)
    assert reader.stdout.readline() == "holding\n"

    with pytest.raises(Held), opened(database, 0.0):
        pass
    reader.communicate("")

    with opened(database, 0.0) as db:
        assert db.sql("select run from runs").fetchall() == [("r1",)]


def insert_few_at_a_time_and_die_at(read, database, journal):
    store.BATCH = 3
    die_at(".json", skipped=read)
    insert_and_die(database, journal)


def test_a_killed_ingestion_is_completed_by_the_next(journal, database):
    keep(journal, *(a_run(f"r{n}", f"m{n}", seed=n) for n in range(12)))
    keep(journal, a_verdict("v1", "m1"))
    counts = []

    for read in (0, 4, 5, 20):  # before any batch, amid one, amid the next, at the end
        arguments = read, database, journal
        assert exit_code(insert_few_at_a_time_and_die_at, *arguments) == -signal.SIGKILL
        with opened(database, 0.0) as db:
            counts += db.execute("select count(*) from runs").fetchone()
    inserted(database, journal)

    assert counts == [0, 3, 6, 12]
    rebuilt = database.with_name("again.duckdb")
    inserted(rebuilt, journal)
    assert content(rebuilt) == content(database)


def insert_few_at_a_time(database, journal):
    store.BATCH = 2
    inserted(database, journal)


def test_a_process_killed_at_any_moment_leaves_a_file_that_opens(journal, database):
    keep(journal, *(a_run(f"r{n}", f"m{n}") for n in range(40)))
    seen = []

    for seconds in (0.03, 0.1, 0.15, 0.2, 0.25):
        working = FORKS.Process(target=insert_few_at_a_time, args=(database, journal))
        working.start()
        working.join(seconds)
        working.kill()
        working.join()
        with opened(database, 0.0) as db:
            seen += db.execute("select count(distinct run) from runs").fetchone()
    inserted(database, journal)

    assert seen == sorted(seen)
    assert asked(database, "select count(*), count(distinct run) from runs") == [
        (40, 40)
    ]


def test_an_older_duckdb_can_read_the_file(database):
    with opened(database, 0.0) as db:
        name = database.stem
        ((version,),) = db.execute(
            "select tags['storage_version'] from duckdb_databases()"
            " where database_name = ?",
            [name],
        ).fetchall()

    assert version == "v1.0.0+"
    assert database.read_bytes()[8:16] == b"DUCK@\0\0\0"  # 64: what 0.10 to 1.1 write


def test_no_table_has_a_key_or_an_index(database):
    with opened(database, 0.0) as db:
        constraints = db.execute("select * from duckdb_constraints()").fetchall()
        indexes = db.execute("select * from duckdb_indexes()").fetchall()

    assert constraints == []
    assert indexes == []


def test_migrations_run_once(database):
    seen = []

    for _ in range(3):
        with opened(database, 0.0) as db:
            seen.append(db.execute("from migrations").fetchall())

    assert seen == [MIGRATIONS] * 3


def made_by_the_first_migration(database, *records):
    """Make a file as it was before the second one, with its views and rows."""
    views = (STORE / "views.sql").read_text().split("create or replace view conditions")
    with duckdb.connect(str(database), config=STORAGE) as db:
        db.execute("create table migrations (number integer, name varchar)")
        db.execute((STORE / "migrations" / MIGRATIONS[0][1]).read_text())
        db.execute("insert into migrations values (?, ?)", MIGRATIONS[0])
        db.execute(views[0])
        store._insert_batch(db, records)


def test_an_older_file_gains_the_columns_of_newer_runs_and_keeps_its_rows(
    journal, database
):
    keep(journal, older(a_run("b0", "base")), older(a_run("r0")), a_verdict("v0"))
    made_by_the_first_migration(
        database,
        *((journal.run(run), journal.curve(run)) for run in journal.runs()),
        (journal.note("verdict", "v0"), None),
    )
    before = content(database)
    keep(journal, a_run("r1", seed=1))

    added = inserted(database, journal)

    assert asked(database, "from migrations") == MIGRATIONS
    assert (added.runs, added.verdicts) == (1, 0)
    columns = ", ".join(LATER)
    assert asked(database, f"select run, {columns} from runs order by run") == [
        ("b0", *[None] * len(LATER)),
        ("r0", *[None] * len(LATER)),
        ("r1", *LATER.values()),
    ]
    kept = f"from runs select * exclude ({columns}) where run <> 'r1'"
    assert sorted(map(repr, asked(database, kept))) == before["runs"]
    assert content(database)["verdicts"] == before["verdicts"]
    assert asked(database, "select run, seed from deltas") == [("r0", 0)]


def test_an_upgraded_file_equals_one_that_is_made_anew(journal, database):
    keep(journal, older(a_run("r0")), older(crashed("x0", "wide")), a_verdict("v0"))
    made_by_the_first_migration(
        database,
        *((journal.run(run), journal.curve(run)) for run in journal.runs()),
        (journal.note("verdict", "v0"), None),
    )
    keep(journal, a_run("r1", seed=1))
    inserted(database, journal)
    anew = database.with_name("anew.duckdb")

    inserted(anew, journal)

    assert content(anew) == content(database)


def test_a_record_of_these_tests_fills_every_column(database):
    with opened(database, 0.0) as db:
        columns = {
            table: [name for name, *_ in db.execute(f"describe {table}").fetchall()]
            for table in ("runs", "verdicts")
        }

    assert sorted(a_run("r1")["run"]) == sorted(columns["runs"])
    assert sorted(a_verdict("v1")["verdict"]) == sorted(columns["verdicts"])


def test_a_context_says_whether_its_runs_were_in_a_sandbox(journal, database):
    for name, confined in (("night", True), ("open", False)):
        sandbox = BELIEVED["sandbox"] if confined else "none"
        record = a_run(f"of {name}", context=name, sandbox=sandbox)
        record["context"]["confined"] = confined
        keep(journal, record)
    keep(journal, older(a_run("before", context="old")))

    inserted(database, journal)

    assert asked(
        database,
        "select run, confined, sandbox from runs join contexts using (context)"
        " order by run",
    ) == [
        ("before", None, None),
        ("of night", True, "landlock 7 + seccomp"),
        ("of open", False, "none"),
    ]


def test_where_the_seconds_went_is_unknown_of_an_older_run(journal, database):
    keep(journal, older(a_run("r0")), a_run("r1", seed=1))

    inserted(database, journal)

    assert asked(
        database,
        "select run, driver, gap_seconds, start_seconds, tokens_per_second"
        " from conditions order by run",
    ) == [
        ("r0", None, None, 20.0, 4096 / 300),
        ("r1", "580.95.05", 36.0, 20.0, 4096 / 300),
    ]


def test_the_file_of_a_newer_deltaspec_is_refused(database):
    with opened(database, 0.0) as db:
        db.execute("insert into migrations values (999, '0999_later.sql')")

    with pytest.raises(StoreError) as caught, opened(database, 0.0):
        pass

    assert str(caught.value) == (
        f"{database} was made by a newer deltaspec: it has seen migration 999, and "
        f"this one knows {MIGRATIONS[-1][0]}.\n\n"
        "hint: update deltaspec, or move the file away: it is then made anew from runs/."
    )


def test_a_file_that_is_no_database_is_refused_with_a_way_out(database):
    database.write_bytes(b"not a database" * 1000)

    with pytest.raises(StoreError) as caught, opened(database, 0.0):
        pass

    assert str(caught.value) == (
        f'{database} cannot be opened: IO Error: The file "{database}" exists, but it '
        "is not a valid DuckDB database file!\n\n"
        f"hint: if it is damaged, move it and {database}.wal away: the next command "
        "makes it anew from runs/."
    )


def test_every_table_view_and_column_says_what_it_is(database):
    with opened(database, 0.0) as db:
        silent = db.execute(
            "select table_name, null from duckdb_tables() where comment is null"
            " union all select view_name, null from duckdb_views()"
            " where not internal and comment is null"
            " union all select table_name, column_name from duckdb_columns()"
            " where not internal and comment is null"
        ).fetchall()

    assert silent == []


# --- the history


finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=20)
names = st.text("abcdef0123456789", min_size=1, max_size=8)
maybe = st.one_of(st.none(), finite)


@st.composite
def outcomes(draw):
    finished = draw(st.booleans())
    return Outcome(
        run="",  # given when the list is whole, in its order
        mutant=draw(names),
        seed=draw(st.integers(0, 63_999)),
        status="finished"
        if finished
        else draw(st.sampled_from(["crashed", "invalid"])),
        crash=None if finished else draw(st.sampled_from([None, "oom", "hang"])),
        message=draw(texts),
        log_tail=tuple(draw(st.lists(texts, max_size=3))),
        val_bpb=draw(finite) if finished else None,
        wall_seconds=draw(st.floats(0, 1e6)),
        claim=draw(st.none() | texts),
        device=draw(names),
        started_at=START,
    )


verdicts = st.builds(
    Verdict,
    mutant=names,
    claim=texts,
    attempt=st.integers(0, 63),
    word=st.sampled_from(["supported", "refuted", "inconclusive", "measured"]),
    reason=texts,
    delta_bpb=maybe,
    lower_bpb=maybe,
    upper_bpb=maybe,
    predicted_bpb=maybe,
    size_held=st.sampled_from([None, True, False]),
    replication=maybe,
    noise_sd=finite,
    noise_df=finite,
    looks=st.integers(1, 64),
    candidates=st.integers(0, 64),
    bases=st.integers(0, 8),
    seconds=finite,
    runs=st.lists(names, max_size=4).map(tuple),
)


@settings(max_examples=15)
@given(st.lists(outcomes(), max_size=5), st.lists(verdicts, max_size=3))
def test_the_history_that_is_read_is_the_one_that_was_recorded(
    tmp_path_factory, ended, decided
):
    journal = Journal(tmp_path_factory.mktemp("project") / "runs")
    ended = [attrs.evolve(outcome, run=f"r{n}") for n, outcome in enumerate(ended)]
    for outcome in ended:
        row = {
            **attrs.asdict(outcome),
            "log_tail": list(outcome.log_tail),
            "started_at": START.isoformat(),
        }
        keep(journal, a_run(**row))
    for n, verdict in enumerate(decided):
        row = {**attrs.asdict(verdict), "runs": list(verdict.runs)}
        keep(journal, a_verdict(f"v{n}", **row))

    with opened(None, 0.0) as db:
        ingest(db, journal)
        history = read_history(db, "night")

    assert history == History(outcomes=tuple(ended), verdicts=tuple(decided))


def test_a_history_speaks_of_one_context_only(journal, database):
    keep(journal, a_run("r1"), a_run("r2", context="laptop"))
    keep(journal, a_verdict("v1", context="laptop"))

    with opened(database, 0.0) as db:
        ingest(db, journal)
        night, laptop = read_history(db, "night"), read_history(db, "laptop")

    assert [outcome.run for outcome in night.outcomes] == ["r1"]
    assert night.verdicts == ()
    assert [outcome.run for outcome in laptop.outcomes] == ["r2"]
    assert len(laptop.verdicts) == 1


@pytest.mark.parametrize("status", ["killed", "infrastructure"])
def test_what_was_nobodys_fault_is_stored_and_does_not_count(journal, database, status):
    keep(journal, crashed("r1", status=status, crash=None))

    with opened(database, 0.0) as db:
        ingest(db, journal)
        history = read_history(db, "night")

    assert history.outcomes == ()
    assert asked(database, "select status from runs") == [(status,)]


def test_the_latest_word_on_a_mutant_is_remembered(journal, database):
    later = (START + timedelta(hours=1)).isoformat()
    keep(journal, a_verdict("v1", word="refuted", decided_at=later), a_verdict("v2"))

    with opened(database, 0.0) as db:
        ingest(db, journal)

    words = past_words(database)

    assert words == {"qk_norm": "refuted"}


# --- views, and the questions of docs/sql.md


def curve(*losses):
    """Return a curve of three steps, two of them in the first tenth of 300 s."""
    seconds = 10.0, 20.0, 200.0
    return [
        {"step": n + 1, "seconds": seconds[n], "tokens": 2048, "loss_nats": loss}
        for n, loss in enumerate(losses)
    ]


SLOWER = {
    "device": "GPU-2",
    "train_tokens": 3072,
    "start_seconds": 22.0,
    "wall_seconds": 338.0,
}


@pytest.fixture
def night(journal, database):
    """Return a database whose history the answers below are about."""
    later = (START + timedelta(hours=1)).isoformat()
    keep(
        journal,
        a_run("b0", "base", seed=0, val_bpb=1.000, gap_seconds=None),
        a_run("b1", "base", seed=1, val_bpb=1.010, **SLOWER),
        curve=curve(8.0, 6.0, 5.0),
    )
    keep(
        journal,
        a_run("q0", seed=0, val_bpb=0.990),
        a_run("q1", seed=1, val_bpb=0.998, **SLOWER),
        curve=curve(8.0, 6.0, 4.5),
    )
    keep(
        journal,
        a_run("w0", "window", seed=0, val_bpb=1.004),
        a_run("l0", context="laptop", seed=0, val_bpb=1.7),
        crashed("x0", "wide", seed=0, message="CUDA out of memory."),
        crashed("x1", "wide", seed=0, message="CUDA out of memory."),
        crashed("x2", "deep", seed=0, crash="nan", message="the loss is nan."),
        curve=[],
    )
    keep(journal, a_call("c0"), an_attempt("a0"))
    keep(
        journal,
        a_verdict("v0", word="inconclusive", delta_bpb=-0.0001, replication=None),
        a_verdict(
            "v1",
            attempt=1,
            delta_bpb=-0.011,
            lower_bpb=-0.013,
            upper_bpb=-0.009,
            size_held=False,
            decided_at=later,
        ),
        a_verdict(
            "v2",
            "window",
            word="refuted",
            delta_bpb=0.004,
            lower_bpb=-0.002,
            upper_bpb=0.01,
            replication=None,
        ),
        a_verdict(
            "v3",
            "wide",
            word="crashed",
            delta_bpb=None,
            lower_bpb=None,
            upper_bpb=None,
            size_held=None,
            replication=None,
        ),
    )
    inserted(database, journal)
    return database


def test_the_leaderboard_is_best_first_and_the_newest_attempt_speaks(night):
    rows = asked(night, "select profile, id, word, delta_bpb, attempt from leaderboard")

    assert rows == [
        ("gpu", "specs/attention.py::qk_norm", "supported", -0.011, 1),
        ("gpu", "specs/attention.py::window", "refuted", 0.004, 0),
        ("gpu", "specs/attention.py::wide", "crashed", None, 0),
    ]


def test_of_two_verdicts_in_one_attempt_the_later_speaks(journal, database):
    later = (START + timedelta(hours=1)).isoformat()
    keep(journal, a_verdict("v1", decided_at=later), a_verdict("v2", word="refuted"))

    inserted(database, journal)

    assert asked(database, "select word from leaderboard") == [("supported",)]


def test_deltas_pair_runs_by_seed_and_context(night):
    rows = asked(
        night,
        "select run, seed, base_bpb, round(delta_bpb, 6) from deltas order by run",
    )

    assert rows == [  # l0 has no base in its context, x0 no number
        ("q0", 0, 1.0, -0.01),
        ("q1", 1, 1.01, -0.012),
        ("w0", 0, 1.0, 0.004),
    ]


def test_a_delta_is_that_to_the_base_on_the_same_device(journal, database):
    keep(
        journal,
        a_run("b0", "base", val_bpb=1.0, device="GPU-fast"),
        a_run("b1", "base", val_bpb=1.5, device="GPU-slow"),
        a_run("q0", val_bpb=1.25, device="GPU-slow"),
        a_run("q1", val_bpb=1.0, device="GPU-third"),
    )

    inserted(database, journal)

    assert asked(database, "select run, base_bpb, delta_bpb from deltas") == [
        ("q0", 1.5, -0.25)
    ]


def test_a_base_that_ran_twice_with_one_seed_counts_with_its_mean(journal, database):
    keep(
        journal,
        a_run("b0", "base", val_bpb=1.0),
        a_run("b1", "base", val_bpb=1.5),
        a_run("q0", val_bpb=1.0),
    )

    inserted(database, journal)

    assert asked(database, "select run, base_bpb, delta_bpb from deltas") == [
        ("q0", 1.25, -0.25)
    ]


def test_changes_say_what_became_of_each_symbol(night):
    rows = asked(
        night,
        "select symbol, edit, old_source, word from changes where word is not null"
        " order by mutant, symbol desc",
    )

    assert rows == [
        ("norm_qk", "added", None, "supported"),
        ("ROPE_BASE", "changed", "10000", "supported"),
        ("norm_qk", "added", None, "crashed"),
        ("ROPE_BASE", "changed", "10000", "crashed"),
        ("norm_qk", "added", None, "refuted"),
        ("ROPE_BASE", "changed", "10000", "refuted"),
    ]


def test_a_mutant_that_was_only_run_is_among_the_changes_without_a_word(
    journal, database
):
    keep(journal, a_run("r1"))

    inserted(database, journal)

    assert asked(database, "select symbol, word from changes order by symbol") == [
        ("ROPE_BASE", None),
        ("norm_qk", None),
    ]


ANSWERS = {
    "What made the model better, and how sure is that?": [
        ("specs/attention.py::qk_norm", -0.011, -0.013, -0.009, 2)
    ],
    "Do the seeds agree?": [(0, 1.0, 0.99, -0.01), (1, 1.01, 0.998, -0.012)],
    "Has anybody changed this before?": [
        (
            "specs/attention.py::qk_norm",
            "changed",
            "10000",
            "200000",
            "supported",
            -0.011,
        ),
        ("specs/attention.py::window", "changed", "10000", "200000", "refuted", 0.004),
        ("specs/attention.py::wide", "changed", "10000", "200000", "crashed", None),
        (None, "changed", "10000", "200000", None, None),
    ],
    "Are our predictions any good?": [("specs/attention.py", 2, 0.5, -0.0025)],
    "Why do trials fail?": [
        ("crashed", "oom", "train", 2, "CUDA out of memory."),
        ("crashed", "nan", "train", 1, "the loss is nan."),
    ],
    "When in training does a change gain?": [
        ("specs/attention.py::qk_norm", 0.0, 7.0, 7.0),
        ("specs/attention.py::qk_norm", 0.6, 4.5, 5.0),
    ],
    "Where do the seconds of a trial go, and how fast is each GPU?": [
        ("night", "GPU-1", 1, 13.653333, None, 20.0, 300.0, 1.0, 3.0, 12.0, 0.0),
        ("night", "GPU-2", 1, 10.24, 36.0, 22.0, 300.0, 1.0, 3.0, 12.0, 0.0),
    ],
}


def test_the_document_asks_seven_questions():
    asked = re.findall(r"^\*\*(.+?)\*\*", DOCUMENT.read_text(), re.MULTILINE)

    assert asked == list(ANSWERS)


@pytest.mark.parametrize("question", ANSWERS)
def test_each_question_of_the_document_is_answered_as_it_stands(night, question):
    after = DOCUMENT.read_text().split(f"**{question}**")[1]
    sql = re.search(r"^```sql\n(.+?)^```$", after, re.MULTILINE | re.DOTALL).group(1)

    rows = asked(night, sql)

    assert rounded(rows) == ANSWERS[question]


def rounded(rows):
    return [
        tuple(round(cell, 6) if isinstance(cell, float) else cell for cell in row)
        for row in rows
    ]


def test_the_document_describes_tables_and_views_as_the_database_does(database):
    written = [
        (section.split("\n", 1)[0], *row)
        for section in DOCUMENT.read_text().split("\n### ")[1:]
        for row in re.findall(
            r"^\| `(.+?)` \| (.+?) \| (.+) \|$", section, re.MULTILINE
        )
    ]

    with opened(database, 0.0) as db:
        commented = db.execute(
            "select table_name, column_name, lower(data_type), comment"
            " from duckdb_columns() where not internal and table_name <> 'migrations'"
        ).fetchall()

    assert sorted(written) == sorted(commented)
