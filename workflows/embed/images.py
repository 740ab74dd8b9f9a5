"""One shard of images: decoded pictures beside the positions of their captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from workflows.data.dataset import Dataset, Split, decode
from workflows.data.rows import RowType
from workflows.embed.checksums import image_checks, sample_checks
from workflows.errors import InvalidData
from workflows.storage.shelf import Shelf


@final
@dataclass(frozen=True)
class ImageShardWriter:
    """Makes a shard from a range of rows of a split; a stateless function for Ray Data's `map`.

    Attributes:
        dataset: the samples.
        shelf: for the shards.
        rows: the type that every sample must have.
    """

    dataset: Dataset
    shelf: Shelf
    rows: RowType

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Writes the shard of one work item (`split`, `start`, `stop`, `captions`, `path`, `key`).

        Raises:
            InvalidData: a row of another shape.
            StorageUnwritable: the folder or the store is full or read-only.
        """
        samples = read_samples(self.dataset, item, self.rows)
        table = image_table(samples, np.frombuffer(item["captions"], np.int32))
        return asdict(self.shelf.write(item["path"], table, item["key"]))


def read_samples(dataset: Dataset, item: dict[str, Any], rows: RowType) -> Split:
    """The samples of one work item, decoded.

    Raises:
        InvalidData: a row of another shape.
    """
    samples = decode(dataset.table(item["split"], item["start"], item["stop"]), rows)
    if samples.images.shape[1:] != rows.shape:
        raise InvalidData(f"{rows.name} of shape {samples.images.shape[1:]} in {item['path']}, wanted {rows.shape}")
    return samples


def image_table(rows: Split, captions: NDArray[np.int32], images: NDArray[Any] | None = None) -> pa.Table:
    """The rows of an image shard.

    Args:
        rows: the samples.
        captions: positions of their captions in the cache, row after row.
        images: as they are stored, such as latents; None: as the samples have them.
    """
    stored = np.ascontiguousarray(rows.images if images is None else images)
    ends = np.cumsum([len(texts) for texts in rows.captions])
    checks = sample_checks(rows.sample_ids, rows.labels, np.split(captions, ends[:-1]))
    return pa.table(
        {
            "sample_id": pa.array(rows.sample_ids, pa.int64()),
            "image": pa.FixedShapeTensorArray.from_numpy_ndarray(stored),
            "captions": pa.ListArray.from_arrays(np.concatenate([[0], ends]).astype(np.int32), pa.array(captions)),
            "label": pa.array(rows.labels, pa.int64()),
            "attributes": _strings(rows.attributes),
            "unseen": pa.array(rows.unseen, pa.bool_()),
            "image_check": pa.array(image_checks(stored)),
            "check": pa.array(checks),
        }
    )


def _strings(values: Sequence[Sequence[str]]) -> pa.Array:
    return pa.array([list(row) for row in values], pa.list_(pa.string()))
