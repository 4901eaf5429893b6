"""Where the text comes from: parquet shards, text files, or Python's own library."""

import codecs
import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import attrs
import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import DataError
from core.training.data.climbmix import CLIMBMIX, Shards, climbmix

STDLIB = "stdlib"
STDLIB_WITHOUT = frozenset({
    "__pycache__",
    "_bundled",  # of ensurepip
    "dist-packages",
    "idlelib",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
})

COLUMN = "text"
PARQUET = ".parquet"
TEXT_SUFFIXES = frozenset([
    ".c",
    ".cpp",
    ".go",
    ".h",
    ".java",
    ".js",
    ".md",
    ".py",
    ".rs",
    ".rst",
    ".tex",
    ".text",
    ".ts",
    ".txt",
])
# A data set of parquet shards usually has a README beside them, which is not its text.
BESIDE_PARQUET = frozenset({".md"})

# ``val`` and ``shard_val``, but not ``interval``.
VALIDATION_STEM = re.compile(r"(?:.*[^a-z0-9])?val", re.IGNORECASE | re.DOTALL)

# A longer text file is read as several documents, cut after a line end, so that memory
# stays bounded. They are in one split, unless the corpus is a few large files. Most
# files of Python's library are shorter.
DOCUMENT_CHARACTERS = 2**14

BATCH_ROWS = 128  # parquet rows that are turned into Python strings at once


@attrs.frozen(kw_only=True)
class SourceFile:
    """One file of a corpus, as it was when the corpus was opened."""

    path: Path
    size: int
    mtime_ns: int
    validation: bool  # pinned by its name, or drawn by the split


@attrs.frozen(kw_only=True)
class Batch:
    """Documents of one file, in their order.

    Attributes:
        texts: The documents; an empty string stands for one without text.
        validation: Whether the file is of the validation split, pinned or drawn.
        undecodable_files: 1 for a text file that is not UTF-8 and was skipped.
        undecodable_documents: Parquet values that are not UTF-8 and were skipped.
        fraction: The share of the corpus that has been read after this batch.
    """

    texts: list[str]
    validation: bool
    undecodable_files: int = 0
    undecodable_documents: int = 0
    fraction: float


@attrs.frozen(kw_only=True)
class Source:
    """A corpus that can be streamed as often as needed, always in the same order.

    Attributes:
        name: What the user called it.
        root: The folder or file that it is.
        files: Validation files first, then by relative path.
        ignored_files: Visible files in the folder that are no text of the corpus.
    """

    name: str
    root: Path
    files: tuple[SourceFile, ...] = attrs.field(repr=False)
    ignored_files: int = 0

    @property
    def pinned(self) -> bool:
        """Whether files of the corpus are set apart as its validation split."""
        return any(file.validation for file in self.files)

    def read(self) -> Iterator[Batch]:
        """Yield every document, in batches that are small in memory.

        Raises:
            DataError: A file is damaged, unreadable or gone.
        """
        total = sum(file.size for file in self.files) or 1
        before = 0
        for file in self.files:
            read = _read_parquet if file.path.suffix == PARQUET else _read_text
            for batch, share in read(file):
                fraction = (before + share * file.size) / total
                yield attrs.evolve(batch, fraction=fraction)
            before += file.size


def open_source(name_or_path: str | Path) -> Source | Shards:
    """Find the files of a corpus and check that they can be one.

    Args:
        name_or_path: ``stdlib`` for the source of the running Python's own library;
            ``climbmix``, or ``climbmix:N`` for N shards to train on; or
            a parquet file, a text file, or a folder with either, at any depth. Files
            whose stem is ``val`` or ends in ``_val`` are its validation split. Hidden
            files don't count.

    Returns:
        The corpus; that of a hub is fetched when it is prepared.

    Raises:
        DataError: There is no such path, no text in it, no ``text`` column, or not that
            many shards.
    """
    if shards := climbmix(str(name_or_path)):
        return shards
    if str(name_or_path) == STDLIB:
        root = Path(sysconfig.get_path("stdlib"))
        names = [n for n in _walk(root, without=STDLIB_WITHOUT) if n.endswith(".py")]
        if not names:
            raise DataError(
                f"This Python has no source files of its library in {root}.",
                hint="name a folder of parquet or text files instead.",
            )
        files = tuple(source_file(root / name, validation=False) for name in names)
        return Source(name=STDLIB, root=root, files=files)

    root = Path(name_or_path).expanduser()
    if root.is_dir():
        names = _walk(root)
        chosen = [root / name for name in _choose(root, names)]
        ignored = len(names) - len(chosen)
    elif root.exists():
        chosen, ignored = [root], 0
    else:
        raise DataError(
            f"There is no corpus at {root}.",
            hint=f"name a parquet or text file, a folder of them, {STDLIB!r} or"
            f" {CLIMBMIX!r}.",
        )
    for path in chosen:
        if path.suffix == PARQUET:
            check_parquet(path)
    files = [
        source_file(path, validation=bool(VALIDATION_STEM.fullmatch(path.stem)))
        for path in chosen
    ]
    files.sort(key=lambda file: not file.validation)
    return Source(
        name=str(name_or_path), root=root, files=tuple(files), ignored_files=ignored
    )


def _walk(root: Path, without: frozenset[str] = frozenset()) -> list[str]:
    """Return the visible files below *root*, relative to it, in order."""
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in without and f[0] != "."]
        below = Path(folder).relative_to(root)
        names += [(below / f).as_posix() for f in files if f[0] != "."]
    return sorted(names)


def _choose(root: Path, names: list[str]) -> list[str]:
    """Return those of *names* that hold the corpus."""
    parquet = [name for name in names if Path(name).suffix == PARQUET]
    text = [name for name in names if Path(name).suffix.lower() in TEXT_SUFFIXES]
    beside = [name for name in text if Path(name).suffix not in BESIDE_PARQUET]
    if parquet and beside:
        raise DataError(
            f"{root} holds parquet files and text files, as {parquet[0]} and"
            f" {beside[0]}.",
            hint="keep one kind in the folder, or name a folder below it.",
        )
    if not parquet and not text:
        raise DataError(
            f"{root} holds no corpus: none of its {len(names)} files is parquet or"
            " text.",
            hint=f"put {PARQUET} files there, or text as"
            f" {', '.join(sorted(TEXT_SUFFIXES))}.",
        )
    return parquet or text


def source_file(path: Path, *, validation: bool) -> SourceFile:
    """Look at one file of a corpus.

    Raises:
        DataError: It cannot be looked at.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return SourceFile(
        path=path.absolute(),
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        validation=validation,
    )


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read: {error}.".replace("..", "."),
        hint="fetch or write the file again, or take it out of the corpus.",
    )


def check_parquet(path: Path) -> None:
    """Refuse a parquet file that is damaged or has no column of texts.

    Raises:
        DataError: It is so.
    """
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    if COLUMN not in schema.names or not _is_string(schema.field(COLUMN).type):
        found = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise DataError(
            f"{path} has no column {COLUMN!r} of strings. It has: {found or 'none'}.",
            hint=f"rename the column that holds the documents to {COLUMN!r}.",
        )


def _is_string(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
    )


def _read_parquet(file: SourceFile) -> Iterator[tuple[Batch, float]]:
    """Yield batches with the share of the file that is read."""
    seen = 0
    try:
        with pq.ParquetFile(file.path) as shard:
            rows = shard.metadata.num_rows
            for part in shard.iter_batches(BATCH_ROWS, columns=[COLUMN]):
                seen += part.num_rows
                texts = _strings(part.column(0))
                batch = Batch(
                    texts=texts,
                    validation=file.validation,
                    undecodable_documents=part.num_rows - len(texts),
                    fraction=0.0,
                )
                yield batch, seen / rows
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file.path, error) from error


def _strings(column: pa.Array) -> list[str]:
    try:
        return [text or "" for text in column.to_pylist()]
    except UnicodeDecodeError:  # Arrow doesn't check what the file says is UTF-8
        texts = []
        for value in column:
            try:
                texts.append(value.as_py() or "")
            except UnicodeDecodeError:
                continue
        return texts


def _read_text(file: SourceFile) -> Iterator[tuple[Batch, float]]:
    """Yield batches of one document with the share of the file that is read.

    The file is read twice, because one that turns out not to be UTF-8 is left out as a
    whole, and may be too large to hold.
    """
    try:
        if text_digest(file) is None:
            skipped = Batch(
                texts=[], validation=file.validation, undecodable_files=1, fraction=0.0
            )
            yield skipped, 1.0
            return
        read = 0
        for text in _documents(file.path):
            read += len(text)
            batch = Batch(texts=[text], validation=file.validation, fraction=0.0)
            yield batch, min(1.0, read / (file.size or 1))
    except OSError as error:
        raise _unreadable(file.path, error) from error


def text_digest(file: SourceFile) -> bytes | None:
    """Return 16 bytes that stand for the whole text of a file, None if not UTF-8.

    Raises:
        DataError: The file is unreadable or gone.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    digest = hashlib.blake2b(digest_size=16)
    try:
        with file.path.open("rb") as opened:
            while block := opened.read(2**20):
                decoder.decode(block)
                digest.update(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return None
    except OSError as error:
        raise _unreadable(file.path, error) from error
    return digest.digest()


def _documents(path: Path) -> Iterator[str]:
    """Yield the whole text, cut after a line end where it is too long."""
    with path.open(encoding="utf-8", newline="") as file:
        text = file.read(DOCUMENT_CHARACTERS)
        if not text:
            yield text
        while text:
            whole = len(text) < DOCUMENT_CHARACTERS
            end = 0 if whole else text.rfind("\n") + 1
            end = end or len(text)
            yield text[:end]
            text = text[end:] + file.read(end)
