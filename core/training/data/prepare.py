"""A corpus prepared once: tokenizer, packed rows and counts, in a cache by fingerprint.

A build happens in a folder of its own, under a lock, and is renamed into place when it
is whole and on disk. So a killed build leaves nothing that is ever used, and the next
one removes it.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs

from core.errors import DataError
from core.training.data.climbmix import Shards
from core.training.data.disk import (
    MapFile,
    Progress,
    corpus_digest,
    file_digest,
    locked,
    remove_dead_builds,
    short_digest,
    sync,
    write_text,
    writing,
)
from core.training.data.packing import BUFFER_DOCUMENTS, PACKING_VERSION, Packer
from core.training.data.source import Source
from core.training.data.split import (
    SPLITTING,
    TRAINING,
    VALIDATION,
    Tally,
    draw_validation,
    encoded,
    split_documents,
)
from core.training.tokenizer import (
    PATTERN,
    Tokenizer,
    check_vocab_size,
    train_tokenizer,
)

DATA_FOLDER = "data"  # of the user's cache, for all sessions and commands

# A vocabulary of some thousand tokens hardly changes beyond this, and the distinct words
# of so much text take rustbpe a few hundred MiB.
TOKENIZER_BYTES = 2**27


@attrs.frozen(kw_only=True)
class Prepared:
    """A corpus on disk, ready to train and to judge on.

    Attributes:
        fingerprint: 16 hexadecimal digits of corpus, tokenizer, packing, T and V.
        folder: Holds the files below and ``data.json``.
        training: Map of packed rows; ``open_rows`` opens it.
        validation: The same, of documents that are not in training.
        tokenizer: The vocabulary as JSON.
        sequence_len: T; rows have T+1 tokens.
        vocab_size: V, the special token included.
        counts: What went in, what came out, and what was left out, and why.
            ``split_by`` says what shares a split: ``pinned`` files, every ``file``, or
            only every ``document``, so that one long file may be in both.
    """

    fingerprint: str
    folder: Path
    training: Path
    validation: Path
    tokenizer: Path
    sequence_len: int
    vocab_size: int
    counts: dict[str, Any] = attrs.field(repr=False, eq=False)


def prepare(
    source: Source | Shards,
    *,
    vocab_size: int,
    sequence_len: int,
    cache: Path,
    progress: Progress | None = None,
) -> Prepared:
    """Return the prepared corpus, from *cache* where it is there and whole.

    Args:
        source: The corpus, from ``open_source``. Shards that are not in the cache are
            fetched into it.
        vocab_size: V, the special token included.
        sequence_len: T.
        cache: A folder, made when missing. Several processes may use it at once: the
            second to ask for the same waits for the first.
        progress: Called with the stage in words and the share of it that is done.

    Raises:
        DataError: The sizes are impossible, the corpus cannot be fetched, is damaged or
            too small or changes meanwhile, or the cache cannot be written.
    """
    check_vocab_size(vocab_size)
    if sequence_len < 1:
        raise DataError(
            f"sequence_len={sequence_len} leaves no token to predict.",
            hint="choose a sequence_len of at least 1.",
        )
    report = progress or (lambda stage, fraction: None)
    cache = Path(cache).absolute()
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    if isinstance(source, Shards):
        # What prepares a corpus of one's own needs no HTTP client, and imports none.
        from core.training.data.hub import fetch

        source = fetch(source, cache, report)
    corpus = corpus_digest(source, cache, report)
    build = _Build(
        source=source,
        corpus=corpus,
        vocab_size=vocab_size,
        sequence_len=sequence_len,
        cache=cache,
        report=report,
    )
    found = build.find()
    if found is None:
        with locked(build.working, report):
            found = build.find() or build.make()
    return found


@attrs.frozen(kw_only=True)
class _Build:
    """One corpus under one pair of sizes, and where it lies in the cache."""

    source: Source
    corpus: str
    vocab_size: int
    sequence_len: int
    cache: Path
    report: Progress

    @property
    def vocabulary(self) -> Path:
        """Where the tokenizer waits for other sequence lengths."""
        key = short_digest(
            self.corpus, self.vocab_size, PATTERN, TOKENIZER_BYTES, *SPLITTING
        )
        return self.cache / f"tokenizer-{key}.json"

    @property
    def working(self) -> Path:
        """The folder of the unfinished build; its lock has the same name."""
        key = short_digest(self.vocabulary.name, self.sequence_len)
        return self.cache / f"building-{key}"

    def fingerprint(self, tokenizer_digest: str) -> str:
        """Return the name of the rows that this tokenizer and packing make."""
        return short_digest(
            self.corpus,
            tokenizer_digest,
            PACKING_VERSION,
            BUFFER_DOCUMENTS,
            *SPLITTING,
            self.sequence_len,
            self.vocab_size,
        )

    def find(self) -> Prepared | None:
        """Return what the cache holds whole, and say so where it is damaged."""
        try:
            tokenizer_digest = file_digest(self.vocabulary)
        except OSError:
            return None
        folder = self.cache / self.fingerprint(tokenizer_digest)
        if not folder.exists():
            return None
        try:
            data = json.loads((folder / "data.json").read_text(encoding="utf-8"))
            sizes = {name: (folder / name).stat().st_size for name in data["sizes"]}
            whole = (
                sizes == data["sizes"]
                and file_digest(folder / "tokenizer.json") == tokenizer_digest
            )
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            self.report(f"building {folder} again, which is damaged", 0.0)
            return None
        return self.prepared(folder, data["counts"])

    def prepared(self, folder: Path, counts: dict[str, Any]) -> Prepared:
        """Return the value that names the files in *folder*."""
        return Prepared(
            fingerprint=folder.name,
            folder=folder,
            training=folder / f"{TRAINING}.bin",
            validation=folder / f"{VALIDATION}.bin",
            tokenizer=folder / "tokenizer.json",
            sequence_len=self.sequence_len,
            vocab_size=self.vocab_size,
            counts=counts,
        )

    def make(self) -> Prepared:
        """Build under the lock, and rename into place what is whole."""
        remove_dead_builds(self.cache)
        shutil.rmtree(self.working, ignore_errors=True)
        try:
            with writing(self.working):
                self.working.mkdir()
            source, split_by = draw_validation(self.source, self.report)
            tokenizer = self.tokenizer(source)
            if found := self.find():  # only the tokenizer was missing
                return found
            counts, digests = self.rows(source, tokenizer)
            counts = {"split_by": split_by} | counts
            self.check_unchanged()
            with writing(self.working):
                write_text(self.working / "tokenizer.json", tokenizer.to_json())
                names = sorted(path.name for path in self.working.iterdir())
                data = {
                    "source": self.source.name,
                    "corpus": self.corpus,
                    "sequence_len": self.sequence_len,
                    "vocab_size": self.vocab_size,
                    "sizes": {n: (self.working / n).stat().st_size for n in names},
                    "sha256": digests | {"tokenizer.json": tokenizer.digest()},
                    "counts": counts,
                }
                text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
                write_text(self.working / "data.json", text)
                sync(self.working)
                folder = self.cache / self.fingerprint(tokenizer.digest())
                if folder.exists():  # damaged, or find() would have taken it
                    shutil.rmtree(folder)
                self.working.rename(folder)
                sync(self.cache)
        finally:
            shutil.rmtree(self.working, ignore_errors=True)
        return self.prepared(folder, counts)

    def tokenizer(self, source: Source) -> Tokenizer:
        """Load the vocabulary, or train it on the training split."""
        if self.vocabulary.exists():
            return Tokenizer.load(self.vocabulary)
        tally = Tally()
        texts = _training_texts(source, tally, self.report)
        try:
            tokenizer = train_tokenizer(texts, self.vocab_size)
        except DataError:
            _check_text(source, tally)
            raise
        with writing(self.working):
            draft = self.working / self.vocabulary.name
            write_text(draft, tokenizer.to_json())
            draft.rename(self.vocabulary)
        self.report("training the tokenizer", 1.0)
        return tokenizer

    def rows(
        self, source: Source, tokenizer: Tokenizer
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Write both maps; return the counts and the digests of the files."""
        tally = Tally()
        with writing(self.working) as written, ExitStack() as files:
            maps = {
                split: MapFile(
                    files.enter_context((self.working / f"{split}.bin").open("wb")),
                    written,
                )
                for split in (TRAINING, VALIDATION)
            }
            packers = {
                split: Packer(sequence_len=self.sequence_len, write=rows.write)
                for split, rows in maps.items()
            }
            parts = split_documents(source, tally)
            for split, documents, fraction in encoded(
                parts, tokenizer, self.sequence_len
            ):
                for document in documents:
                    packers[split].add(document)
                written.fraction = fraction
                self.report("packing", fraction)
            for packer in packers.values():
                packer.finish()
            digests = {f"{split}.bin": rows.finish() for split, rows in maps.items()}
        _check_text(source, tally)
        counts = self.counts(tally, packers)
        for split in packers:
            self.check_rows(split, counts[split])
        return counts, digests

    def counts(self, tally: Tally, packers: dict[str, Packer]) -> dict[str, Any]:
        """Return all that went in and out, by name."""
        return {
            "files": len(self.source.files),
            "files_ignored": self.source.ignored_files,
            "files_undecodable": tally.files_undecodable,
            "documents_undecodable": tally.documents_undecodable,
            "documents_empty": tally.documents_empty,
            "duplicates_left_out": tally.duplicates_left_out,
            "duplicate_bytes_left_out": tally.duplicate_bytes_left_out,
        } | {
            split: {
                "documents": tally.documents[split],
                "bytes": tally.bytes[split],
                "pieces": packer.documents,
                "tokens": packer.tokens,
                "rows": packer.rows,
                "cropped_tokens": packer.cropped_tokens,
                "unfinished_tokens": packer.unfinished_tokens,
            }
            for split, packer in packers.items()
        }

    def check_rows(self, split: str, counts: dict[str, int]) -> None:
        """Refuse a split that fills no row."""
        if counts["rows"]:
            return
        raise DataError(
            f"The {split} split of {self.source.name} has {counts['documents']}"
            f" documents with {counts['tokens']} tokens, too few for one row of"
            f" {self.sequence_len + 1}.",
            hint="add text, lower sequence_len, or pin a larger file as validation by"
            " ending its name in _val.",
        )

    def check_unchanged(self) -> None:
        """Refuse rows of a corpus that changed while it was read."""
        for file in self.source.files:
            try:
                stat = file.path.stat()
                same = (stat.st_size, stat.st_mtime_ns) == (file.size, file.mtime_ns)
            except OSError:
                same = False
            if not same:
                raise DataError(
                    f"{file.path} changed while the corpus was being prepared.",
                    hint="wait until whatever writes it is done, then prepare again.",
                )


def _training_texts(source: Source, tally: Tally, report: Progress) -> Iterator[str]:
    """Yield the training documents that the tokenizer sees."""
    for split, texts, fraction in split_documents(source, tally):
        if split == TRAINING:
            yield from texts
        share = tally.bytes[TRAINING] / TOKENIZER_BYTES
        # The merges come after the last byte, so this stage isn't done with it.
        report("training the tokenizer", 0.9 * min(1.0, max(fraction, share)))
        if share >= 1:
            return


def _check_text(source: Source, tally: Tally) -> None:
    if any(tally.documents.values()):
        return
    raise DataError(
        f"{source.name} holds no text: {len(source.files)} files,"
        f" {tally.files_undecodable} of them not UTF-8, {tally.documents_empty}"
        " empty documents.",
        hint="name a corpus whose documents are UTF-8 text.",
    )
