"""The training split of the data, decoded once for each node into files that are mapped.

    <cache folder>/<sha256 of a part>-<first row>.arrow     decoded pictures or vectors, and captions, at most 64 MiB

Workers and jobs of a node share the files. One that is missing is made from its part of the data by whoever needs it.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import pyarrow as pa
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor, from_numpy

from workflows.data.dataset import Dataset, decode
from workflows.data.rows import RowType
from workflows.embed.checksums import crc
from workflows.errors import InvalidData
from workflows.storage.atomic import PartialFile
from workflows.storage.copies import CopySettings, make_room
from workflows.storage.mapped import ENDING, MappedShard
from workflows.storage.open_files import OpenFiles

_FILE_BYTES: Final = 64 << 20


@final
class MappedSamples:
    """Samples of the training split by their number.

    Memory: that of `OpenFiles`, and one file while it is made.

    Args:
        dataset: of the samples.
        copies: where the files go.
    """

    def __init__(self, dataset: Dataset, copies: CopySettings) -> None:
        self._dataset, self._copies = dataset, copies
        rows: RowType = dataset.info.rows
        self._size = max(1, _FILE_BYTES // (math.prod(rows.shape) * rows.dtype.itemsize))
        self._files = [
            (part.sha256, first + start, min(self._size, part.rows - start))
            for part, first in _starts(dataset)
            for start in range(0, part.rows, self._size)
        ]
        self._firsts = np.array([first for _, first, _ in self._files])
        self._opened_files = OpenFiles("decoded samples", "clip.cache_folder")

    def take(self, samples: NDArray[np.int64], wordings: NDArray[np.int64]) -> tuple[Tensor, Tensor, list[str]]:
        """Sample ids `(b,)`, stored rows `(b, ...)`, and one caption each: wording number `wordings` modulo how many.

        Raises:
            InvalidData: the data are damaged.
        """
        rows = self._dataset.info.rows
        images = np.empty((len(samples), *rows.shape), rows.dtype)
        ids, texts = np.empty(len(samples), np.int64), [""] * len(samples)
        numbers = np.searchsorted(self._firsts, samples, side="right") - 1
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            local = samples[places] - self._firsts[number]
            ids[places], images[places], captions = self._rows(int(number), local)
            for place, own in zip(places, captions, strict=True):
                texts[place] = own[int(wordings[place]) % len(own)]
        self._opened_files.touched(len(samples), images.nbytes)
        return from_numpy(ids), from_numpy(images), texts

    def _rows(self, number: int, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any], list[list[str]]]:
        """Rows of a file, which is made again if they are no longer what they were."""
        found = _read(self._opened(number), rows)
        if found is None:
            self._opened_files.forget(self._path(number))
            self._path(number).unlink(missing_ok=True)
            found = _read(self._opened(number), rows)
        if found is None:
            raise InvalidData(f"{self._path(number)} was changed again after it was made: check this disk")
        return found

    def _path(self, number: int) -> Path:
        sha256, first, _ = self._files[number]
        return self._copies.place / f"{sha256}-{first}{ENDING}"

    def _opened(self, number: int) -> MappedShard:
        path = self._path(number)
        found = self._opened_files.get(path)
        if found is None:
            try:
                found = self._opened_files.keep(path, self._mapped(number))
            except OSError as error:
                return self._opened_files.in_memory(path, error, lambda: self._content(number))
            self._opened_files.forget_removed()
        return found

    def _mapped(self, number: int) -> MappedShard:
        """The file, made if it is not there or not whole."""
        path = self._path(number)
        (path.parent / "locks").mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / "locks" / f"{path.stem[:16]}.lock"):
            found = _whole(path, self._files[number][2])
            if found is None:
                table = self._table(number)
                with PartialFile(path) as partial:
                    with pa.OSFile(str(partial.path), "wb") as sink:
                        _write(sink, table)
                    make_room(path.parent, self._copies.limit - partial.path.stat().st_size)
                    partial.commit()
                found = MappedShard.open(path)
            with contextlib.suppress(FileNotFoundError):  # another job needed the room, and the mapping stays
                os.utime(path)
            return found

    def _content(self, number: int) -> bytes:
        sink = pa.BufferOutputStream()
        _write(sink, self._table(number))
        return bytes(sink.getvalue())

    def _table(self, number: int) -> pa.Table:
        _, first, count = self._files[number]
        split = decode(self._dataset.table("train", first, first + count), self._dataset.info.rows)
        return pa.table(
            {
                "sample_id": split.sample_ids,
                "image": pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(split.images)),
                "captions": pa.array([list(texts) for texts in split.captions], pa.list_(pa.string())),
                "check": _checks(split.sample_ids, split.images, split.captions),
            }
        )


def _write(sink: Any, table: pa.Table) -> None:
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _whole(path: Path, count: int) -> MappedShard | None:
    """The file, if it is there and has so many rows; one that is cut is removed."""
    try:
        found = MappedShard.open(path)
    except FileNotFoundError:
        return None
    except InvalidData:
        found = None
    if found is None or found.rows != count:
        path.unlink(missing_ok=True)
        return None
    return found


def _read(shard: MappedShard, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any], list[list[str]]] | None:
    """Sample ids, images and captions of some rows; None: a checksum is another."""
    ids, images = shard.column("sample_id").to_numpy()[rows], shard.column("image").to_numpy_ndarray()[rows]
    try:
        captions: list[list[str]] = shard.column("captions").take(pa.array(rows)).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    right = np.array_equal(_checks(ids, images, captions), shard.column("check").to_numpy()[rows])
    return (ids, images, captions) if right else None


def _starts(dataset: Dataset) -> list[tuple[Any, int]]:
    """Each part of the training split, and the number of its first sample."""
    parts = dataset.info.parts["train"]
    firsts = np.cumsum([0, *(part.rows for part in parts)])
    return [(part, int(first)) for part, first in zip(parts, firsts, strict=False)]


def _checks(ids: NDArray[np.int64], images: NDArray[Any], captions: Sequence[Sequence[str]]) -> NDArray[np.uint32]:
    """CRC-32 of each row."""
    texts = ("\0".join(own).encode() for own in captions)
    rows = zip(ids, images, texts, strict=True)
    return np.array([crc(key, np.ascontiguousarray(image), text) for key, image, text in rows], np.uint32)
