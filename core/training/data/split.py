"""Documents into the training or the validation split, and into token ids."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import attrs
import numpy as np

from core.training.data.packing import pieces
from core.training.data.source import (
    DOCUMENT_CHARACTERS,
    PARQUET,
    Source,
    SourceFile,
    text_digest,
)
from core.training.tokenizer import Tokenizer

TRAINING, VALIDATION = "training", "validation"

# What shares a split: the files that their names pin, every text file, or, where that
# can't be, only every document.
PINNED, BY_FILE, BY_DOCUMENT = "pinned", "file", "document"

# Without a pinned file: bytes by file, documents by document. The embedded corpus then
# has some hundred thousand tokens to score, and gives away little of its training text.
VALIDATION_ONE_IN = 20

# Only files that are no larger than the validation split are drawn into it. Where they
# hold less than this share of the text, the files are too few: the small ones would
# nearly all be drawn, and say little of the large ones. So there are never fewer than
# SMALL_FILES_SHARE * VALIDATION_ONE_IN files to draw from.
SMALL_FILES_SHARE = 0.5

THREADS = min(16, os.cpu_count() or 1)  # more would wait for the packing

SPLIT_VERSION = 2  # raise it when documents would be in other splits

# What decides which document is in which split; part of the fingerprint.
SPLITTING = (SPLIT_VERSION, DOCUMENT_CHARACTERS, VALIDATION_ONE_IN, SMALL_FILES_SHARE)


@attrs.define
class Tally:
    """What the corpus holds, counted while it streams by.

    Attributes:
        files_undecodable: Text files that are not UTF-8.
        documents_undecodable: Parquet values that are not UTF-8.
        documents_empty: Documents without text, which are in no split.
        duplicates_left_out: Documents of training files that are in validation too.
        duplicate_bytes_left_out: Their size.
        documents: Documents in each split.
        bytes: Their size in each split.
    """

    files_undecodable: int = 0
    documents_undecodable: int = 0
    documents_empty: int = 0
    duplicates_left_out: int = 0
    duplicate_bytes_left_out: int = 0
    documents: dict[str, int] = attrs.field(
        factory=lambda: {TRAINING: 0, VALIDATION: 0}
    )
    bytes: dict[str, int] = attrs.field(factory=lambda: {TRAINING: 0, VALIDATION: 0})


def draw_validation(
    source: Source, report: Callable[[str, float], None]
) -> tuple[Source, str]:
    """Draw whole text files for validation, where none is pinned and they are enough.

    Files are drawn in the order of the digests of their text, until they hold one byte
    in ``VALIDATION_ONE_IN``. Equal files are drawn together. Parquet files are not
    drawn, because each of their rows is a document of its own.

    Returns:
        The source with the drawn files first, as if pinned; and ``PINNED``, ``BY_FILE``
        or ``BY_DOCUMENT``.

    Raises:
        DataError: A file is unreadable or gone.
    """
    if source.pinned:
        return source, PINNED
    if any(file.path.suffix == PARQUET for file in source.files):
        return source, BY_DOCUMENT
    equal: dict[bytes, list[SourceFile]] = {}
    read, all_bytes = 0, sum(file.size for file in source.files) or 1
    for file in source.files:
        digest = text_digest(file)
        if digest is not None:
            equal.setdefault(digest, []).append(file)
        read += file.size
        report("drawing the validation files", read / all_bytes)
    sizes = {digest: sum(f.size for f in files) for digest, files in equal.items()}
    wanted = sum(sizes.values()) / VALIDATION_ONE_IN
    small = sorted(digest for digest, size in sizes.items() if size <= wanted)
    if sum(sizes[digest] for digest in small) < SMALL_FILES_SHARE * sum(sizes.values()):
        return source, BY_DOCUMENT

    drawn: set[SourceFile] = set()
    drawn_bytes = 0
    for digest in small:
        if drawn_bytes >= wanted:
            break
        drawn.update(equal[digest])
        drawn_bytes += sizes[digest]
    files = [attrs.evolve(file, validation=file in drawn) for file in source.files]
    files.sort(key=lambda file: not file.validation)
    return attrs.evolve(source, files=tuple(files)), BY_FILE


def split_documents(
    source: Source, tally: Tally
) -> Iterator[tuple[str, list[str], float]]:
    """Yield the documents of each split, and the share of the corpus that is read.

    No document is in both splits. Where files are pinned or drawn as validation, they
    are read first, and what also occurs in them is left out of training. Elsewhere the
    digest of its text decides on each document, so equal ones share a split.
    """
    validation_digests: set[bytes] = set()
    for batch in source.read():
        tally.files_undecodable += batch.undecodable_files
        tally.documents_undecodable += batch.undecodable_documents
        parts: dict[str, list[str]] = {TRAINING: [], VALIDATION: []}
        for text in batch.texts:
            if not text:
                tally.documents_empty += 1
                continue
            content = text.encode()
            digest = hashlib.blake2b(content, digest_size=16).digest()
            if batch.validation:
                split = VALIDATION
                validation_digests.add(digest)
            elif source.pinned:
                split = TRAINING
                if digest in validation_digests:
                    tally.duplicates_left_out += 1
                    tally.duplicate_bytes_left_out += len(content)
                    continue
            else:
                drawn = int.from_bytes(digest, "big") % VALIDATION_ONE_IN == 0
                split = VALIDATION if drawn else TRAINING
            tally.documents[split] += 1
            tally.bytes[split] += len(content)
            parts[split].append(text)
        for split, texts in parts.items():
            yield split, texts, batch.fraction


def encoded(
    parts: Iterable[tuple[str, list[str], float]],
    tokenizer: Tokenizer,
    sequence_len: int,
) -> Iterator[tuple[str, list[np.ndarray], float]]:
    """Turn texts into pieces of T tokens, in order, a few batches ahead in threads."""
    bos = tokenizer.bos

    def encode(texts: list[str]) -> list[np.ndarray]:
        return [
            piece
            for text in texts
            for piece in pieces(
                tokenizer.encode(text), bos=bos, sequence_len=sequence_len
            )
        ]

    with ThreadPoolExecutor(THREADS) as pool:
        waiting = deque()
        for split, texts, fraction in parts:
            waiting.append((split, pool.submit(encode, texts), fraction))
            if len(waiting) > 2 * THREADS:
                split, encoding, fraction = waiting.popleft()
                yield split, encoding.result(), fraction
        for split, encoding, fraction in waiting:
            yield split, encoding.result(), fraction
