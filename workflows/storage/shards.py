"""Parquet shards that are either whole and known, or not there.

A shard is written to a temporary name and renamed (`atomic`), so a killed run leaves no half shard under a final name.
Its footer carries the key of what it was made from, so a later run knows which shards it may keep.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import pyarrow as pa
import pyarrow.parquet as pq

from workflows.errors import StorageUnwritable
from workflows.storage.atomic import PartialFile, whole_file
from workflows.storage.hashing import file_sha256

_KEY: Final = b"raverse.shard_key"
_ROWS_AT_ONCE: Final = 1024
"""So many rows are in memory while a shard is read through; it may hold many thousands of pictures."""


@final
@dataclass(frozen=True)
class Shard:
    """A finished shard.

    Attributes:
        path: relative to the cache's folder.
        rows: how many it holds.
        sha256: of the file.
        key: of what it was made from, as its metadata give it; empty: it is not compared where the shard is read.
    """

    path: str
    rows: int
    sha256: str
    key: str = ""


def write_shard(folder: Path, path: str, table: pa.Table, key: str) -> Shard:
    """Writes a shard atomically.

    Args:
        folder: of the cache.
        path: of the shard, relative to it.
        table: its rows.
        key: of what it was made from.

    Raises:
        StorageUnwritable: the folder is full or read-only.
    """
    with ShardWriter(folder, path, table.schema, key) as writer:
        writer.write(table)
        return writer.finish()


@final
class ShardWriter:
    """Writes a shard bit by bit, for rows that should not be in memory all at once; a context.

    Without `finish`, nothing is left.

    Args:
        folder: of the cache.
        path: of the shard, relative to it.
        schema: of its rows.
        key: of what it was made from.

    Raises:
        StorageUnwritable: the folder is full or read-only; so do `write` and `finish`.
    """

    def __init__(self, folder: Path, path: str, schema: pa.Schema, key: str) -> None:
        self._folder, self._path, self._rows = folder, path, 0
        with _writing(folder / path):
            self._partial = PartialFile(folder / path)
            try:
                self._writer = parquet_writer(self._partial.path, schema.with_metadata({_KEY: key.encode()}))
            except OSError:
                self._partial.discard()
                raise

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, pa.ArrowException):
            self._writer.close()
        self._partial.discard()

    def write(self, table: pa.Table) -> None:
        """Adds rows, as a row group of their own."""
        with _writing(self._folder / self._path):
            self._writer.write_table(table.replace_schema_metadata(self._writer.schema.metadata))
        self._rows += table.num_rows

    def finish(self) -> Shard:
        """Puts the shard in its place."""
        with _writing(self._folder / self._path):
            self._writer.close()
            shard = Shard(self._path, self._rows, file_sha256(self._partial.path))
            self._partial.commit()
        return shard


def copy_shard(folder: Path, shard: Shard, source: Path) -> Shard:
    """Makes a shard of a file that holds the same bytes, atomically.

    Args:
        folder: of the cache.
        shard: what it becomes.
        source: to copy; its rows carry the shard's key (see `keyed`).

    Raises:
        StorageUnwritable: the folder is full or read-only.
    """
    with _writing(folder / shard.path), whole_file(folder / shard.path) as partial:
        shutil.copyfile(source, partial)
    return shard


def keyed(table: pa.Table, key: str) -> pa.Table:
    """The rows of a shard with the key of what they were made from."""
    return table.replace_schema_metadata({_KEY: key.encode()})


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Writes rows as all shards are written.

    Features and pictures hardly repeat, and a dictionary of them would take most of the time of writing. Checksums of
    pages let a run that goes on after another find what a disk has spoilt before any manifest has a hash of it.
    """
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False, write_page_checksum=True)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A part of the way from nothing to the file at `path`."""
    try:
        yield
    except OSError as error:
        raise StorageUnwritable(f"cannot write {path} ({error}): free space, or set storage.root elsewhere") from None


def find_shard(folder: Path, path: str, key: str) -> Shard | None:
    """The shard that an earlier run made from the same input and that still reads as it was written, or None."""
    try:
        with pq.ParquetFile(folder / path, page_checksum_verification=True) as file:
            metadata = file.metadata
            if shard_key(metadata) != key:
                return None
            for _ in file.iter_batches(_ROWS_AT_ONCE):
                pass
    except (OSError, pa.ArrowException):
        return None
    return Shard(path, metadata.num_rows, file_sha256(folder / path))


def shard_key(metadata: pq.FileMetaData) -> str | None:
    """The key of the input of a shard, as its footer says; None: it does not say."""
    return metadata_key(metadata.metadata)


def metadata_key(metadata: Mapping[bytes, bytes] | None) -> str | None:
    """The key of the input of a shard, as its metadata say; None: they do not say."""
    key = (metadata or {}).get(_KEY)
    return None if key is None else key.decode(errors="replace")
