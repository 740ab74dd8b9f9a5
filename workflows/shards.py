"""Parquet shards that are either whole and known, or not there.

A shard is written to a temporary name and renamed, so a killed run leaves no half shard under a final name.
Its footer carries the key of what it was made from, so a later run knows which shards it may keep.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import pyarrow as pa
import pyarrow.parquet as pq

from workflows.errors import StorageUnwritable

_KEY: Final = b"raverse.shard_key"
_PARTIAL: Final = ".partial"
_CHUNK: Final = 1 << 20


@final
@dataclass(frozen=True)
class Shard:
    """A finished shard.

    Attributes:
        path: relative to the cache's folder.
        rows: how many it holds.
        sha256: of the file.
    """

    path: str
    rows: int
    sha256: str


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
    _replace(folder / path, lambda partial: write_parquet(keyed(table, key), partial))
    return Shard(path, table.num_rows, file_sha256(folder / path))


def copy_shard(folder: Path, shard: Shard, source: Path) -> Shard:
    """Makes a shard of a file that holds the same bytes, atomically.

    Args:
        folder: of the cache.
        shard: what it becomes.
        source: to copy; its rows carry the shard's key (see `keyed`).

    Raises:
        StorageUnwritable: the folder is full or read-only.
    """
    _replace(folder / shard.path, lambda partial: shutil.copyfile(source, partial))
    return shard


def keyed(table: pa.Table, key: str) -> pa.Table:
    """The rows of a shard with the key of what they were made from."""
    return table.replace_schema_metadata({_KEY: key.encode()})


def write_parquet(table: pa.Table, path: Path) -> None:
    """Writes rows as all shards are written.

    Features and pictures hardly repeat, and a dictionary of them would take most of the time of writing.
    """
    pq.write_table(table, path, compression="zstd", use_dictionary=False)


def _replace(final_path: Path, write: Callable[[Path], object]) -> None:
    partial = final_path.with_name(f"{final_path.name}.{uuid.uuid4().hex}{_PARTIAL}")
    try:
        final_path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(final_path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise StorageUnwritable(
            f"cannot write {final_path} ({error}): free space, or set storage.root elsewhere"
        ) from None


def find_shard(folder: Path, path: str, key: str) -> Shard | None:
    """The shard that an earlier run made from the same input, or None."""
    try:
        metadata = pq.read_metadata(folder / path)
    except (OSError, pa.ArrowException):
        return None
    if (metadata.metadata or {}).get(_KEY) != key.encode():
        return None
    return Shard(path, metadata.num_rows, file_sha256(folder / path))


def remove_partial(folder: Path) -> None:
    """Removes what a killed run had not finished writing."""
    for path in folder.rglob(f"*{_PARTIAL}"):
        path.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
