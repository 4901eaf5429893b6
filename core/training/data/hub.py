"""Shards from the Hugging Face hub, fetched once into the cache.

A shard grows as ``.part`` and is moved to its name when it has the size and the SHA-256
that the hub states. So what has its name is whole, and asks for no network.

huggingface_hub 2.4 gives each download a draft of a random name and never goes on with
it, and does not compare the SHA-256. So the bytes are asked for here; addresses, headers,
tokens, offline mode and errors are huggingface_hub's.
"""

import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import attrs
import httpx2
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    get_session,
    hf_hub_url,
    hf_raise_for_status,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, parse_ratelimit_headers

from core.errors import DataError
from core.training.data.climbmix import Shards
from core.training.data.disk import (
    NO_ROOM,
    Progress,
    Written,
    file_digest,
    locked,
    sync,
    writing,
)
from core.training.data.source import Source, check_parquet, source_file

PARALLEL = 8  # shards under way at once
ATTEMPTS = 5  # in a row that bring no byte
FIRST_WAIT_SECONDS = 1.0  # after an attempt that failed; doubled with each further one
LONGEST_WAIT_SECONDS = 300.0  # the hub counts requests in five minutes
POLL_SECONDS = 0.1
BLOCK_BYTES = 2**18

SHA256 = re.compile("[0-9a-f]{64}")
# And what a server says of itself: from 500 on.
TRY_AGAIN = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)

NO_ADDRESS = (httpx2.UnsupportedProtocol, httpx2.InvalidURL)


def fetch(shards: Shards, cache: Path, report: Progress) -> Source:
    """Return the corpus of *shards*, fetching those that are not in *cache*.

    Args:
        shards: What to fetch, and from which commit.
        cache: A folder, made when missing. Of several processes that fetch the same,
            one does, and the others wait.
        report: Called with the stage in words and the share of it that is done.

    Raises:
        DataError: A shard cannot be fetched, is not what the hub states, or has no
            texts; or there is no room for it.
    """
    folder = cache / f"{shards.repository.rpartition('/')[2]}-{shards.commit[:12]}"
    if any(not (folder / name).exists() for name in shards.files):
        with writing(folder) as written:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder, report), _parts_removed_without_room(folder):
                fetching = _Fetch(shards=shards, folder=folder, report=report)
                fetching.run(written)
    for name in shards.files:
        check_parquet(folder / name)
    return Source(
        name=shards.name,
        root=folder,
        files=tuple(
            source_file(folder / name, validation=name == shards.validation)
            for name in shards.files
        ),
    )


@contextmanager
def _parts_removed_without_room(folder: Path) -> Iterator[None]:
    """Give back the room of unfinished shards, when there is none left."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            for part in folder.glob("*.part"):
                part.unlink()
        raise


class _Stopped(Exception):
    """Another shard failed, or Ctrl-C was pressed."""


@attrs.frozen(kw_only=True)
class _Shard:
    """One file as the hub states it."""

    name: str
    url: str
    size: int
    sha256: str


class _Truncated(Exception):
    """An answer ends, and the shard is larger."""

    def __init__(self, have: int, shard: _Shard) -> None:
        super().__init__(f"{have:,} of {shard.size:,} bytes came, and no more")


@attrs.define(kw_only=True)
class _Fetch:
    """Shards on their way; the threads that fetch them stop together."""

    shards: Shards
    folder: Path
    report: Progress
    _stop: threading.Event = attrs.field(factory=threading.Event)
    _arrived: dict[str, int] = attrs.field(factory=dict)  # bytes, by name

    def run(self, written: Written) -> None:
        """Fetch what is missing; count what arrives in *written*."""
        names = [name for name in self.shards.files if not self._is_here(name)]
        if not names:
            return
        if constants.is_offline_mode():
            raise DataError(
                f"{len(names)} of {len(self.shards.files)} shards of {self.shards.name}"
                f" are not in {self.folder}, and HF_HUB_OFFLINE is set.",
                hint=f"unset it, or copy them there: {', '.join(sorted(names))}.",
            )
        stage = f"asking the hub for {_count(names)}"
        with ThreadPoolExecutor(PARALLEL) as pool:
            try:
                stated = [pool.submit(self._stated, name) for name in names]
                self._watch(stated, lambda done: self.report(stage, done / len(names)))
                missing = [future.result() for future in stated]
                total = sum(shard.size for shard in missing)
                self._check_room(missing)

                stage = f"fetching {_count(names)}, {total / 1e6:,.0f} MB"

                def show(_: int) -> None:
                    written.bytes = sum(self._arrived.values())
                    written.fraction = written.bytes / total
                    self.report(stage, min(1.0, written.fraction))

                self._watch([pool.submit(self._fetch, s) for s in missing], show)
            except BaseException:  # Ctrl-C too: nobody waits for what still comes
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        sync(self.folder)

    def _is_here(self, name: str) -> bool:
        """Return whether a shard is in the folder, or can be had from the hub's cache."""
        place = self.folder / name
        if place.exists():
            return True
        found = try_to_load_from_cache(
            self.shards.repository,
            name,
            revision=self.shards.commit,
            repo_type="dataset",
        )
        if not isinstance(found, str):
            return False
        blob = Path(found).resolve()  # the hub's cache names it by its SHA-256
        try:
            is_whole = SHA256.fullmatch(blob.name) and file_digest(blob) == blob.name
        except OSError:  # as good as not there
            return False
        if not is_whole:
            return False
        place.unlink(missing_ok=True)  # a link to what is gone
        place.symlink_to(blob)
        return True

    def _watch(
        self, futures: Iterable[Future[Any]], show: Callable[[int], None]
    ) -> None:
        """Show how it goes until all is done, or raise what the first failure raised."""
        waiting = set(futures)
        count = len(waiting)
        while waiting:
            done, waiting = wait(waiting, POLL_SECONDS, FIRST_EXCEPTION)
            show(count - len(waiting))
            for future in done:
                future.result()

    def _stated(self, name: str) -> _Shard:
        """Ask the hub for size and SHA-256 of a shard, of the commit that is pinned."""
        shards = self.shards
        url = hf_hub_url(
            shards.repository, name, revision=shards.commit, repo_type="dataset"
        )
        failures = 0
        while True:
            try:
                stated = get_hf_file_metadata(url)
                break
            except (httpx2.HTTPError, *NO_ADDRESS) as error:
                failures += 1
                self._wait_after(error, failures, name)
        is_known = stated.size is not None and SHA256.fullmatch(stated.etag or "")
        if stated.commit_hash != shards.commit or not is_known:
            raise DataError(
                f"{constants.ENDPOINT} does not state commit, size and SHA-256 of {name}"
                f" as the hub does: commit {stated.commit_hash}, size {stated.size}, etag"
                f" {stated.etag}, where commit {shards.commit} was asked for.",
                hint="unset HF_ENDPOINT, or name a mirror that passes on the hub's"
                " X-Repo-Commit, X-Linked-Size and X-Linked-Etag.",
            )
        return _Shard(name=name, url=url, size=stated.size, sha256=stated.etag)

    def _check_room(self, missing: list[_Shard]) -> None:
        for shard in missing:
            self._arrived[shard.name] = _size(self._part(shard))
        needed = sum(s.size for s in missing) - sum(self._arrived.values())
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise DataError(
                f"No room is left for {_count(missing)} in {self.folder}: {needed:,}"
                f" bytes are needed, and {free:,} are free.",
                hint="free space there, name another folder as the cache, or ask for"
                " fewer shards.",
            )

    def _part(self, shard: _Shard) -> Path:
        """Return where a shard grows; the name says of which content it is a part."""
        return self.folder / f"{shard.name}.{shard.sha256[:12]}.part"

    def _fetch(self, shard: _Shard) -> None:
        """Bring one shard to its name; what arrives damaged is fetched once more."""
        part = self._part(shard)
        for _ in range(2):
            self._complete(shard, part)
            found = file_digest(part)
            if found == shard.sha256:
                sync(part)
                part.replace(self.folder / shard.name)
                return
            part.unlink()
        raise DataError(
            f"{shard.name} of {self.shards.repository} arrived damaged from"
            f" {constants.ENDPOINT}, twice: its SHA-256 is {found}, and"
            f" {shard.sha256} was stated.",
            hint="run the same command later, or fetch from elsewhere: HF_ENDPOINT.",
        )

    def _complete(self, shard: _Shard, part: Path) -> None:
        """Ask for the rest of a shard until it has its size."""
        failures, most = 0, _size(part)
        while _size(part) < shard.size:
            try:
                self._append(shard, part)
            except (httpx2.HTTPError, _Truncated) as error:
                if _size(part) > most:
                    failures = 0
                failures += 1
                most = max(most, _size(part))
                self._wait_after(error, failures, shard.name)

    def _append(self, shard: _Shard, part: Path) -> None:
        """Append what one answer of the hub brings."""
        have = _size(part)
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with (
            part.open("ab", buffering=0) as file,
            get_session().stream(
                "GET", shard.url, headers=headers, timeout=timeout
            ) as response,
        ):
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise _Truncated(have, shard)
            hf_raise_for_status(response)
            if response.status_code != HTTPStatus.PARTIAL_CONTENT:
                file.truncate(0)  # the server begins anew
                have = 0
            for block in response.iter_bytes(BLOCK_BYTES):
                if self._stop.is_set():
                    raise _Stopped
                have += len(block)
                while block:  # a full disk takes a part of it, and then refuses
                    block = block[file.write(block) :]
                self._arrived[shard.name] = have
                if have > shard.size:  # the digest will tell
                    return
        if have < shard.size:
            raise _Truncated(have, shard)

    def _wait_after(self, error: Exception, failures: int, name: str) -> None:
        """Wait before the next attempt, or say why there is none."""
        response = error.response if isinstance(error, HfHubHTTPError) else None
        status = 0 if response is None else response.status_code
        is_refused = 400 <= status < 500 and status not in TRY_AGAIN
        is_final = is_refused or isinstance(error, NO_ADDRESS)
        if is_final or failures >= ATTEMPTS:
            said = f"{status} {response.reason_phrase}" if status else str(error)
            raise DataError(
                f"{name} of {self.shards.repository} cannot be fetched from"
                f" {constants.ENDPOINT}: {said.rstrip('.') or type(error).__name__}.",
                hint="look at the network, or name a mirror in HF_ENDPOINT; what has"
                " arrived is kept, and the same command goes on.",
            ) from error
        seconds = FIRST_WAIT_SECONDS * 2 ** (failures - 1)
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            limit = parse_ratelimit_headers(response.headers)
            after = response.headers.get("Retry-After", "")
            if limit is not None and limit.remaining == 0:
                seconds = limit.reset_in_seconds + 1  # it is rounded
            elif after.isdecimal():
                seconds = int(after)
        if self._stop.wait(min(seconds, LONGEST_WAIT_SECONDS)):
            raise _Stopped


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _count(shards: list[Any]) -> str:
    return f"{len(shards)} shard{'s' * (len(shards) > 1)}"
