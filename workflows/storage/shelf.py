"""Where the shards of one cache, or the parts of a data set, are put: the artifact's folder, or object storage.

    <embed.store>/<cache key>/train/images/shard-00000-<sha256>.parquet
    <data.store>/<data hash>/train/part-000000-<sha256>.parquet

In object storage a shard bears the hash of its bytes. So no shard there is ever replaced by another one, jobs that make
the same cache share what is there, and a file whose bytes are not those of its name is as good as none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, final

import pyarrow as pa
import pyarrow.parquet as pq

from workflows.storage.place import READERS, Place
from workflows.storage.shards import Shard, copy_shard, find_shard, shard_key, write_shard

_HASH_DIGITS: Final = 64
_ENDING: Final = ".parquet"


@final
@dataclass(frozen=True)
class Shelf:
    """Takes finished shards.

    Attributes:
        folder: of the artifact; a shard is written here first.
        store: where it goes then; None: it stays.
    """

    folder: Path
    store: Place | None = None

    @staticmethod
    def of(folder: Path, url: str | None, key: str) -> Shelf:
        """The shelf of what has this key; url: `embed.store` or `data.store`."""
        return Shelf(folder, None if url is None else Place(url) / key)

    def write(self, path: str, table: pa.Table, key: str) -> Shard:
        """Writes a shard; see `write_shard`.

        Raises:
            StorageUnwritable: the folder or the store is full or read-only.
        """
        return self.take(write_shard(self.folder, path, table, key))

    def copy(self, shard: Shard, source: Path) -> Shard:
        """Makes a shard of a file that holds the same bytes; see `copy_shard`.

        Raises:
            StorageUnwritable: the folder or the store is full or read-only.
        """
        return copy_shard(self.folder, shard, source) if self.store is None else self._put(shard, source, self.store)

    def find(self, items: Sequence[dict[str, Any]]) -> dict[str, Shard]:
        """The shards that an earlier run made of these work items, by the item's path.

        Those that a killed run had not yet brought to the store are brought there.

        Raises:
            InvalidData: the store cannot be read.
            StorageUnwritable: it cannot be written.
        """
        stored = self.stored()
        with ThreadPoolExecutor(READERS) as pool:
            shards = pool.map(
                lambda item: self.find_one(item["path"], item["key"], stored.get(item["path"], [])), items
            )
            return {item["path"]: shard for item, shard in zip(items, shards, strict=True) if shard is not None}

    def stored(self) -> dict[str, list[str]]:
        """Names of the shards in the store, by the path of the work item.

        Raises:
            InvalidData: the store cannot be read.
        """
        return _by_item(() if self.store is None else self.store.sizes())

    def find_one(self, path: str, key: str, stored: Sequence[str]) -> Shard | None:
        """The shard that an earlier run made of a work item; see `find`.

        Args:
            path: of the work item.
            key: of what it is made from.
            stored: its names in the store.
        """
        if (shard := find_shard(self.folder, path, key)) is not None:
            return self.take(shard)
        return next((shard for name in stored if (shard := self._stored(name, key)) is not None), None)

    def _stored(self, name: str, key: str) -> Shard | None:
        assert self.store is not None
        sha256 = self.store.sha256(name)
        if sha256 != _hash_of(name):
            return None
        with self.store.reading(name), self.store.open(name) as file:
            metadata = pq.read_metadata(file)
        return Shard(name, metadata.num_rows, sha256) if shard_key(metadata) == key else None

    def take(self, shard: Shard) -> Shard:
        """Brings a shard that lies in the folder to the store.

        Raises:
            StorageUnwritable: the store is full or read-only.
        """
        if self.store is None:
            return shard
        source = self.folder / shard.path
        stored = self._put(shard, source, self.store)
        source.unlink()
        return stored

    @staticmethod
    def _put(shard: Shard, source: Path, store: Place) -> Shard:
        stored = replace(shard, path=f"{shard.path.removesuffix(_ENDING)}-{shard.sha256}{_ENDING}")
        if store.sha256(stored.path) != shard.sha256:
            store.put(source, stored.path)
        return stored


def _by_item(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of stored shards by the path of the work item."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(f"{name[: -len(_ENDING) - _HASH_DIGITS - 1]}{_ENDING}", []).append(name)
    return found


def _hash_of(name: str) -> str:
    return name.removesuffix(_ENDING)[-_HASH_DIGITS:]
