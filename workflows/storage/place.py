"""A folder on a local disk, or behind any URL that pyarrow or fsspec knows: the same few operations on each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, final

import pyarrow as pa
from pyarrow import fs

from workflows.errors import InvalidData, StorageUnwritable
from workflows.storage.hashing import stream_sha256

READERS: Final = 8
"""Files that are read at once, where many are."""
_CHUNK: Final = 16 << 20
"""Bytes per request of what is read from end to end."""
_WITHOUT_FOLDERS: Final = ("s3", "gcs", "abfs")
_VERDICT: Final = "AWS Error"
_LONGEST: Final = 160


@final
@dataclass(frozen=True)
class Place:
    """Where files are, by their path relative to it.

    Attributes:
        url: a local path, or a URL such as `s3://bucket/folder`.
    """

    url: str

    def __truediv__(self, name: str) -> Place:
        """What is below; a query, such as `?endpoint_override=HOST:PORT`, stays at the end."""
        if "://" not in self.url:
            return Place(str(Path(self.url) / name))
        path, mark, query = self.url.partition("?")
        return Place(f"{path.rstrip('/')}/{name}{mark}{query}")

    def __str__(self) -> str:
        return self.url

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        return filesystem_of(self.url)

    def check(self) -> None:
        """Finds the library for this kind of URL.

        Raises:
            InvalidData: there is none.
        """
        _ = self._opened

    def open(self, path: str) -> Any:
        """A seekable pyarrow file.

        Raises:
            Exception: what this kind of storage raises.
        """
        filesystem, root = self._opened
        return filesystem.open_input_file(f"{root}/{path}")

    def sha256(self, path: str) -> str | None:
        """SHA-256 of a file, as 64 hexadecimal digits; None: there is no such file.

        Raises:
            InvalidData: the place cannot be reached or read.
        """
        filesystem, root = self._opened
        with self.reading(path):
            try:
                with filesystem.open_input_stream(f"{root}/{path}", compression=None, buffer_size=_CHUNK) as stream:
                    return stream_sha256(stream)
            except FileNotFoundError:
                return None

    def chunks(self, path: str) -> Iterator[bytes]:
        """The bytes of a file, at most 16 MiB at a time.

        Raises:
            Exception: what this kind of storage raises.
        """
        filesystem, root = self._opened
        with filesystem.open_input_stream(f"{root}/{path}", compression=None) as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk

    def sizes(self) -> dict[str, int]:
        """Path and bytes of every file; nothing where there is no such folder.

        Raises:
            InvalidData: the place cannot be reached or read.
        """
        filesystem, root = self._opened
        with self.reading(""):
            infos = filesystem.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
        return {info.path[len(root) + 1 :]: int(info.size) for info in infos if info.type == fs.FileType.File}

    def put(self, source: Path, path: str) -> None:
        """Copies a local file there. Killed half-way, it may leave a part under the final name, except in buckets.

        Raises:
            StorageUnwritable: that fails.
        """
        filesystem, root = self._opened
        target = f"{root}/{path}"
        try:
            if filesystem.type_name not in _WITHOUT_FOLDERS:
                filesystem.create_dir(target.rpartition("/")[0], recursive=True)
            fs.copy_files(
                str(source), target, source_filesystem=fs.LocalFileSystem(), destination_filesystem=filesystem
            )
        except Exception as error:  # noqa: BLE001 - each kind of storage raises its own
            raise StorageUnwritable(
                f"cannot write {self / path} ({reason(error)}): check that it is reachable and lets you write"
            ) from None

    @contextlib.contextmanager
    def reading(self, path: str) -> Iterator[None]:
        """A part of the way from a file there to its content.

        Raises:
            InvalidData: whatever goes wrong in it.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001 - each kind of storage raises its own
            raise InvalidData(
                f"cannot read {self / path} ({reason(error)}): check that it is reachable and lets you read"
            ) from None


def reason(error: BaseException) -> str:
    """The first line of what a storage says, from its verdict on, no longer than a line or two."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line[max(line.find(_VERDICT), 0) :][:_LONGEST]


def filesystem_of(url: str) -> tuple[Any, str]:
    """The pyarrow file system of a path or URL, and the path in it.

    Raises:
        InvalidData: no library knows this kind of URL.
    """
    if "://" not in url:
        return fs.LocalFileSystem(), str(Path(url).absolute())
    try:
        filesystem, path = fs.FileSystem.from_uri(url)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError):
        filesystem, path = _fsspec(url)
    return filesystem, path.rstrip("/")


def _fsspec(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        raise InvalidData(f"{url} needs fsspec: pip install fsspec and what its protocol wants") from None
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError, OSError) as error:
        raise InvalidData(f"cannot open {url} ({error}): check the URL") from None
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path
