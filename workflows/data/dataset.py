"""A data artifact on disk: Parquet files of captioned images, and what they hold.

    train/part-*.parquet, held_out/part-*.parquet   sample_id, image (PNG; of vectors: float32), captions, label,
                                                    attributes, unseen
    data.json                                       `DataInfo`, with the rows and the hash of every part

The rows of a split are those of its parts, in order. The parts lie beside `data.json` or in `data.store`.

A sample is described by one value of each attribute (shapes: shape, color, size, position; digits: digit).
Its *combination* is the index of its values in the product of all attributes, and `candidate_captions`
holds one canonical caption per combination, in that order. Its label is the value of the first attribute.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias, final, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from workflows.data.png import encode_png
from workflows.data.rows import RowType, rows_of
from workflows.data.scale import VectorScale
from workflows.errors import InvalidData, MissingArtifact
from workflows.storage.place import Place, reason
from workflows.storage.shards import Shard, ShardWriter
from workflows.storage.shelf import Shelf

SplitName: TypeAlias = Literal["train", "held_out"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
_REMEDY = "remove the folder of the data, and run `raverse data` again"

SCHEMA = pa.schema(
    {
        "sample_id": pa.int64(),
        "image": pa.binary(),
        "captions": pa.list_(pa.string()),
        "label": pa.int64(),
        "attributes": pa.list_(pa.string()),
        "unseen": pa.bool_(),
    }
)
ROWS_PER_GROUP = 1024
"""Rows per Parquet row group: what a reader of a range of rows must decode at least."""
ROWS_PER_PART = 8192
"""Rows of a part of a built-in set."""


@final
@dataclass(frozen=True)
class DataInfo:
    """What a data artifact holds; written as `data.json`.

    Attributes:
        source: name of the built-in set, or the format of the user's own.
        shape: (c, h, w) of every image, or (d,) of vectors.
        class_names: names of the labels: the values of the first attribute.
        attributes: attribute name -> its values, in order; none where samples have no label.
        num_train: samples to train on.
        num_held_out: samples kept out of training.
        data_hash: SHA-256 over pixels, captions, labels, attributes and split.
        candidate_captions: one canonical caption per combination of attribute values; without attributes, the most
            frequent captions.
        unseen_combinations: indices into `candidate_captions` that no training sample shows.
        scale: what the numbers of vectors mean; None: samples are images.
        parts: the Parquet files of each split, in order.
        store: where the parts are; None: beside `data.json`.
    """

    source: str
    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    attributes: dict[str, tuple[str, ...]]
    num_train: int
    num_held_out: int
    data_hash: str
    candidate_captions: tuple[str, ...]
    unseen_combinations: tuple[int, ...]
    scale: VectorScale | None = None
    parts: dict[str, tuple[Shard, ...]] = field(default_factory=dict)
    store: str | None = None

    @staticmethod
    def load(folder: Path) -> DataInfo:
        """Reads `data.json`.

        Raises:
            MissingArtifact: there is none in the folder.
            InvalidData: it is of an earlier version.
        """
        try:
            values: dict[str, Any] = json.loads((folder / "data.json").read_text())
        except FileNotFoundError:
            raise MissingArtifact(f"no data.json in {folder}: run `raverse data` first") from None
        if "parts" not in values:
            raise InvalidData(
                f"the data in {folder} are of an earlier version: remove the folder, and run the job again"
            )
        scale = VectorScale.of(values.pop("scale", None))
        parts = {split: tuple(Shard(**part) for part in parts) for split, parts in values.pop("parts").items()}
        return DataInfo(**{name: _frozen(value) for name, value in values.items()}, parts=parts, scale=scale)

    @property
    def rows(self) -> RowType:
        """The type of the samples."""
        return rows_of(self.shape, self.scale)

    def save(self, folder: Path) -> None:
        """Writes `data.json`."""
        (folder / "data.json").write_text(json.dumps(asdict(self), indent=2))

    def combination(self, values: Sequence[str]) -> int:
        """Index of a combination of attribute values, given in the order of `attributes`.

        Raises:
            InvalidData: a value that the attribute does not have.
        """
        index = 0
        for value, (name, allowed) in zip(values, self.attributes.items(), strict=True):
            if value not in allowed:
                raise InvalidData(f"{name} {value!r} does not occur in {self.source}: give one of {', '.join(allowed)}")
            index = index * len(allowed) + allowed.index(value)
        return index

    def values_of(self, combination: int) -> tuple[str, ...]:
        """Attribute values of a combination: the inverse of `combination`."""
        sizes = [len(allowed) for allowed in self.attributes.values()]
        indices = np.unravel_index(combination, sizes)
        return tuple(allowed[int(i)] for allowed, i in zip(self.attributes.values(), indices, strict=True))

    def num_samples(self, split: SplitName) -> int:
        """Samples of a split."""
        return self.num_train if split == "train" else self.num_held_out


@final
@dataclass(frozen=True)
class Split:
    """Samples in memory.

    Attributes:
        sample_ids: (n,) int64, unique over both splits.
        images: (n, c, h, w) uint8; of vectors (n, d) float32, normalised.
        captions: every wording of each sample.
        labels: (n,) int64, index into `class_names`; -1 where there is none.
        attributes: one value per attribute for each sample.
        unseen: (n,) bool, true where no training sample shows this combination.
    """

    sample_ids: NDArray[np.int64]
    images: NDArray[Any]
    captions: tuple[tuple[str, ...], ...]
    labels: NDArray[np.int64]
    attributes: tuple[tuple[str, ...], ...]
    unseen: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.sample_ids)

    def rows(self, indices: NDArray[np.int64]) -> Split:
        """The samples at these indices, in this order."""
        return Split(
            self.sample_ids[indices],
            self.images[indices],
            tuple(self.captions[i] for i in indices),
            self.labels[indices],
            tuple(self.attributes[i] for i in indices),
            self.unseen[indices],
        )

    def digest(self) -> str:
        """SHA-256 over the content, whatever the files' encoding."""
        digest = hashlib.sha256(self.images.tobytes())
        text = [self.sample_ids.tolist(), self.captions, self.labels.tolist(), self.attributes, self.unseen.tolist()]
        digest.update(json.dumps([self.images.shape, *text]).encode())
        return digest.hexdigest()


@final
@dataclass(frozen=True)
class Dataset:
    """A finished data artifact.

    It holds no rows. `table` and `batches` read a stretch of them; `read` returns a whole split.
    """

    folder: Path
    info: DataInfo

    @staticmethod
    def open(folder: Path) -> Dataset:
        """Opens the artifact in this folder.

        Raises:
            MissingArtifact: the data stage has not finished there.
        """
        return Dataset(folder, DataInfo.load(folder))

    @cached_property
    def place(self) -> Place:
        """Where the parts are."""
        return Place(str(self.folder) if self.info.store is None else self.info.store)

    def read(self, split: SplitName, limit: int | None = None) -> Split:
        """Loads a split, or its first `limit` samples, into memory: all their pixels, decoded."""
        rows = self.info.num_samples(split)
        return decode(self.table(split, 0, rows if limit is None else min(limit, rows)), self.info.rows)

    def table(self, split: SplitName, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows start..stop-1 of a split; of each part only the row groups that hold some of them are in memory.

        Raises:
            InvalidData: a part is missing or damaged.
        """
        tables, offset = [], 0
        for part in self.info.parts[split]:
            if offset < stop and offset + part.rows > start:
                with self._opened(part) as file:
                    tables.append(_stretch(file, max(0, start - offset), min(part.rows, stop - offset), columns))
            offset += part.rows
        return pa.concat_tables(tables) if tables else SCHEMA.empty_table()

    def batches(self, split: SplitName, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows of a split in order, at most `ROWS_PER_GROUP` at a time.

        Raises:
            InvalidData: a part is missing or damaged.
        """
        for part in self.info.parts[split]:
            with self._opened(part) as file:
                yield from file.iter_batches(ROWS_PER_GROUP, columns=columns)

    @contextlib.contextmanager
    def _opened(self, part: Shard) -> Iterator[pq.ParquetFile]:
        try:
            with self.place.open(part.path) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
                if file.metadata.num_rows != part.rows:
                    raise InvalidData(
                        f"{self.place / part.path} has {file.metadata.num_rows} rows, wanted {part.rows}: {_REMEDY}"
                    )
                yield file
        except (OSError, pa.ArrowException) as error:
            raise InvalidData(
                f"cannot read {self.place / part.path} ({reason(error)}): check access to it; if it is lost or "
                f"damaged, {_REMEDY}"
            ) from None

    def combinations(self, split: Split) -> NDArray[np.int64]:
        """(n,) index of each sample's combination in `candidate_captions`.

        Without attributes: of its first caption, -1 where that is no candidate.
        """
        return self._combinations(split.captions, split.attributes)

    def all_combinations(self, name: SplitName) -> NDArray[np.int64]:
        """The same of all samples of a split; reads no picture, and holds 8 bytes a sample."""
        batches = self.batches(name, ["captions", "attributes"])
        found = (
            self._combinations(batch["captions"].to_pylist(), batch["attributes"].to_pylist()) for batch in batches
        )
        return np.concatenate([np.empty(0, np.int64), *found])

    def chunks(self, name: SplitName) -> Iterator[Split]:
        """All samples of a split in order, at most `ROWS_PER_GROUP` of them in memory.

        Raises:
            InvalidData: a part is missing or damaged.
        """
        return (decode(pa.Table.from_batches([batch]), self.info.rows) for batch in self.batches(name))

    def _combinations(
        self, captions: Iterable[Sequence[str]], attributes: Iterable[Sequence[str]]
    ) -> NDArray[np.int64]:
        if not self.info.attributes:
            index = {text: number for number, text in enumerate(self.info.candidate_captions)}
            return np.array([index.get(texts[0], -1) for texts in captions], np.int64)
        return np.array([self.info.combination(values) for values in attributes], np.int64)


def write_split(split: Split, folder: Path, name: SplitName, store: Place | None = None) -> tuple[Shard, ...]:
    """Writes samples that are in memory as the parts of a split.

    Args:
        split: the samples.
        folder: of the artifact.
        name: of the split.
        store: where finished parts go; None: they stay in the folder.

    Returns:
        The parts, in order.

    Raises:
        StorageUnwritable: the folder or the store is full or read-only.
    """
    shelf, parts = Shelf(folder, store), []
    for number, start in enumerate(range(0, len(split), ROWS_PER_PART)):
        path, stop = part_path(name, number), min(start + ROWS_PER_PART, len(split))
        with ShardWriter(folder, path, SCHEMA, name) as writer:
            for first in range(start, stop, ROWS_PER_GROUP):
                writer.write(_encode(split.rows(np.arange(first, min(first + ROWS_PER_GROUP, stop)))))
            parts.append(shelf.take(writer.finish()))
    return tuple(parts)


def part_path(split: SplitName, number: int) -> str:
    """The path of a part, relative to where the parts are."""
    return f"{split}/part-{number:06d}.parquet"


def _stretch(file: pq.ParquetFile, start: int, stop: int, columns: Sequence[str] | None) -> pa.Table:
    """Rows start..stop-1 of a Parquet file, decoding only the row groups that hold them."""
    first, groups, offset = None, [], 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if offset < stop and offset + rows > start:
            first = offset if first is None else first
            groups.append(group)
        offset += rows
    return file.read_row_groups(groups, columns=columns).slice(start - (first or 0), stop - start)


def decode(table: pa.Table, rows: RowType) -> Split:
    """The samples in rows of `SCHEMA`."""
    return Split(
        table["sample_id"].to_numpy(),
        np.stack([rows.decode(cell) for cell in table["image"].to_pylist()]),
        tuple(tuple(captions) for captions in table["captions"].to_pylist()),
        table["label"].to_numpy(),
        tuple(tuple(values) for values in table["attributes"].to_pylist()),
        table["unseen"].to_numpy(),
    )


def _encode(rows: Split) -> pa.Table:
    columns = {
        "sample_id": rows.sample_ids,
        "image": [encode_png(pixels) for pixels in rows.images],
        "captions": rows.captions,
        "label": rows.labels,
        "attributes": rows.attributes,
        "unseen": rows.unseen,
    }
    return pa.Table.from_pydict(columns, schema=SCHEMA)


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return {key: _frozen(item) for key, item in value.items()} if isinstance(value, dict) else value
