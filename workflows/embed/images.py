"""One shard of images: decoded pictures beside the ids of their captions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import pyarrow as pa

from workflows.data.dataset import Dataset, Split, decode
from workflows.data.rows import RowType
from workflows.embed.manifest import caption_id
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
        encoder: key of the text tower.
    """

    dataset: Dataset
    shelf: Shelf
    rows: RowType
    encoder: str

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Writes the shard of one work item (`split`, `start`, `stop`, `path`, `key`).

        Raises:
            InvalidData: a row of another shape.
            StorageUnwritable: the folder or the store is full or read-only.
        """
        samples = read_samples(self.dataset, item, self.rows)
        return asdict(self.shelf.write(item["path"], image_table(samples, self.encoder), item["key"]))


def read_samples(dataset: Dataset, item: dict[str, Any], rows: RowType) -> Split:
    """The samples of one work item, decoded.

    Raises:
        InvalidData: a row of another shape.
    """
    samples = decode(dataset.table(item["split"], item["start"], item["stop"]), rows)
    if samples.images.shape[1:] != rows.shape:
        raise InvalidData(f"{rows.name} of shape {samples.images.shape[1:]} in {item['path']}, wanted {rows.shape}")
    return samples


def image_table(rows: Split, encoder: str) -> pa.Table:
    """The rows of an image shard."""
    ids = {text: caption_id(encoder, text) for text in set(itertools.chain.from_iterable(rows.captions))}
    return pa.table(
        {
            "sample_id": pa.array(rows.sample_ids, pa.int64()),
            "image": pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(rows.images)),
            "caption_ids": pa.array([[ids[text] for text in texts] for texts in rows.captions], pa.list_(pa.string())),
            "label": pa.array(rows.labels, pa.int64()),
            "attributes": _strings(rows.attributes),
            "unseen": pa.array(rows.unseen, pa.bool_()),
        }
    )


def _strings(values: Sequence[Sequence[str]]) -> pa.Array:
    return pa.array([list(row) for row in values], pa.list_(pa.string()))
