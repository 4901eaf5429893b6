"""runs.duckdb: opened for a moment, and closed again.

DuckDB lets nobody else open a file that a writer has open, not even to read.  So nothing
here keeps a connection, and a file that somebody else holds delays rows, never loses
them: they stay in the journal until the next time.
"""

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import duckdb

from core.errors import StoreError

# DuckDB 2 writes files that 1.x and its command line cannot read, unless told otherwise.
STORAGE = {"storage_compatibility_version": "v1.0.0"}
RETRY_SECONDS = 0.1
# A process cannot open a file to read while one of its threads has it open to write.
_ONE_AT_A_TIME = threading.RLock()


class Held(Exception):
    """Somebody else has the file open.

    Args:
        holder: Who, as DuckDB names it.
    """

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


@contextlib.contextmanager
def opened(
    path: Path | None, patience_seconds: float
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the database for writing, with its schema up to date.

    Args:
        path: The file, made when missing; None for a database in memory.
        patience_seconds: How long to wait for somebody who has it open.

    Raises:
        Held: They still have it.
        StoreError: It is damaged, or a newer deltaspec made it.
    """
    with _connected(path, patience_seconds) as db:
        _migrate(db, path)
        yield db


@contextlib.contextmanager
def reading(
    path: Path, patience_seconds: float = 3.0
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the database to read, for a person who asks.

    Args:
        path: The file.
        patience_seconds: How long to wait for somebody who writes.

    Raises:
        StoreError: There is none, it is damaged, or somebody has it open.
    """
    if not path.exists():
        raise StoreError(
            f"there is no {path}: nothing has run in this project.",
            hint="run an experiment: deltaspec run specs/idea.py.",
        )
    try:
        with _connected(path, patience_seconds, read_only=True) as db:
            yield db
    except Held as held:
        raise StoreError(
            f"{path} is open in {held.holder}.",
            hint="close it there, or ask again in a moment.",
        ) from held
    except duckdb.CatalogException as error:
        raise StoreError(
            f"{path} was made by an older deltaspec: {str(error).splitlines()[0]}",
            hint="run an experiment: that brings the file up to date.",
        ) from error


@contextlib.contextmanager
def _connected(
    path: Path | None, patience_seconds: float, *, read_only: bool = False
) -> Iterator[duckdb.DuckDBPyConnection]:
    with _ONE_AT_A_TIME if path is not None else contextlib.nullcontext():
        yield from _open(path, patience_seconds, read_only)


def _open(
    path: Path | None, patience_seconds: float, read_only: bool
) -> Iterator[duckdb.DuckDBPyConnection]:
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            db = duckdb.connect(
                str(path or ":memory:"), read_only=read_only, config=STORAGE
            )
            break
        except duckdb.Error as error:
            if "Could not set lock on file" not in str(error):
                raise StoreError(
                    f"{path} cannot be opened: {str(error).splitlines()[0]}",
                    hint=f"if it is damaged, move it and {path}.wal away: the next "
                    "command makes it anew from runs/.",
                ) from error
            if time.monotonic() >= deadline:
                raise Held(_holder(str(error))) from error
            time.sleep(RETRY_SECONDS)
    try:
        yield db
    finally:
        db.close()


def _holder(message: str) -> str:
    """Return who has the file open, as far as DuckDB could find out."""
    found = re.search(r"held in (.+?)(?: by user |\. See |$)", message)
    return found.group(1) if found else "another process"


def _migrate(db: duckdb.DuckDBPyConnection, path: Path | None) -> None:
    """Apply the migrations that the file has not seen, and renew the views."""
    sql = resources.files("core.store")
    files = {
        int(file.name.split("_")[0]): file for file in (sql / "migrations").iterdir()
    }
    db.execute("create table if not exists migrations (number integer, name varchar)")
    ((seen,),) = db.execute("select max(number) from migrations").fetchall()
    if (seen or 0) > max(files):
        raise StoreError(
            f"{path} was made by a newer deltaspec: it has seen migration {seen}, and "
            f"this one knows {max(files)}.",
            hint="update deltaspec, or move the file away: it is then made anew from "
            "runs/.",
        )
    for number in sorted(files):
        if number > (seen or 0):
            db.execute("begin")
            db.execute(files[number].read_text())
            db.execute(
                "insert into migrations values (?, ?)", [number, files[number].name]
            )
            db.execute("commit")
    db.execute("begin")  # one write to disk in place of forty
    db.execute((sql / "views.sql").read_text())
    db.execute("commit")


def past_words(path: Path) -> dict[str, str]:
    """Return the latest word on each mutant that was ever judged, in any context.

    Args:
        path: The database file; nothing is known where there is none.

    Raises:
        Held: Somebody has it open.
        StoreError: It is damaged, or a newer deltaspec made it.
    """
    if not path.exists():
        return {}
    with _connected(path, 0.0, read_only=True) as db:
        try:
            words = db.execute(
                "select mutant, last(word order by decided_at, verdict) from verdicts"
                " group by mutant"
            ).fetchall()
        except duckdb.CatalogException:  # made by somebody else, and still empty
            words = []
        return dict(words)
