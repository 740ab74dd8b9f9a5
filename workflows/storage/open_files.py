"""Mapped files that stay open, and what takes their place where their folder cannot be written."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, final

from cachetools import LRUCache

from workflows.storage.mapped import MappedShard

MOST_OPEN: Final = 1024
"""Mapped files: more than a window of training has, of rows below 200 KB."""
RELEASED_AFTER: Final = 128 << 20
"""Bytes of mapped pages, as they are counted, before all are given back."""
KEPT_IN_MEMORY: Final = 1 << 30
_AROUND: Final = 256 << 10
"""Bytes that the system maps around a row when it is touched: 64 KiB for each of some columns."""
_log = logging.getLogger(__name__)


@final
class OpenFiles:
    """Keeps mapped files open, for any thread.

    Memory: about 300 MiB of pages until they are given back (measured). Where files cannot be written, the contents of
    at most 1 GiB of them instead.

    Args:
        contents: a plural noun for what the files hold, in the log.
        setting: the configuration key of their folder.
    """

    def __init__(self, contents: str, setting: str) -> None:
        self._contents, self._setting = contents, setting
        self._open: LRUCache[Path, MappedShard] = LRUCache(MOST_OPEN)
        self._kept: LRUCache[Path, bytes] = LRUCache(KEPT_IN_MEMORY, getsizeof=len)
        self._lock, self._touched, self._told = threading.RLock(), 0, False

    @property
    def paths(self) -> set[Path]:
        """The files that are open."""
        with self._lock:
            return set(self._open)

    def get(self, path: Path) -> MappedShard | None:
        """The file, if it is open."""
        with self._lock:
            return self._open.get(path)

    def keep(self, path: Path, file: MappedShard) -> MappedShard:
        """The file, which stays open from now on."""
        with self._lock:
            self._open[path] = file
        return file

    def forget(self, path: Path) -> None:
        """Ends a mapping."""
        with self._lock:
            self._open.pop(path, None)

    def forget_removed(self) -> None:
        """Ends the mappings of files that are gone, so that the disk gets their space."""
        with self._lock:
            for path in [one for one in self._open if not one.exists()]:
                del self._open[path]

    def touched(self, rows: int, count: int) -> None:
        """Counts rows that were read, and their bytes; after `RELEASED_AFTER` bytes all pages are given back."""
        with self._lock:
            self._touched += count + rows * _AROUND
            if self._touched > RELEASED_AFTER:
                self._touched = 0
                for file in self._open.values():
                    file.release()

    def in_memory(self, path: Path, error: OSError, make: Callable[[], bytes]) -> MappedShard:
        """A file that cannot be written, from its content; the log gives the reason once.

        Args:
            path: where it would be.
            error: why it is not there.
            make: gives its content.
        """
        self._tell(path.parent, error)
        with self._lock:
            content = self._kept.get(path)
        if content is None:
            content = make()
            with self._lock:
                if len(content) <= self._kept.maxsize:
                    self._kept[path] = content
        return MappedShard.of(content, str(path))

    def _tell(self, folder: Path, error: OSError) -> None:
        with self._lock:
            told, self._told = self._told, True
        if not told:
            _log.warning(
                "cannot keep %s in %s (%s): they are kept in memory, at most 1 GiB, and made again where that is too "
                "little; free space, or set %s",
                self._contents,
                folder,
                error.strerror or error,
                self._setting,
            )
