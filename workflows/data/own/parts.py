"""The last passes of an import: training samples are measured, and pieces become the parts of the two splits.

Each piece gives at most one part of either split. Its rows are those of the piece, in order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from workflows.data.dataset import SCHEMA, SPLITS, SplitName, part_path
from workflows.data.intake import Intake
from workflows.data.own.joining import Joiner
from workflows.data.own.pieces import piece_batches
from workflows.data.rows import RowType
from workflows.data.scale import Moments
from workflows.data.split import RankSplit
from workflows.storage.shards import Shard, ShardWriter
from workflows.storage.shelf import Shelf


@final
@dataclass(frozen=True)
class PieceMeasurer:
    """Measures the training samples of pieces; a stateless function for Ray Data's `map`.

    Attributes:
        folder: of the pieces.
        split: which samples are held out.
        intake: of the records.
    """

    folder: Path
    split: RankSplit
    intake: Intake

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Moments of the training samples of one work item (`path`, `number`), as plain values."""
        width = len(self.intake.columns)
        found = Moments.of(np.empty((0, width), np.float32))
        for batch in piece_batches(self.folder / item["path"], ["image", "digest"]):
            chosen = np.flatnonzero(~self.split.held_out(batch["digest"].to_pylist()))
            if len(chosen):
                found += self.intake.measure(batch["image"].take(pa.array(chosen)).to_pylist())
        return {"number": item["number"], "count": found.count, "mean": found.mean, "square": found.square}


@final
@dataclass(frozen=True)
class PartWriter:
    """Writes the parts of both splits from pieces; a stateless function for Ray Data's `flat_map`.

    In memory are `ROWS_AT_ONCE` samples, as encoded pictures.

    Attributes:
        folder: of the pieces.
        shelf: takes the parts.
        split: which samples are held out.
        class_names: names of the labels.
        rows: the type of the samples.
    """

    folder: Path
    shelf: Shelf
    split: RankSplit
    class_names: tuple[str, ...]
    rows: RowType

    def __call__(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        """Writes the parts of one work item, unless an earlier run has; one without samples is not written.

        Args:
            item: `path` and `sha256` of the piece, its `number`, the number `first` of its first sample, what `Joins`
                says of it, and `stored`: names in the store, by split.

        Returns:
            The fields of `Shard` of each part, with `split` and `number`.

        Raises:
            StorageUnwritable: the folder or the store is full or read-only.
        """
        found = self._finished(item)
        if sum(shard.rows for shard in found.values()) != item["kept"]:
            found = self._write(item)
        return [asdict(shard) | {"split": split, "number": item["number"]} for split, shard in found.items()]

    def _finished(self, item: dict[str, Any]) -> dict[SplitName, Shard]:
        found = {
            split: self.shelf.find_one(part_path(split, item["number"]), self._key(item, split), item["stored"][split])
            for split in SPLITS
        }
        return {split: shard for split, shard in found.items() if shard is not None}

    def _write(self, item: dict[str, Any]) -> dict[SplitName, Shard]:
        with ExitStack() as stack:
            writers: dict[SplitName, ShardWriter] = {}
            for split, table in self._tables(item):
                if split not in writers:
                    path, key = part_path(split, item["number"]), self._key(item, split)
                    writers[split] = stack.enter_context(ShardWriter(self.shelf.folder, path, SCHEMA, key))
                writers[split].write(table)
            return {split: self.shelf.take(writer.finish()) for split, writer in writers.items()}

    def _tables(self, item: dict[str, Any]) -> Iterator[tuple[SplitName, pa.Table]]:
        joiner, sample, row = Joiner(item, self.folder), item["first"], 0
        for batch in piece_batches(self.folder / item["path"]):
            held_out, kept = self.split.held_out(batch["digest"].to_pylist()), joiner.kept(row, batch.num_rows)
            ids = sample + np.cumsum(kept) - 1
            captions = [joiner.captions(row + number, own) for number, own in enumerate(batch["captions"].to_pylist())]
            for split, chosen in zip(SPLITS, (kept & ~held_out, kept & held_out), strict=True):
                if chosen.any():
                    yield split, self._stored(batch, np.flatnonzero(chosen), ids[chosen], captions)
            sample, row = sample + int(kept.sum()), row + batch.num_rows

    def _stored(
        self, batch: pa.RecordBatch, chosen: NDArray[np.int64], ids: NDArray[np.int64], captions: list[list[str]]
    ) -> pa.Table:
        """The chosen samples as rows of `SCHEMA`; ids count all samples in order."""
        index = {name: number for number, name in enumerate(self.class_names)}
        picked = batch.take(pa.array(chosen))
        labels = picked["label"].to_pylist()
        columns = {
            "sample_id": pa.array(ids, pa.int64()),
            "image": pa.array(self.rows.store(picked["image"].to_pylist()), pa.binary()),
            "captions": pa.array([captions[row] for row in chosen], pa.list_(pa.string())),
            "label": pa.array([index.get(label, -1) for label in labels], pa.int64()),
            "attributes": pa.array([[label] if index else [] for label in labels], pa.list_(pa.string())),
            "unseen": pa.array([False] * len(chosen), pa.bool_()),
        }
        return pa.table(columns, schema=SCHEMA)

    def _key(self, item: dict[str, Any], split: SplitName) -> str:
        """SHA-256 over all that determines the bytes of a part."""
        joins = [item["drop"], item["more"], item["more_sha256"]]
        rule = [self.split.seed, self.split.last, self.class_names, repr(self.rows), joins]
        return hashlib.sha256(json.dumps([split, item["sha256"], item["first"], *rule]).encode()).hexdigest()
