"""A folder or file on a local disk, or behind any URL that pyarrow or fsspec knows."""

from __future__ import annotations

import hashlib
import os
import posixpath
import unicodedata
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple, final

from pyarrow import fs

from workflows.data.sources.record import is_hidden
from workflows.errors import InvalidData
from workflows.storage.place import filesystem_of

_TABLES: Final = (".jsonl", ".json", ".csv", ".tsv")
"""Files that name pictures beside them: where `data.path` is one, its folder is opened with it."""


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
        filesystem, path = filesystem_of(self.url)
        return filesystem, path.rstrip("/") or path

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

    @cached_property
    def table(self) -> str | None:
        """The name of the file that names the pictures, where `data.path` is such a file."""
        name = PurePosixPath(self._opened[1]).name
        return name if self._is_file and name.lower().endswith(_TABLES) else None

    @cached_property
    def _root(self) -> str:
        """The folder that paths are relative to."""
        path = self._opened[1]
        return posixpath.dirname(path) if self._is_file else path

    def entries(self) -> list[Entry]:
        """Every file, in order of paths; hidden ones, and those whose name is no Unicode text, are left out.

        About 200 bytes are in memory for each file.

        Raises:
            InvalidData: nothing is there, or it cannot be listed.
        """
        return sorted(entry for entry in self._listed if _is_unicode(entry.path) and not is_hidden(entry.path))

    def unreadable(self) -> list[str]:
        """Names of the files whose name is no Unicode text: no piece of work and no message can hold them."""
        found = [entry.path for entry in self._listed if not _is_unicode(entry.path) and not is_hidden(entry.path)]
        return [name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for name in sorted(found)]

    @property
    def _listed(self) -> list[Entry]:
        filesystem, path = self._opened
        try:
            if self._is_file and self.table is None:
                info = filesystem.get_file_info([path])[0]
                return [Entry(PurePosixPath(path).name, int(info.size or 0), int(info.mtime_ns or 0))]
            if isinstance(filesystem, fs.LocalFileSystem):
                return list(_walk(self._root))
            infos = filesystem.get_file_info(fs.FileSelector(self._root, recursive=True))
            return [
                Entry(info.path[len(self._root) :].lstrip("/"), int(info.size or 0), int(info.mtime_ns or 0))
                for info in infos
                if info.type == fs.FileType.File
            ]
        except OSError as error:
            raise InvalidData(f"cannot list {self.url} ({error}): check data.path and access") from None

    def inside(self, name: str, folder: str = "") -> str:
        """The path of a file that data name, relative to this location: the one rule for every source.

        Args:
            name: as it is written there: relative to `folder`, or absolute, or a URL.
            folder: where the file that names it lies.

        Raises:
            ValueError: it lies outside, or can be no path.
        """
        if "\0" in name or not name.strip():
            raise ValueError("the file name is empty or holds a NUL")
        if not _is_unicode(name):
            raise ValueError("the file name is no Unicode text: rename the file")
        if "://" in name and not name.startswith(self.url.rstrip("/") + "/"):
            raise ValueError(f"the picture is a URL ({name[:60]}): download it first, for example with img2dataset")
        for root in (self.url.rstrip("/"), self._root):
            if name.startswith(f"{root}/"):
                name, folder = name[len(root) + 1 :], ""
        path = posixpath.normpath(posixpath.join(folder, name))
        if posixpath.isabs(path) or path.split("/")[0] == ".." or path[1:3] in (":\\", ":/"):
            raise ValueError("the file lies outside the folder")
        return path

    def spellings(self, path: str) -> Iterator[str]:
        """The ways in which a path may be written: as it is, with composed or separate accents, with slashes."""
        for text in dict.fromkeys((path, path.replace("\\", "/"))):
            yield from dict.fromkeys((text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))))

    def open(self, path: str) -> Any:
        """A seekable pyarrow file.

        Raises:
            OSError: it cannot be opened.
        """
        filesystem, root = self._opened
        whole = self._is_file and self.table is None
        return filesystem.open_input_file(root if whole else f"{self._root}/{path}")

    def read(self, path: str) -> bytes:
        """The content of a file.

        Raises:
            OSError: it cannot be read.
        """
        with self.open(path) as file:
            return bytes(file.read())

    def read_named(self, name: str, folder: str = "") -> tuple[str, bytes]:
        """Path and content of a file that data name; see `inside`.

        Raises:
            ValueError: it lies outside, does not exist, or cannot be read.
        """
        path = self.inside(name, folder)
        for spelled in self.spellings(path):
            try:
                safe = self.inside(spelled)
                return safe, self.read(safe)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise ValueError(_reason(error)) from None
        raise ValueError("the file does not exist")

    def stamp(self) -> str:
        """Hash over paths, sizes and modification times: changes when the data do."""
        return hashlib.sha256(repr([tuple(entry) for entry in self.entries()]).encode("utf-8", "replace")).hexdigest()


def _walk(root: str) -> Iterator[Entry]:
    """Files below a local folder; each real folder is visited once, so links may lead in circles.

    Links to folders come last, so that a file has the path of the folder that it lies in.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = [""], deque[str]()
    while folders or links:
        folder = folders.pop() if folders else links.popleft()
        place = os.path.join(root, folder)  # noqa: PTH118 -- Path drops what makes names different
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name, reverse=True):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append(path)
            elif entry.is_file():
                info = entry.stat()
                yield Entry(path, info.st_size, info.st_mtime_ns)
            elif entry.is_symlink():
                yield Entry(path, 0, 0)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _reason(error: OSError) -> str:
    return f"the file cannot be read ({error.strerror or error})"
