"""Parquet shards that are either whole and known, or not there.

A shard is written to a temporary name and renamed, so a killed run leaves no half shard under a final name.
Its footer carries the key of what it was made from, so a later run knows which shards it may keep.
"""

from __future__ import annotations

import contextlib
import hashlib
import uuid
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
    final_path = folder / path
    partial = final_path.with_name(f"{final_path.name}.{uuid.uuid4().hex}{_PARTIAL}")
    try:
        final_path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.replace_schema_metadata({_KEY: key.encode()}), partial, compression="zstd")
        partial.replace(final_path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise StorageUnwritable(
            f"cannot write {final_path} ({error}): free space, or set storage.root elsewhere"
        ) from None
    return Shard(path, table.num_rows, file_sha256(final_path))


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
