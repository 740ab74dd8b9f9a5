"""Where the shards of one cache, or the parts of a data set, are put: the artifact's folder, or object storage.

    <embed.store>/<cache key>/train/images/shard-000000-<sha256>.arrow
    <data.store>/<data hash>/train/part-000000-<sha256>.parquet

In object storage a shard bears the hash of its bytes. So no shard there is ever replaced by another one, jobs that make
the same cache share what is there, and a file whose bytes are not those of its name is as good as none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import pyarrow as pa
import pyarrow.parquet as pq

from workflows.storage.mapped import ENDING, find_mapped, hash_of, hashed_path, path_of, write_mapped
from workflows.storage.place import READERS, Place
from workflows.storage.shards import Shard, copy_shard, find_shard, metadata_key, write_shard


@final
@dataclass(frozen=True)
class Shelf:
    """Takes finished shards: Arrow files that are mapped (`mapped`), and Parquet files.

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
        """Writes a shard; see `write_mapped` and `write_shard`.

        Raises:
            StorageUnwritable: the folder or the store is full or read-only.
        """
        write = write_mapped if path.endswith(ENDING) else write_shard
        return self.take(write(self.folder, path, table, key))

    def copy(self, path: str, rows: int, source: Path, key: str) -> Shard:
        """Makes a shard of a file with the same bytes, whose name is their hash; see `copy_shard`.

        Raises:
            StorageUnwritable: the folder or the store is full or read-only.
        """
        shard = Shard(hashed_path(path, source.stem), rows, source.stem, key)
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
        find = find_mapped if path.endswith(ENDING) else find_shard
        if (shard := find(self.folder, path, key)) is not None:
            return self.take(shard)
        return next((shard for name in stored if (shard := self._stored(name, key)) is not None), None)

    def take(self, shard: Shard) -> Shard:
        """Brings a shard that lies in the folder to the store, if there is one.

        Raises:
            StorageUnwritable: the store is full or read-only.
        """
        if self.store is None:
            return shard
        source = self.folder / shard.path
        stored = self._put(shard, source, self.store)
        source.unlink()
        return stored

    def _stored(self, name: str, key: str) -> Shard | None:
        assert self.store is not None
        sha256 = self.store.sha256(name)
        if sha256 != hash_of(name):
            return None
        with self.store.reading(name), self.store.open(name) as file:
            if name.endswith(ENDING):
                batch = pa.ipc.open_file(file).get_batch(0)
                found, rows = batch.schema.metadata, batch.num_rows
            else:
                footer = pq.read_metadata(file)
                found, rows = footer.metadata, footer.num_rows
        return Shard(name, rows, sha256, key if name.endswith(ENDING) else "") if metadata_key(found) == key else None

    @staticmethod
    def _put(shard: Shard, source: Path, store: Place) -> Shard:
        named = shard.path.endswith(ENDING)
        stored = shard if named else replace(shard, path=hashed_path(shard.path, shard.sha256))
        if store.sha256(stored.path) != shard.sha256:
            store.put(source, stored.path)
        return stored


def _by_item(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of stored shards by the path of the work item."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(path_of(name), []).append(name)
    return found
