"""Shards of a cache, opened where they are needed: files of a local folder, or local copies of a store's files.

    <cache folder>/<sha256>.arrow    a copy, under the hash of its bytes, so that any number of jobs may share it
    <cache folder>/locks/NN.lock     so that the workers of a node fetch a shard once

A copy that is removed while it is mapped stays readable, so one job may drop what another one reads. A copy counts only
if its bytes have the hash that the manifest gives.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import hashlib
import io
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, final

from cachetools import LRUCache
from filelock import FileLock
from tenacity import Retrying, before_sleep_log, retry_if_exception, stop_after_attempt, wait_random_exponential

from workflows.errors import InvalidData
from workflows.storage.atomic import PARTIAL, PartialFile
from workflows.storage.hashing import file_sha256
from workflows.storage.mapped import ENDING, MappedShard
from workflows.storage.place import Place, reason
from workflows.storage.shards import Shard

REMEDY: Final = "run `raverse cache prune`, then the job again"
_ATTEMPTS: Final = 6
_LONGEST_WAIT: Final = 20.0
"""Seconds between two attempts."""
_MOST_OPEN: Final = 1024
"""Mapped shards: more than a window has, of rows below 200 KB."""
_RELEASED_AFTER: Final = 128 << 20
"""Bytes of mapped pages, as they are counted, before all are given back."""
_AROUND: Final = 256 << 10
"""Bytes that the system maps around a row when it is touched: 64 KiB for each of some columns."""
_LOCKS: Final = 64
_LONGEST_FETCH: Final = 3600.0
"""Seconds in which a shard is written."""
_log = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class CopySettings:
    """Where copies of a store's shards go.

    Attributes:
        folder: of all jobs of this node; None: one in the system's folder for temporary files.
        limit: bytes of all copies in it; while a shard arrives there may be one more for each worker.
    """

    folder: Path | None = None
    limit: int = 32 << 30

    @property
    def place(self) -> Path:
        """The folder."""
        return self.folder or Path(tempfile.gettempdir()) / f"raverse-shards-{getpass.getuser()}"


@final
class OpenShards:
    """Opens shards when they are first asked for, from any thread.

    Memory: pages of local files, about 300 MiB until they are given back. Where copies cannot be written, shards of
    a store are kept in memory instead, at most 1 GiB of them.

    Args:
        place: where the shards are.
        settings: of the copies; a local folder needs none.
    """

    _KEPT_IN_MEMORY: Final = 1 << 30

    def __init__(self, place: Place, settings: CopySettings) -> None:
        self._place, self._settings = place, settings
        self._open: LRUCache[str, MappedShard] = LRUCache(_MOST_OPEN)
        self._kept: LRUCache[str, bytes] = LRUCache(self._KEPT_IN_MEMORY, getsizeof=len)
        self._lock, self._touched, self._told = threading.RLock(), 0, False

    @property
    def fetches(self) -> bool:
        """Whether shards come from a store."""
        return "://" in self._place.url

    @property
    def limit(self) -> int:
        """Bytes of copies that the node may have."""
        return self._settings.limit

    def open(self, shard: Shard) -> MappedShard:
        """The shard.

        Raises:
            InvalidData: it is lost, cut or changed, or the store cannot be read after some attempts.
        """
        with self._lock:
            found = self._open.get(shard.sha256)
        if found is None:
            found = self._fetched(shard) if self.fetches else self._local(shard)
        return found

    def touched(self, rows: int, count: int) -> None:
        """Says how many rows were read, and how many bytes of them; after so many all pages are given back."""
        with self._lock:
            self._touched += count + rows * _AROUND
            if self._touched > _RELEASED_AFTER:
                self._touched = 0
                for shard in self._open.values():
                    shard.release()

    def _local(self, shard: Shard) -> MappedShard:
        try:
            found = MappedShard.open(Path(self._place.url) / shard.path)
        except FileNotFoundError:
            raise InvalidData(f"{self._place / shard.path} is missing: {REMEDY}") from None
        except InvalidData as error:
            raise InvalidData(f"{error}: {REMEDY}") from None
        return self._kept_open(shard, found)

    def _kept_open(self, shard: Shard, found: MappedShard) -> MappedShard:
        """The shard, which the next caller finds open; mappings of copies that are gone end, to free the disk."""
        self._checked(shard, found)
        with self._lock:
            self._open[shard.sha256] = found
            if self.fetches:
                for sha256 in [key for key in self._open if not self._path(key).exists()]:
                    del self._open[sha256]
        return found

    def _checked(self, shard: Shard, found: MappedShard) -> MappedShard:
        if found.rows != shard.rows:
            raise InvalidData(f"{self._place / shard.path} has {found.rows} rows, wanted {shard.rows}: {REMEDY}")
        return found

    def _path(self, sha256: str) -> Path:
        return self._settings.place / f"{sha256}{ENDING}"

    def _fetched(self, shard: Shard) -> MappedShard:
        try:
            return self._kept_open(shard, self._copied(shard))
        except OSError as error:
            self._tell(error)
        with self._lock:
            content = self._kept.get(shard.sha256)
        if content is None:
            sink = io.BytesIO()
            self._download(shard, lambda: _emptied(sink))
            content = sink.getvalue()
            with self._lock:
                if len(content) <= self._kept.maxsize:
                    self._kept[shard.sha256] = content
        return self._checked(shard, MappedShard.of(content, str(self._place / shard.path)))

    def _tell(self, error: OSError) -> None:
        with self._lock:
            told, self._told = self._told, True
        if not told:
            _log.warning(
                "cannot keep copies of shards in %s (%s): they are kept in memory, at most 1 GiB, and fetched again "
                "where that is too little; free space, or set train.cache_folder",
                self._settings.place,
                error.strerror or error,
            )

    def _copied(self, shard: Shard) -> MappedShard:
        """The copy, fetched if it is not here.

        Raises:
            OSError: the folder cannot be written.
            InvalidData: the shard cannot be fetched.
        """
        copy = self._path(shard.sha256)
        locks = copy.parent / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                os.utime(copy)
                if file_sha256(copy) == shard.sha256:
                    return MappedShard.open(copy)
                copy.unlink(missing_ok=True)  # changed by hand or by the disk
            except FileNotFoundError:
                pass
            with FileLock(locks / f"{int(shard.sha256[:8], 16) % _LOCKS:02d}.lock"):
                if not copy.exists():
                    self._fetch(shard, copy)

    def _fetch(self, shard: Shard, copy: Path) -> None:
        """Fetches a shard; where the disk is full, once more when the older half of all copies is gone."""
        try:
            self._fetch_once(shard, copy)
        except OSError as error:
            if error.errno != errno.ENOSPC or not make_room(copy.parent, _bytes_of(copy.parent) // 2):
                raise
            self._fetch_once(shard, copy)

    def _fetch_once(self, shard: Shard, copy: Path) -> None:
        with PartialFile(copy) as partial:
            with partial.path.open("wb") as file:
                self._download(shard, lambda: _emptied(file))
            make_room(copy.parent, self._settings.limit - partial.path.stat().st_size)
            partial.commit()

    def _download(self, shard: Shard, sink: Callable[[], BinaryIO]) -> None:
        """Reads a shard from the store, again after a failure, and checks its hash."""
        attempts = Retrying(
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT),
            retry=retry_if_exception(_may_pass),
            before_sleep=before_sleep_log(_log, logging.WARNING),
            reraise=True,
        )
        try:
            attempts(self._attempt, shard, sink)
        except _LocalError as error:
            raise error.error from None
        except FileNotFoundError:
            raise InvalidData(f"{self._place / shard.path} is missing: {REMEDY}") from None
        except InvalidData:
            raise
        except Exception as error:  # noqa: BLE001 - each kind of storage raises its own
            raise InvalidData(
                f"cannot read {self._place / shard.path} ({reason(error)}), {_ATTEMPTS} attempts: check that the store "
                f"is reachable and that the credentials are valid, and run the same command to go on"
            ) from None

    def _attempt(self, shard: Shard, sink: Callable[[], BinaryIO]) -> None:
        out, digest = sink(), hashlib.sha256()
        for chunk in self._place.chunks(shard.path):
            digest.update(chunk)
            try:
                out.write(chunk)
            except OSError as error:
                raise _LocalError(error) from None
        if digest.hexdigest() != shard.sha256:
            raise InvalidData(f"{self._place / shard.path} is cut or changed: {REMEDY}")
        try:
            out.flush()
        except OSError as error:
            raise _LocalError(error) from None


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may go better."""
    return isinstance(error, Exception) and not isinstance(error, FileNotFoundError | _LocalError)


class _LocalError(Exception):
    """The disk of the copies fails, not the store."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _emptied(sink: Any) -> BinaryIO:
    sink.seek(0)
    sink.truncate()
    return sink  # type: ignore[no-any-return]


def make_room(folder: Path, limit: int) -> int:
    """Removes the copies that were not opened for the longest time, until the others have at most so many bytes.

    What a killed process left half-written an hour ago goes too.

    Returns:
        How many copies were removed.
    """
    for path in folder.glob(f"*{PARTIAL}"):
        with contextlib.suppress(FileNotFoundError):  # another process was first
            if time.time() - path.stat().st_mtime > _LONGEST_FETCH:
                path.unlink()
    files = _copies_in(folder)
    total, removed = sum(size for _, size, _ in files), 0
    for _, size, path in sorted(files):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total, removed = total - size, removed + 1
    return removed


def _copies_in(folder: Path) -> list[tuple[float, int, Path]]:
    """When each copy was opened last, its bytes, and where it is."""
    files: list[tuple[float, int, Path]] = []
    for path in folder.glob(f"*{ENDING}"):
        with contextlib.suppress(FileNotFoundError):  # another job was first
            found = path.stat()
            files.append((found.st_mtime, found.st_size, path))
    return files


def _bytes_of(folder: Path) -> int:
    return sum(size for _, size, _ in _copies_in(folder))
