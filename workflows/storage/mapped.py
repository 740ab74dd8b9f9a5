"""Shards that are read row by row: uncompressed Arrow files, which are mapped into memory instead of loaded.

    shard-00000-<sha256>.arrow      one record batch; the file bears the hash of its bytes

The schema's metadata carry the key of what the shard was made from, as the footer of a Parquet shard does (`shards`).
Mapped pages belong to the page cache: the processes of a node share them, and the system drops them when it needs room.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, final

import pyarrow as pa

from workflows.errors import InvalidData, StorageUnwritable
from workflows.storage.atomic import PartialFile
from workflows.storage.hashing import file_sha256
from workflows.storage.shards import Shard, keyed, metadata_key

ENDING: Final = ".arrow"
_HASH_DIGITS: Final = 64


def write_mapped(folder: Path, path: str, table: pa.Table, key: str) -> Shard:
    """Writes a shard atomically, under its path and the hash of its bytes.

    Args:
        folder: of the cache.
        path: of the shard without its hash, such as `train/images/shard-00000.arrow`.
        table: its rows.
        key: of what it was made from.

    Raises:
        StorageUnwritable: the folder is full or read-only.
    """
    with writing(folder / path), PartialFile(folder / path) as partial:
        _write(partial.path, keyed(table.combine_chunks(), key))
        sha256 = file_sha256(partial.path)
        shard = Shard(hashed_path(path, sha256), table.num_rows, sha256, key)
        partial.commit(Path(shard.path).name)
    return shard


def write_hashed(folder: Path, table: pa.Table) -> Path:
    """Writes rows atomically to a file whose name is the hash of its bytes.

    Raises:
        OSError: the folder is full or read-only.
    """
    with PartialFile(folder / f"part{ENDING}") as partial:
        _write(partial.path, table.combine_chunks())
        return partial.commit(f"{file_sha256(partial.path)}{ENDING}")


def _write(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def find_mapped(folder: Path, path: str, key: str) -> Shard | None:
    """The shard that an earlier run made from the same input and whose bytes are those of its name, or None."""
    start = path.removesuffix(ENDING)
    for file in sorted((folder / path).parent.glob(f"{Path(start).name}-*{ENDING}")):
        with contextlib.suppress(InvalidData), MappedShard.open(file) as shard:
            if shard.key == key and file_sha256(file) == hash_of(file.name):
                return Shard(str(file.relative_to(folder)), shard.rows, hash_of(file.name), key)
    return None


def hashed_path(path: str, sha256: str) -> str:
    """The path of a shard with the hash of its bytes."""
    start, dot, ending = path.rpartition(".")
    return f"{start}-{sha256}{dot}{ending}"


def path_of(name: str) -> str:
    """The inverse of `hashed_path`."""
    start, dot, ending = name.rpartition(".")
    return f"{start[: -_HASH_DIGITS - 1]}{dot}{ending}"


def hash_of(name: str) -> str:
    """The hash in the path of a shard."""
    return name.rpartition(".")[0][-_HASH_DIGITS:]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A part of the way from nothing to the file at `path`.

    Raises:
        StorageUnwritable: the operating system refuses.
    """
    try:
        yield
    except OSError as error:
        raise StorageUnwritable(f"cannot write {path} ({error}): free space, or set storage.root elsewhere") from None


@final
class MappedShard:
    """A shard that is open; its columns are views of the file, and memory holds the pages that were touched.

    It stays readable when the file is removed. A file that is cut while it is open ends the process (SIGBUS).

    Args:
        batch: the rows.
        content: the mapped file, or None where the shard is in memory.
    """

    def __init__(self, batch: pa.RecordBatch, content: mmap.mmap | None) -> None:
        self._batch, self._content = batch, content

    @staticmethod
    def open(path: Path) -> MappedShard:
        """Maps a file.

        Raises:
            FileNotFoundError: there is none.
            InvalidData: it is no whole Arrow file of one record batch.
        """
        try:
            with path.open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise InvalidData(f"cannot read {path} ({error})") from None
        return MappedShard(_only_batch(pa.py_buffer(content), str(path)), content)

    @staticmethod
    def of(content: bytes, name: str) -> MappedShard:
        """A shard that is in memory, all of it.

        Raises:
            InvalidData: it is no whole Arrow file of one record batch.
        """
        return MappedShard(_only_batch(pa.py_buffer(content), name), None)

    def __enter__(self) -> MappedShard:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing: views may live on, and the mapping ends with the last of them."""

    @property
    def rows(self) -> int:
        """How many it holds."""
        return int(self._batch.num_rows)

    @property
    def key(self) -> str | None:
        """The key of the input that it was made from; None: the file does not say."""
        return metadata_key(self._batch.schema.metadata)

    def column(self, name: str) -> Any:
        """A column as a pyarrow array.

        Raises:
            InvalidData: there is no such column.
        """
        try:
            return self._batch.column(name)
        except (KeyError, ValueError):
            found = ", ".join(_column_names(self._batch.schema))
            raise InvalidData(f"a shard has columns {found}, wanted {name}: make its cache again") from None

    @property
    def nbytes(self) -> int:
        """Bytes of its rows."""
        return int(self._batch.nbytes)

    def table(self) -> pa.Table:
        """All columns, as views."""
        return pa.Table.from_batches([self._batch])

    def release(self) -> None:
        """Gives the touched pages back; they stay in the page cache, and reading maps them again."""
        if self._content is not None:
            self._content.madvise(mmap.MADV_DONTNEED)


def _column_names(schema: pa.Schema) -> list[str]:
    """The names of the columns; of a damaged file they may be no text."""
    try:
        return list(schema.names)
    except ValueError:
        return ["that have no readable name"]


def _only_batch(content: pa.Buffer, name: str) -> pa.RecordBatch:
    try:
        reader = pa.ipc.open_file(content)
        batches: Sequence[pa.RecordBatch] = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise InvalidData(f"{name} is no whole Arrow file ({error})") from None
    if len(batches) != 1:
        raise InvalidData(f"{name} has {len(batches)} record batches, wanted 1")
    return batches[0]
