"""The vocabulary: trained by rustbpe, applied by tiktoken, kept as JSON."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import attrs
import numpy as np
import rustbpe
import tiktoken

from core.errors import DataError

BOS = "<|bos|>"

# nanochat's variant of GPT-4's pattern: runs of digits are cut after two, because a
# small vocabulary has no room for a thousand numbers of three.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

# Both regex engines run out of stack inside a million blanks (rustbpe panics, tiktoken
# raises), so neither ever sees more than this much text at once.
SLICE_CHARACTERS = 2**16

# rustbpe holds this many slices before it counts them, so its buffer stays under
# 32 MiB of ASCII whatever the documents are.
TRAINING_BUFFER_SLICES = 512

SMALLEST_VOCABULARY = 256 + 1  # every byte, and the special token
LARGEST_VOCABULARY = 2**16  # token ids are stored as uint16

FORMAT = "deltaspec-bpe-1"


@attrs.frozen(kw_only=True)
class Tokenizer:
    """A byte-pair vocabulary in rank order, with one special token after it.

    Attributes:
        pattern: The regular expression that splits text before any merge.
        tokens: The bytes of each ordinary token; the position is the id.
    """

    pattern: str
    tokens: tuple[bytes, ...] = attrs.field(repr=False)

    @property
    def vocab_size(self) -> int:
        """Ids in all, the special one included."""
        return len(self.tokens) + 1

    @property
    def bos(self) -> int:
        """The id that begins every row and every document."""
        return len(self.tokens)

    @cached_property
    def encoding(self) -> tiktoken.Encoding:
        """The same vocabulary as tiktoken applies it."""
        return tiktoken.Encoding(
            name="deltaspec",
            pat_str=self.pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(self.tokens)},
            special_tokens={BOS: self.bos},
            explicit_n_vocab=self.vocab_size,
        )

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of *text*, uint16, without a BOS.

        A ``<|bos|>`` that is written out in the text is text.
        """
        encode = self.encoding.encode_to_numpy
        ids = [encode(part, disallowed_special=()) for part in _slices(text)]
        return np.concatenate(ids or [np.empty(0)]).astype(np.uint16)

    def token_bytes(self) -> np.ndarray:
        """Return the bytes of each token, int64 of shape (V,); 0 for the special one.

        They are those of the token itself: decoded alone, a piece of a character would
        turn into U+FFFD and count three bytes for one.
        """
        return np.array([*map(len, self.tokens), 0], dtype=np.int64)

    def to_json(self) -> str:
        """Return the text that ``save`` writes and ``digest`` digests."""
        content = {
            "format": FORMAT,
            "pattern": self.pattern,
            "special": {BOS: self.bos},
            "tokens": [token.hex() for token in self.tokens],
        }
        return json.dumps(content, indent=0) + "\n"

    def digest(self) -> str:
        """Return the SHA-256 of the saved form."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the vocabulary to *path* as JSON."""
        path.write_text(self.to_json(), encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read what ``save`` wrote.

        Raises:
            DataError: The file is missing, or not such a vocabulary.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            tokenizer = cls(
                pattern=content["pattern"],
                tokens=tuple(map(bytes.fromhex, content["tokens"])),
            )
            stated = content["format"], content["special"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} cannot be read as a tokenizer: {error}.",
                hint="delete it and prepare the data again.",
            ) from error
        distinct = set(tokenizer.tokens)
        whole = len(distinct) == len(tokenizer.tokens) and distinct >= EVERY_BYTE
        if stated != (FORMAT, {BOS: tokenizer.bos}) or not whole:
            raise DataError(
                f"{path} is not a {FORMAT} vocabulary: its tokens must be distinct,"
                f" hold every byte, and end with {BOS}.",
                hint="delete it and prepare the data again.",
            )
        return tokenizer


EVERY_BYTE = frozenset(bytes([value]) for value in range(256))


def check_vocab_size(vocab_size: int) -> None:
    """Refuse a vocabulary that has no room for every byte, or none in uint16.

    Raises:
        DataError: *vocab_size* is out of range.
    """
    if not SMALLEST_VOCABULARY <= vocab_size <= LARGEST_VOCABULARY:
        raise DataError(
            f"vocab_size={vocab_size} is not between {SMALLEST_VOCABULARY} (every byte"
            f" and {BOS}) and {LARGEST_VOCABULARY} (token ids are stored as uint16).",
            hint="choose a vocab_size in that range, a power of two for speed.",
        )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-pair vocabulary on *texts*, which are read once.

    Args:
        texts: Documents; memory grows with their distinct words, not with their bytes.
        vocab_size: Ids in all, the special one included.

    Raises:
        DataError: *vocab_size* is out of range, or more than the text can fill.
    """
    check_vocab_size(vocab_size)
    trained = rustbpe.Tokenizer()
    trained.train_from_iterator(
        (part for text in texts for part in _slices(text)),
        vocab_size=vocab_size - 1,
        buffer_size=TRAINING_BUFFER_SLICES,
        pattern=PATTERN,
    )
    ranks = sorted(trained.get_mergeable_ranks(), key=lambda pair: pair[1])
    tokens = tuple(bytes(token) for token, _ in ranks)
    assert len(set(tokens)) == len(tokens), "rustbpe made one token twice"
    if len(tokens) < vocab_size - 1:
        raise DataError(
            f"The training text gives a vocabulary of {len(tokens) + 1} tokens,"
            f" and vocab_size={vocab_size} was asked for.",
            hint=f"add text, or lower vocab_size to at most {len(tokens) + 1}.",
        )
    return Tokenizer(pattern=PATTERN, tokens=tokens)


def _slices(text: str) -> Iterator[str]:
    for start in range(0, len(text), SLICE_CHARACTERS):
        yield text[start : start + SLICE_CHARACTERS]
