"""A folder or file on a local disk, or behind any URL that pyarrow or fsspec knows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, NamedTuple, final

from pyarrow import fs

from workflows.errors import InvalidData
from workflows.storage.place import filesystem_of


class Entry(NamedTuple):
    """A file: its path relative to the location, bytes, and modification time in ns (0 where unknown)."""

    path: str
    size: int
    mtime: int


@final
@dataclass(frozen=True)
class Location:
    """Where a user's data are; opens files by their path relative to it.

    Attributes:
        url: a local path, or a URL such as `s3://bucket/folder`.
    """

    url: str

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        return filesystem_of(self.url)

    @cached_property
    def _is_file(self) -> bool:
        filesystem, path = self._opened
        try:
            kind = filesystem.get_file_info([path])[0].type
        except OSError as error:
            raise InvalidData(f"cannot look at {self.url} ({error}): check data.path and access") from None
        if kind == fs.FileType.NotFound:
            raise InvalidData(f"nothing at {self.url}: set data.path to a folder, a file, or a URL of one")
        return bool(kind == fs.FileType.File)

    def entries(self) -> list[Entry]:
        """Every file, in order of paths; hidden ones are left out.

        Raises:
            InvalidData: nothing is there, or it cannot be listed.
        """
        filesystem, path = self._opened
        try:
            infos = filesystem.get_file_info([path] if self._is_file else fs.FileSelector(path, recursive=True))
            found = [
                Entry(self._relative(info.path), int(info.size or 0), int(info.mtime_ns or 0))
                for info in infos
                if info.type == fs.FileType.File
            ]
        except OSError as error:
            raise InvalidData(f"cannot list {self.url} ({error}): check data.path and access") from None
        except UnicodeDecodeError as error:
            name = bytes(error.object).decode("utf-8", "replace")
            raise InvalidData(f"the name of {name} is no UTF-8: rename it") from None
        return sorted(entry for entry in found if not any(part.startswith(".") for part in entry.path.split("/")))

    def open(self, path: str) -> Any:
        """A seekable pyarrow file.

        Raises:
            OSError: it cannot be opened.
        """
        filesystem, root = self._opened
        return filesystem.open_input_file(root if self._is_file else f"{root}/{path}")

    def read(self, path: str) -> bytes:
        """The content of a file.

        Raises:
            OSError: it cannot be read.
        """
        with self.open(path) as file:
            return bytes(file.read())

    def stamp(self) -> str:
        """Hash over paths, sizes and modification times: changes when the data do."""
        return hashlib.sha256(repr([tuple(entry) for entry in self.entries()]).encode("utf-8", "replace")).hexdigest()

    def _relative(self, path: str) -> str:
        root = self._opened[1]
        return PurePosixPath(path).name if self._is_file else path[len(root) :].lstrip("/")
