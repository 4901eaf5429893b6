import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from textwrap import dedent

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.errors import DataError
from core.training.data import open_rows, open_source, prepare, source
from core.training.data.packing import Packer, pieces
from core.training.data.split import (
    SMALL_FILES_SHARE,
    TRAINING,
    VALIDATION,
    VALIDATION_ONE_IN,
    Tally,
    draw_validation,
    split_documents,
)
from core.training.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent
WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
]
SIZES = {"vocab_size": 280, "sequence_len": 16}
BOS = 999


def documents(count, seed=0, words=60):
    draw = random.Random(seed)
    return [
        " ".join(draw.choices(WORDS, k=draw.randint(1, words))) + f" {number}.\n"
        for number in range(count)
    ]


def write_parquet(path, texts, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts, **columns}), path, row_group_size=50)
    return path


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    write_parquet(folder / "shard_0.parquet", documents(300))
    write_parquet(folder / "shard_1.parquet", documents(100, seed=1))
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def texts_of(corpus):
    return [text for batch in corpus.read() for text in batch.texts]


def decoded(prepared, split):
    """Return the text between the BOS tokens of the rows, piece by piece."""
    tokenizer = Tokenizer.load(prepared.tokenizer)
    rows = open_rows(getattr(prepared, split), prepared.sequence_len)
    ids = rows.reshape(-1).tolist()
    starts = [at for at, token in enumerate(ids) if token == tokenizer.bos]
    return [
        tokenizer.encoding.decode_bytes(ids[start + 1 : end])
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)
    ]


def refusal(call, *arguments, **options):
    with pytest.raises(DataError) as caught:
        call(*arguments, **options)
    return str(caught.value)


# --- packing


def packed(lengths, sequence_len, most):
    """Pack documents of these lengths; each token but BOS tells its document."""
    blocks = []
    packer = Packer(
        sequence_len=sequence_len,
        write=lambda rows: blocks.append(rows.copy()),
        buffer_documents=most,
    )
    for document in numbered(lengths):
        packer.add(np.array(document, dtype=np.uint16))
    packer.finish()
    rows = np.concatenate([np.empty((0, sequence_len + 1), np.uint16), *blocks])
    return rows, packer


def numbered(lengths):
    return [[BOS] + [number] * (n - 1) for number, n in enumerate(lengths)]


def best_fit(waiting, width, most):
    """Pack by the definition; return rows, tokens cropped, tokens of the last row."""
    waiting, buffer, rows, row, cropped = list(waiting), [], [], [], 0
    while True:
        while waiting and len(buffer) < most:
            buffer.append(waiting.pop(0))
        if not buffer:
            return rows, cropped, len(row)
        room = width - len(row)
        fitting = [document for document in buffer if len(document) <= room]
        if fitting:
            size = max(len(document) for document in fitting)
        else:
            size = min(len(document) for document in buffer)
        at = next(at for at, document in enumerate(buffer) if len(document) == size)
        document = buffer.pop(at)
        row += document[:room]
        cropped += len(document[room:])
        if len(row) == width:
            rows.append(row)
            row = []


@given(data=st.data(), sequence_len=st.integers(1, 40), most=st.integers(1, 12))
def test_packing_is_the_best_fit_of_its_definition(data, sequence_len, most):
    width = sequence_len + 1
    lengths = data.draw(st.lists(st.integers(1, width), max_size=60))

    rows, packer = packed(lengths, sequence_len, most)

    expected, cropped, unfinished = best_fit(numbered(lengths), width, most)
    assert rows.tolist() == expected
    assert packer.rows == len(expected)
    assert packer.cropped_tokens == cropped
    assert packer.unfinished_tokens == unfinished


@given(lengths=st.lists(st.integers(1, 33), max_size=200), most=st.integers(1, 50))
@example(lengths=[33] * 200, most=50)
def test_every_row_starts_with_bos_and_every_token_is_accounted_for(lengths, most):
    rows, packer = packed(lengths, 32, most)

    assert (rows[:, 0] == BOS).all()
    assert packer.documents == len(lengths)
    assert packer.tokens == sum(lengths)
    assert packer.tokens == rows.size + packer.cropped_tokens + packer.unfinished_tokens


def test_more_rows_than_one_block_come_out_in_order(monkeypatch):
    monkeypatch.setattr("core.training.data.packing.BLOCK_BYTES", 100)

    rows, packer = packed([5] * 37, 4, 3)

    assert packer.rows == 37
    assert rows[:, 1].tolist() == list(range(37))


@given(size=st.integers(0, 100), sequence_len=st.integers(1, 40))
def test_a_document_longer_than_a_row_is_cut_and_not_lost(size, sequence_len):
    tokens = np.arange(size, dtype=np.uint16)

    cut = pieces(tokens, bos=BOS, sequence_len=sequence_len)

    assert all(piece[0] == BOS and len(piece) <= sequence_len + 1 for piece in cut)
    assert [id for piece in cut for id in piece[1:]] == tokens.tolist()


# --- sources


def test_the_library_of_python_is_a_corpus_without_its_tests_and_packages():
    corpus = open_source("stdlib")

    names = [file.path.relative_to(corpus.root).as_posix() for file in corpus.files]
    folders = {part for name in names for part in Path(name).parts[:-1]}
    assert "argparse.py" in names
    assert "json/decoder.py" in names
    assert names == sorted(names)
    assert not folders & {"test", "tests", "idlelib", "site-packages", "lib2to3"}
    assert not corpus.pinned


def test_a_corpus_reads_the_same_twice(corpus):
    opened = open_source(corpus)

    assert texts_of(opened) == texts_of(opened) == documents(300) + documents(100, 1)


def test_progress_of_reading_ends_at_one_and_never_goes_back(corpus):
    shares = [batch.fraction for batch in open_source(corpus).read()]

    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), "string"),
    ],
    ids=str,
)
def test_every_kind_of_string_column_is_read(tmp_path, kind):
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": pa.array(["one", None], pa.string()).cast(kind)}), path
    )

    assert texts_of(open_source(path)) == ["one", ""]


def test_text_files_are_read_by_relative_path_and_others_are_counted(tmp_path):
    for name in ("b.txt", "a/c.md", "a/d.PY", "image.png", ".hidden/e.txt", ".f.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)

    opened = open_source(tmp_path)

    assert texts_of(opened) == ["a/c.md", "a/d.PY", "b.txt"]
    assert opened.ignored_files == 1


def test_line_ends_and_marks_of_a_text_file_are_kept(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo\rthree\n\x00".encode())

    assert texts_of(open_source(path)) == ["\ufeffone\r\ntwo\rthree\n\x00"]


@pytest.mark.parametrize("line", [0, 1, 7, 100, 101, 1000])
@pytest.mark.parametrize("size", [1, 99, 100, 101, 200, 1234])
def test_a_long_text_file_is_several_documents_that_make_up_the_whole(
    tmp_path, monkeypatch, line, size
):
    monkeypatch.setattr(source, "DOCUMENT_CHARACTERS", 100)
    text = ("é" * line + "\n" if line else "é") * size
    text = text[:size]
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8", newline="")

    cut = texts_of(open_source(path))

    assert "".join(cut) == text
    assert all(0 < len(document) <= 100 for document in cut)


def test_a_data_set_may_have_a_readme_beside_its_parquet_files(corpus):
    (corpus / "README.md").write_text("about")

    opened = open_source(corpus)

    assert [file.path.name for file in opened.files] == [
        "shard_0.parquet",
        "shard_1.parquet",
    ]
    assert opened.ignored_files == 1


@pytest.mark.parametrize(
    ("name", "pinned"),
    [("val.txt", 1), ("shard_val.txt", 1), ("x-val.txt", 1), ("interval.txt", 0)],
)
def test_a_file_is_pinned_as_validation_by_the_end_of_its_name(tmp_path, name, pinned):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / name).write_text("b")

    opened = open_source(tmp_path)

    assert opened.pinned == pinned
    assert opened.files[0].validation == pinned


def test_a_missing_corpus_is_named(tmp_path):
    assert refusal(open_source, tmp_path / "none") == (
        f"There is no corpus at {tmp_path / 'none'}.\n\n"
        "hint: name a parquet or text file, a folder of them, 'stdlib' or"
        " 'climbmix'."
    )


def test_a_folder_without_text_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("a")

    assert refusal(open_source, tmp_path) == (
        f"{tmp_path} holds no corpus: none of its 1 files is parquet or text.\n\n"
        "hint: put .parquet files there, or text as .c, .cpp, .go, .h, .java, .js, .md,"
        " .py, .rs, .rst, .tex, .text, .ts, .txt."
    )


def test_parquet_and_text_in_one_folder_are_refused(corpus):
    (corpus / "more.txt").write_text("a")

    assert refusal(open_source, corpus) == (
        f"{corpus} holds parquet files and text files, as shard_0.parquet and"
        " more.txt.\n\n"
        "hint: keep one kind in the folder, or name a folder below it."
    )


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ({"content": ["a"], "id": [1]}, "content (string), id (int64)"),
        ({"text": [1]}, "text (int64)"),
    ],
)
def test_parquet_without_a_text_column_says_which_columns_it_has(
    tmp_path, table, found
):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(table), path)

    assert refusal(open_source, tmp_path) == (
        f"{path} has no column 'text' of strings. It has: {found}.\n\n"
        "hint: rename the column that holds the documents to 'text'."
    )


def test_a_truncated_parquet_file_is_named(corpus):
    path = corpus / "shard_1.parquet"
    path.write_bytes(path.read_bytes()[:-100])

    message = refusal(open_source, corpus)

    assert message.startswith(f"{path} cannot be read: Parquet magic bytes not found")
    assert message.endswith(
        ".\n\nhint: fetch or write the file again, or take it out of the corpus."
    )


def test_a_parquet_file_that_is_damaged_inside_is_named(corpus, cache):
    path = corpus / "shard_1.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)

    message = refusal(prepare, open_source(corpus), cache=cache, **SIZES)

    assert message.startswith(f"{path} cannot be read: ")
    assert message.endswith(
        ".\n\nhint: fetch or write the file again, or take it out of the corpus."
    )
    assert not list(cache.glob("building-*/"))


# --- the split


def write_files(folder, texts):
    """Write one text file for each of *texts*, named by its number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:04}.txt").write_text(text, encoding="utf-8", newline="")
    return folder


def split(folder):
    """Return what shares a split, the files drawn, the documents, and the tally."""
    drawn, split_by = draw_validation(open_source(folder), lambda stage, share: None)
    tally = Tally()
    documents = {TRAINING: [], VALIDATION: []}
    for name, texts, _ in split_documents(drawn, tally):
        documents[name] += texts
    held_out = {file.path.name for file in drawn.files if file.validation}
    return split_by, held_out, documents, tally


def cut(text):
    """Return the documents of a text file of lines, by the definition."""
    with tempfile.TemporaryDirectory() as folder:
        return texts_of(open_source(write_files(Path(folder), [text])))


def book(number, lines=30):
    return "".join(f"line {line} of book {number}\n" for line in range(lines))


LINES = st.sampled_from(["a\n", "bb\n", "ccc\n", "dddd\n", "eeeee\n", "é"])
FILES = st.lists(st.lists(LINES, max_size=12).map("".join), min_size=1, max_size=60)


@given(files=FILES)
@example(files=[book(n) for n in range(60)])
@example(files=[book(n % 30) for n in range(60)])
@example(files=[book(n % 7) for n in range(60)])
@example(files=[book(0) + book(n) for n in range(60)])
@example(files=["", *(book(n)[: n + 1] for n in range(59))])
def test_no_document_and_no_text_of_a_file_is_in_both_splits(files):
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(source, "DOCUMENT_CHARACTERS", 12)
        split_by, held_out, documents, tally = split(write_files(Path(folder), files))
        parts_of = {text: cut(text) for text in set(files)}
    whole = [parts_of[text] for text in files]

    training, validation = (set(documents[name]) for name in (TRAINING, VALIDATION))
    assert not training & validation
    assert sum(tally.documents.values()) == sum(map(len, documents.values()))
    assert sum(map(len, whole)) == (
        sum(tally.documents.values())
        + tally.documents_empty
        + tally.duplicates_left_out
    )
    if split_by == "document":
        assert not held_out
        return
    for number, parts in enumerate(whole):
        if f"{number:04}.txt" in held_out:
            assert not set(parts) & training
        else:
            assert set(parts) - {""} <= training | validation
    outside = {n for n in range(len(files)) if f"{n:04}.txt" not in held_out}
    inside = set(range(len(files))) - outside
    assert validation == {text for n in inside for text in whole[n]} - {""}
    assert not {files[n] for n in inside} & {files[n] for n in outside}


@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=80))
@example(sizes=[10] * VALIDATION_ONE_IN)
@example(sizes=[10] * (VALIDATION_ONE_IN - 1))
@example(sizes=[1] * 60 + [59])
@example(sizes=[1] * 60 + [61])
def test_files_hold_out_one_or_two_shares_of_the_text_unless_they_are_too_few(sizes):
    texts = [f"{n} ".ljust(size + 5, "x") for n, size in enumerate(sizes)]
    share = sum(map(len, texts)) / VALIDATION_ONE_IN
    small = sum(len(text) for text in texts if len(text) <= share)
    with tempfile.TemporaryDirectory() as folder:
        split_by, held_out, _, tally = split(write_files(Path(folder), texts))

    enough = small >= SMALL_FILES_SHARE * sum(map(len, texts))
    assert split_by == ("file" if enough else "document")
    if enough:
        assert share <= tally.bytes[VALIDATION] < 2 * share
        assert all(len(texts[int(name[:4])]) <= share for name in held_out)


def test_a_book_of_several_documents_is_in_one_split(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(source, "DOCUMENT_CHARACTERS", 100)
    folder = write_files(tmp_path / "c", [book(n) for n in range(40)])

    prepared = prepare(open_source(folder), cache=cache, **SIZES)

    assert prepared.counts["split_by"] == "file"
    assert prepared.counts["validation"]["documents"] > 10
    opened, _ = draw_validation(open_source(folder), lambda stage, share: None)
    held_out = {int(file.path.stem) for file in opened.files if file.validation}
    seen = {
        name: {
            int(number)
            for part in decoded(prepared, name)
            for number in re.findall(rb"of book (\d+)\n", part)
        }
        for name in (TRAINING, VALIDATION)
    }
    assert seen == {TRAINING: set(range(40)) - held_out, VALIDATION: held_out}


def test_what_a_training_file_shares_with_a_validation_file_leaves_training(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(source, "DOCUMENT_CHARACTERS", 100)
    preface = "p" * 99 + "\n"
    texts = [preface + f"{n} ".ljust(99, "x") + "\n" for n in range(60)]

    split_by, held_out, documents, tally = split(write_files(tmp_path, texts))

    assert split_by == "file"
    assert preface in documents[VALIDATION]
    assert preface not in documents[TRAINING]
    assert tally.duplicates_left_out == 60 - len(held_out) == 57
    assert tally.duplicate_bytes_left_out == 57 * 100


def test_one_large_file_is_split_by_document_and_data_json_says_so(tmp_path, cache):
    path = tmp_path / "a.txt"
    path.write_text("".join(documents(12000)))

    prepared = prepare(open_source(path), cache=cache, **SIZES)

    data = json.loads((prepared.folder / "data.json").read_text())
    assert path.stat().st_size > 2e6
    assert data["counts"]["split_by"] == "document"
    assert data["counts"]["validation"]["documents"] > 1
    assert data["counts"]["duplicates_left_out"] == 0


def test_a_file_that_is_not_utf8_does_not_count_among_the_files_to_draw_from(tmp_path):
    write_files(tmp_path, [book(n) for n in range(40)])
    (tmp_path / "latin.txt").write_bytes("café ".encode("latin-1") * 2**19)

    split_by, held_out, _, tally = split(tmp_path)

    assert split_by == "file"
    assert 2 <= len(held_out) <= 3
    assert tally.files_undecodable == 1


def test_the_name_of_a_file_does_not_decide_on_its_split(tmp_path):
    texts = [book(n) for n in range(40)]

    _, _, first, _ = split(write_files(tmp_path / "one", texts))
    _, _, second, _ = split(write_files(tmp_path / "two", texts[::-1]))

    assert sorted(first[VALIDATION]) == sorted(second[VALIDATION])


@pytest.mark.parametrize("pinned", [True, False])
def test_rows_of_parquet_are_split_by_document_unless_a_file_is_pinned(
    corpus, cache, pinned
):
    if pinned:
        write_parquet(corpus / "val.parquet", documents(30, seed=2))

    counts = prepare(open_source(corpus), cache=cache, **SIZES).counts

    assert counts["split_by"] == ("pinned" if pinned else "document")


def test_a_long_row_of_parquet_is_one_document(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "DOCUMENT_CHARACTERS", 100)
    write_parquet(tmp_path / "a.parquet", [book(n) for n in range(40)])

    _, _, documents, _ = split(tmp_path)

    assert sorted(documents[TRAINING] + documents[VALIDATION]) == sorted(
        book(n) for n in range(40)
    )


# --- prepared


def test_rows_hold_the_documents_and_the_counts_say_where_each_token_went(
    corpus, cache
):
    prepared = prepare(open_source(corpus), cache=cache, **SIZES)

    bos = Tokenizer.load(prepared.tokenizer).bos
    texts = [text.encode() for text in documents(300) + documents(100, 1)]
    for split in ("training", "validation"):
        counts = prepared.counts[split]
        rows = open_rows(getattr(prepared, split), 16)
        assert rows.dtype == np.uint16
        assert rows.shape == (counts["rows"], 17)
        assert (rows[:, 0] == bos).all()
        assert rows.max() <= bos == 279
        assert counts["tokens"] == (
            rows.size + counts["cropped_tokens"] + counts["unfinished_tokens"]
        )
        whole = b"\n".join(texts)
        assert all(part in whole for part in decoded(prepared, split))
    both = [prepared.counts[split] for split in ("training", "validation")]
    assert sum(counts["documents"] for counts in both) == 400
    assert sum(counts["bytes"] for counts in both) == sum(map(len, texts))


def test_without_a_pinned_file_about_one_document_in_twenty_is_validation(
    corpus, cache
):
    counts = prepare(open_source(corpus), cache=cache, **SIZES).counts

    assert 8 <= counts["validation"]["documents"] <= 36


def test_equal_documents_land_in_one_split(tmp_path, cache):
    texts = documents(200)
    write_parquet(tmp_path / "c" / "a.parquet", texts + texts[::-1])

    prepared = prepare(open_source(tmp_path / "c"), cache=cache, **SIZES)

    numbers = {
        split: {
            part.split()[-1]
            for part in decoded(prepared, split)
            if part.endswith(b".\n") and b" " in part
        }
        for split in ("training", "validation")
    }
    assert prepared.counts["validation"]["documents"] % 2 == 0
    assert len(numbers["validation"]) > 1
    assert not numbers["training"] & numbers["validation"]


def test_a_pinned_file_is_the_validation_split_and_its_texts_leave_training(
    corpus, cache
):
    held_out = documents(30)
    write_parquet(corpus / "shard_val.parquet", [*held_out, "only here, only here.\n"])

    prepared = prepare(open_source(corpus), cache=cache, **SIZES)

    assert prepared.counts["duplicates_left_out"] == 30
    assert prepared.counts["duplicate_bytes_left_out"] == sum(map(len, held_out))
    assert prepared.counts["training"]["documents"] == 370
    assert prepared.counts["validation"]["documents"] == 31


def test_what_cannot_be_used_is_counted(tmp_path, cache):
    folder = tmp_path / "c"
    folder.mkdir()
    for number, text in enumerate(documents(200)):
        (folder / f"{number}.txt").write_text(text)
    (folder / "latin.txt").write_bytes("café ".encode("latin-1") * 2**19)
    (folder / "empty.txt").write_text("")
    (folder / "notes.pdf").write_text("x")

    counts = prepare(open_source(folder), cache=cache, **SIZES).counts

    assert counts["files"] == 202
    assert counts["split_by"] == "file"
    assert counts["files_undecodable"] == 1
    assert counts["files_ignored"] == 1
    assert counts["documents_empty"] == 1
    assert counts["training"]["documents"] + counts["validation"]["documents"] == 200


def test_parquet_values_that_are_not_utf8_are_counted_one_by_one(tmp_path, cache):
    values = [text.encode() for text in documents(200)]
    values[70] = b"caf\xe9"
    text = pa.Array.from_buffers(
        pa.string(), 200, pa.array(values, pa.binary()).buffers()
    )
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")

    counts = prepare(open_source(tmp_path), cache=cache, **SIZES).counts

    assert counts["documents_undecodable"] == 1
    assert counts["training"]["documents"] + counts["validation"]["documents"] == 199


def test_data_json_tells_sizes_digests_and_counts(corpus, cache):
    prepared = prepare(open_source(corpus), cache=cache, **SIZES)

    data = json.loads((prepared.folder / "data.json").read_text())
    names = ["tokenizer.json", "training.bin", "validation.bin"]
    assert sorted(data["sizes"]) == sorted(data["sha256"]) == names
    for name in data["sizes"]:
        content = (prepared.folder / name).read_bytes()
        assert data["sizes"][name] == len(content)
        assert data["sha256"][name] == hashlib.sha256(content).hexdigest()
    assert data["counts"] == prepared.counts
    assert prepared.folder == cache / prepared.fingerprint


def test_progress_names_each_stage_and_goes_up(corpus, cache):
    seen = {}
    prepare(
        open_source(corpus),
        cache=cache,
        **SIZES,
        progress=lambda stage, fraction: seen.setdefault(stage, []).append(fraction),
    )

    assert list(seen) == ["reading the corpus", "training the tokenizer", "packing"]
    for shares in seen.values():
        assert shares == sorted(shares)
        assert shares[-1] == 1


@pytest.mark.parametrize("changed", ["sequence_len", "vocab_size", "corpus", "pinned"])
def test_another_corpus_or_size_has_another_fingerprint(corpus, cache, changed):
    first = prepare(open_source(corpus), cache=cache, **SIZES)
    sizes = dict(SIZES)
    if changed in sizes:
        sizes[changed] += 1
    elif changed == "corpus":
        write_parquet(corpus / "shard_1.parquet", documents(100, seed=2))
    else:
        (corpus / "shard_1.parquet").rename(corpus / "val.parquet")

    second = prepare(open_source(corpus), cache=cache, **sizes)

    assert first.fingerprint != second.fingerprint
    assert first.folder.exists()


def test_the_same_corpus_elsewhere_built_afresh_is_the_same_to_the_byte(
    corpus, tmp_path
):
    first = prepare(open_source(corpus), cache=tmp_path / "one", **SIZES)
    corpus.rename(tmp_path / "moved")

    second = prepare(open_source(tmp_path / "moved"), cache=tmp_path / "two", **SIZES)

    assert first.fingerprint == second.fingerprint
    for name in ("training.bin", "validation.bin", "tokenizer.json"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_a_second_call_builds_and_reads_nothing(corpus, cache):
    for path in corpus.iterdir():
        os.utime(path, ns=(0, 0))
    opened = open_source(corpus)
    first = prepare(opened, cache=cache, **SIZES)
    stages = []
    for path in corpus.iterdir():  # a change that only reading would reveal
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        os.utime(path, ns=(0, 0))

    second = prepare(
        opened,
        cache=cache,
        **SIZES,
        progress=lambda stage, fraction: stages.append(stage),
    )

    assert second == first
    assert stages == []


def test_a_file_changed_within_the_same_tick_of_the_clock_is_read_again(
    tmp_path, cache
):
    path = tmp_path / "c" / "a.txt"
    path.parent.mkdir()
    path.write_text("".join(documents(5000)))
    first = prepare(open_source(path), cache=cache, **SIZES)
    stat = path.stat()
    path.write_text("".join(documents(5000)).replace("alpha", "ALPHA"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    second = prepare(open_source(path), cache=cache, **SIZES)

    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize("damage", ["shorter", "missing", "data.json", "tokenizer"])
def test_a_damaged_build_is_made_again_and_that_is_said(corpus, cache, damage):
    first = prepare(open_source(corpus), cache=cache, **SIZES)
    content = first.training.read_bytes()
    if damage == "shorter":
        os.truncate(first.training, len(content) - 2)
    elif damage == "missing":
        first.validation.unlink()
    elif damage == "data.json":
        (first.folder / "data.json").write_text("{")
    else:
        first.tokenizer.write_text(first.tokenizer.read_text() + " ")
    stages = []

    second = prepare(
        open_source(corpus),
        cache=cache,
        **SIZES,
        progress=lambda stage, fraction: stages.append(stage),
    )

    assert f"building {first.folder} again, which is damaged" in stages
    assert second == first
    assert second.training.read_bytes() == content
    assert len(open_rows(second.validation, 16))


def test_a_lost_tokenizer_is_trained_again_without_a_new_build(corpus, cache):
    first = prepare(open_source(corpus), cache=cache, **SIZES)
    written = first.training.stat().st_mtime_ns
    next(cache.glob("tokenizer-*.json")).unlink()

    second = prepare(open_source(corpus), cache=cache, **SIZES)

    assert second == first
    assert second.training.stat().st_mtime_ns == written


def test_a_damaged_manifest_is_only_a_slower_call(corpus, cache):
    first = prepare(open_source(corpus), cache=cache, **SIZES)
    for manifest in cache.glob("manifest-*.json"):
        manifest.write_text("[1, 2")

    assert prepare(open_source(corpus), cache=cache, **SIZES) == first


def start(script, *arguments):
    """Run *script* in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", dedent(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_killed_build_leaves_nothing_that_is_used_and_the_next_one_removes_it(
    corpus, cache
):
    killed = start(
        """
        import os, pathlib, signal, sys
        from core.training.data import open_source, prepare

        def die(stage, fraction):
            if stage == "packing" and fraction > 0.5:
                os.kill(os.getpid(), signal.SIGKILL)

        prepare(open_source(sys.argv[1]), vocab_size=280, sequence_len=16,
                cache=pathlib.Path(sys.argv[2]), progress=die)
        """,
        corpus,
        cache,
    )
    output, _ = killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL, output
    left = list(cache.glob("building-*/"))
    assert left

    prepared = prepare(open_source(corpus), cache=cache, **SIZES)

    assert len(open_rows(prepared.training, 16))
    assert not list(cache.glob("building-*/"))


def test_a_dead_build_of_other_sizes_is_removed_too(corpus, cache):
    (cache / "building-0123456789abcdef").mkdir(parents=True)

    prepare(open_source(corpus), cache=cache, **SIZES)

    assert not list(cache.glob("building-*/"))


def test_a_build_that_an_error_ends_leaves_nothing_half_made(corpus, cache):
    def stop(stage, fraction):
        if stage == "packing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(open_source(corpus), cache=cache, **SIZES, progress=stop)

    assert [path.name for path in cache.iterdir() if path.is_dir()] == []


def test_two_processes_that_prepare_at_once_both_get_it_and_one_builds(corpus, cache):
    script = """
        import pathlib, sys, time
        from core.training.data import open_source, prepare

        stages = []
        print("ready", flush=True)
        while not pathlib.Path(sys.argv[3]).exists():
            time.sleep(0.001)
        prepared = prepare(
            open_source(sys.argv[1]), vocab_size=280, sequence_len=16,
            cache=pathlib.Path(sys.argv[2]),
            progress=lambda stage, fraction: stages.append(stage),
        )
        print(prepared.fingerprint, "packing" in stages, flush=True)
        """
    go = cache.parent / "go"
    both = [start(script, corpus, cache, go) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    go.touch()

    outputs = [process.communicate(timeout=60)[0].split() for process in both]

    fingerprint = prepare(open_source(corpus), cache=cache, **SIZES).fingerprint
    assert sorted(outputs) == [[fingerprint, "False"], [fingerprint, "True"]]


def test_a_full_disk_names_the_folder_and_leaves_nothing_half_made(corpus, cache):
    write_parquet(corpus / "shard_2.parquet", documents(3000, seed=2))
    limited = start(
        """
        import pathlib, resource, sys
        from core.errors import DataError
        from core.training.data import open_source, packing, prepare

        packing.BLOCK_BYTES = 2**12
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            prepare(open_source(sys.argv[1]), vocab_size=280, sequence_len=16,
                    cache=pathlib.Path(sys.argv[2]))
        except DataError as error:
            print(error)
        """,
        corpus,
        cache,
    )

    output, _ = limited.communicate(timeout=60)

    first, hint = output.strip().split("\n\n")
    assert first.startswith(f"No room is left for {cache}/building-")
    assert " bytes were written, at " in first
    assert 45_000 < int(first.split(": ")[1].split()[0].replace(",", "")) <= 100_000
    assert hint == (
        "hint: free space or raise the quota there, or name another folder as the"
        " cache."
    )
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []
    assert prepare(open_source(corpus), cache=cache, **SIZES).counts["files"] == 3


def test_a_cache_that_cannot_be_a_folder_is_named(corpus, tmp_path):
    (tmp_path / "file").write_text("")

    message = refusal(prepare, open_source(corpus), cache=tmp_path / "file", **SIZES)

    assert message == (
        f"{tmp_path / 'file'} cannot be written: File exists.\n\n"
        "hint: name another folder as the cache."
    )


def test_a_corpus_that_changes_while_it_is_read_is_refused(corpus, cache):
    path = corpus / "shard_1.parquet"

    def change(stage, fraction):
        if stage == "packing":
            os.utime(path, ns=(0, 0))

    message = refusal(
        prepare, open_source(corpus), cache=cache, **SIZES, progress=change
    )

    assert message == (
        f"{path} changed while the corpus was being prepared.\n\n"
        "hint: wait until whatever writes it is done, then prepare again."
    )


def test_a_corpus_without_any_text_is_refused(tmp_path, cache):
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_bytes(b"\xff")

    assert refusal(prepare, open_source(tmp_path), cache=cache, **SIZES) == (
        f"{tmp_path} holds no text: 2 files, 1 of them not UTF-8, 1 empty documents."
        "\n\nhint: name a corpus whose documents are UTF-8 text."
    )


def test_too_little_text_for_the_vocabulary_is_refused(tmp_path, cache):
    write_parquet(tmp_path / "a.parquet", ["ab ab ab", "ab ab ab"])

    assert refusal(prepare, open_source(tmp_path), cache=cache, **SIZES) == (
        "The training text gives a vocabulary of 259 tokens, and vocab_size=280 was"
        " asked for.\n\nhint: add text, or lower vocab_size to at most 259."
    )


def test_too_little_validation_for_one_row_is_refused(corpus, cache):
    write_parquet(corpus / "val.parquet", ["éé"])

    message = refusal(prepare, open_source(corpus), cache=cache, **SIZES)

    assert message == (
        f"The validation split of {corpus} has 1 documents with 5 tokens, too few for"
        " one row of 17.\n\n"
        "hint: add text, lower sequence_len, or pin a larger file as validation by"
        " ending its name in _val."
    )


@pytest.mark.parametrize("vocab_size", [256, 65537])
def test_a_vocabulary_out_of_range_is_refused_before_anything_is_read(
    corpus, cache, vocab_size
):
    message = refusal(
        prepare,
        open_source(corpus),
        vocab_size=vocab_size,
        sequence_len=16,
        cache=cache,
    )

    assert message == (
        f"vocab_size={vocab_size} is not between 257 (every byte and <|bos|>) and 65536"
        " (token ids are stored as uint16).\n\n"
        "hint: choose a vocab_size in that range, a power of two for speed."
    )
    assert not cache.exists()


def test_a_sequence_of_nothing_is_refused(corpus, cache):
    message = refusal(
        prepare, open_source(corpus), vocab_size=280, sequence_len=0, cache=cache
    )

    assert message == (
        "sequence_len=0 leaves no token to predict.\n\n"
        "hint: choose a sequence_len of at least 1."
    )


def test_rows_opened_with_another_length_are_refused(corpus, cache):
    path = prepare(open_source(corpus), cache=cache, **SIZES).validation
    size = path.stat().st_size

    assert refusal(open_rows, path, size) == (
        f"{path} has {size:,} bytes, which are not whole rows of {size + 1} tokens of 2"
        " bytes.\n\n"
        "hint: open it with the sequence_len that it was prepared with, or prepare the"
        " data again."
    )


def test_rows_that_are_not_there_are_named(tmp_path):
    assert refusal(open_rows, tmp_path / "none.bin", 16) == (
        f"{tmp_path / 'none.bin'} cannot be opened: No such file or directory.\n\n"
        "hint: prepare the data again."
    )


def test_rows_cannot_be_written_by_a_reader(corpus, cache):
    prepared = prepare(open_source(corpus), cache=cache, **SIZES)

    rows = open_rows(prepared.training, 16)

    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 1


def test_the_library_of_python_is_prepared_and_found_again_at_once(cache):
    stages = []
    sizes = {"vocab_size": 512, "sequence_len": 128, "cache": cache}
    first = prepare(open_source("stdlib"), **sizes)

    second = prepare(
        open_source("stdlib"),
        **sizes,
        progress=lambda stage, fraction: stages.append(stage),
    )

    assert second == first
    assert stages == []
    assert first.counts["split_by"] == "file"
    assert first.counts["training"]["rows"] > 1000
    assert first.counts["validation"]["rows"] > 100


def test_preparing_data_never_imports_torch():
    child = start(
        """
        import sys
        import core.training.data
        print("torch" in sys.modules)
        """
    )

    assert child.communicate(timeout=60)[0] == "False\n"
