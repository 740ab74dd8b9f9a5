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
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, final

from cachetools import LRUCache
from filelock import FileLock
from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from workflows.errors import InvalidData
from workflows.storage.atomic import PARTIAL, PartialFile
from workflows.storage.hashing import file_sha256
from workflows.storage.mapped import ENDING, MappedShard
from workflows.storage.open_files import OpenFiles
from workflows.storage.place import Place, reason
from workflows.storage.shards import Shard

REMEDY: Final = "run `raverse cache prune`, then the job again"
_ATTEMPTS: Final = 6
_LONGEST_TRY: Final = 120.0
"""Seconds after which no attempt begins. One attempt takes 100 seconds at an S3 store that never answers, and five
minutes at one that stops in the middle of a file (measured)."""
_LONGEST_WAIT: Final = 20.0
"""Seconds between two attempts."""
_LOCKS: Final = 64
_TRIES: Final = 3
_TOUCHED_EVERY: Final = 60.0
"""Seconds between two marks of a copy that is in use."""
_REMEMBERED: Final = 1 << 14
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

    Memory: that of `OpenFiles`.

    Args:
        place: where the shards are.
        settings: of the copies; a local folder needs none.

    Attributes:
        files: that are open.
    """

    def __init__(self, place: Place, settings: CopySettings) -> None:
        self._place, self._settings = place, settings
        self.files = OpenFiles("copies of shards", "train.cache_folder")
        self._touched: LRUCache[Path, float] = LRUCache(_REMEMBERED)
        self._sound: LRUCache[Path, tuple[int, int, int]] = LRUCache(_REMEMBERED)

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
        path = self._path(shard)
        found = self.files.get(path)
        if found is None:
            return self._fetched(shard) if self.fetches else self._local(shard)
        if self.fetches:
            self._touch(path)
        return found

    def _touch(self, path: Path) -> None:
        """Marks a copy as used, once in a while: the copies that were not used for the longest time go first."""
        now = time.monotonic()
        if now - self._touched.get(path, -math.inf) > _TOUCHED_EVERY:
            self._touched[path] = now
            with contextlib.suppress(OSError):  # another job removed it, or the folder cannot be written any more
                _mark(path)

    def _path(self, shard: Shard) -> Path:
        """Where the shard is on this node."""
        if self.fetches:
            return self._settings.place / f"{shard.sha256}{ENDING}"
        return Path(self._place.url) / shard.path

    def _local(self, shard: Shard) -> MappedShard:
        path = self._path(shard)
        try:
            found = MappedShard.open(path)
        except FileNotFoundError:
            raise InvalidData(f"{path} is missing: {REMEDY}") from None
        except InvalidData as error:
            raise InvalidData(f"{error}: {REMEDY}") from None
        return self.files.keep(path, self._checked(shard, found))

    def _checked(self, shard: Shard, found: MappedShard) -> MappedShard:
        if found.rows != shard.rows:
            raise InvalidData(f"{self._place / shard.path} has {found.rows} rows, wanted {shard.rows}: {REMEDY}")
        if shard.key and found.key != shard.key:
            raise InvalidData(f"{self._place / shard.path} is another shard, made from {found.key!r}: {REMEDY}")
        return found

    def _fetched(self, shard: Shard) -> MappedShard:
        path = self._path(shard)
        try:
            found = self.files.keep(path, self._checked(shard, self._copied(shard)))
        except OSError as error:
            return self._checked(shard, self.files.in_memory(path, error, lambda: self._content(shard)))
        self.files.forget_removed()
        return found

    def _content(self, shard: Shard) -> bytes:
        sink = io.BytesIO()
        self._download(shard, lambda: _emptied(sink))
        return sink.getvalue()

    def _copied(self, shard: Shard) -> MappedShard:
        """The copy, fetched if it is not here.

        Raises:
            OSError: the folder cannot be written.
            InvalidData: the shard cannot be fetched.
        """
        copy = self._path(shard)
        locks = copy.parent / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        for _ in range(_TRIES):
            with contextlib.suppress(FileNotFoundError):
                _mark(copy)
                if self._is_sound(copy, shard.sha256):
                    return MappedShard.open(copy)
                copy.unlink(missing_ok=True)  # changed by hand or by the disk
            with FileLock(locks / f"{int(shard.sha256[:8], 16) % _LOCKS:02d}.lock"):
                if not copy.exists():
                    self._fetch(shard, copy)
        raise OSError(errno.EIO, f"{_TRIES} copies were gone or changed as soon as they were written")

    def _is_sound(self, copy: Path, sha256: str) -> bool:
        """Whether the copy's bytes have this hash; a copy that this process has hashed is not read again."""
        found = copy.stat()
        seen = found.st_ino, found.st_size, found.st_mtime_ns
        if self._sound.get(copy) != seen and file_sha256(copy) != sha256:
            return False
        self._sound[copy] = seen
        return True

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
        self._place.check()
        attempts = Retrying(
            stop=stop_after_attempt(_ATTEMPTS) | stop_after_delay(_LONGEST_TRY),
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
            tried = attempts.statistics["attempt_number"]
            raise InvalidData(
                f"cannot read {self._place / shard.path} ({reason(error)}), {tried} attempts: check that the store "
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


def _mark(copy: Path) -> None:
    """Says that a copy is used now, by its time of access: that of its content stays, and tells copies apart."""
    os.utime(copy, ns=(time.time_ns(), copy.stat().st_mtime_ns))


def make_room(folder: Path, limit: int) -> int:
    """Removes the copies that were not used for the longest time, until the others have at most so many bytes.

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
    """When each copy was used last, its bytes, and where it is."""
    files: list[tuple[float, int, Path]] = []
    for path in folder.glob(f"*{ENDING}"):
        with contextlib.suppress(FileNotFoundError):  # another job was first
            found = path.stat()
            files.append((found.st_atime, found.st_size, path))
    return files


def _bytes_of(folder: Path) -> int:
    return sum(size for _, size, _ in _copies_in(folder))
