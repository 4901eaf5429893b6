"""Documents into the training or the validation split, and into token ids."""

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import attrs
import numpy as np

from core.training.data.packing import pieces
from core.training.data.source import DOCUMENT_CHARACTERS, Source
from core.training.tokenizer import Tokenizer

TRAINING, VALIDATION = "training", "validation"

# Without a pinned file. The embedded corpus then has some hundred thousand tokens to
# score, and gives away little of its training text.
VALIDATION_ONE_IN = 20

THREADS = min(16, os.cpu_count() or 1)  # more would wait for the packing

# What decides which document is in which split.
SPLITTING = (DOCUMENT_CHARACTERS, VALIDATION_ONE_IN)


@attrs.define
class Tally:
    """What the corpus holds, counted while it streams by."""

    files_undecodable: int = 0
    documents_undecodable: int = 0
    documents_empty: int = 0
    duplicates_left_out: int = 0
    duplicate_bytes_left_out: int = 0
    documents: dict[str, int] = attrs.field(
        factory=lambda: {TRAINING: 0, VALIDATION: 0}
    )
    bytes: dict[str, int] = attrs.field(factory=lambda: {TRAINING: 0, VALIDATION: 0})


def split_documents(
    source: Source, tally: Tally
) -> Iterator[tuple[str, list[str], float]]:
    """Yield the documents of each split, and the share of the corpus that is read.

    A document is known by the digest of its text, so equal ones share a split.
    """
    pinned_digests: set[bytes] = set()
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
                pinned_digests.add(digest)
            elif source.pinned:
                split = TRAINING
                if digest in pinned_digests:
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
