"""A piece of a user's data: its records are checked and decoded, and what can be used is written to a file.

The file is in Parquet, and later runs find it again, so an import that was killed goes on with the missing pieces.
Beside it lie the records that were refused, or kept with a change, each with its reason, and how often captions occur.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from workflows.data.intake import Intake
from workflows.data.own.counts import CaptionCounts, counts_path
from workflows.data.own.joining import KEY_BYTES, join_key
from workflows.data.own.records import Rules, Usable, as_unicode, use
from workflows.data.own.rejected import REJECTED, rejected_path
from workflows.data.sources import records_of
from workflows.data.sources.location import Location
from workflows.data.sources.record import Columns, Record
from workflows.data.split import ranks
from workflows.errors import InvalidData
from workflows.storage.shards import Shard, ShardWriter, find_shard, write_shard

PIECE: Final = pa.schema(
    {
        "name": pa.string(),
        "image": pa.binary(),
        "captions": pa.list_(pa.string()),
        "label": pa.string(),
        "digest": pa.binary(16),
        "key": pa.binary(KEY_BYTES),
    }
)
ROWS_AT_ONCE: Final = 512
"""So many rows of a piece are in memory at once; a tar file may give many thousands."""
_LONGEST_NAME: Final = 500


@final
@dataclass(frozen=True)
class Imported:
    """The summary of a finished piece, which the driver keeps.

    Attributes:
        path: of its file, relative to the folder of pieces.
        rows: usable records.
        sha256: of the file.
        content: SHA-256 over pixels, captions and labels.
        refused: records that cannot be used.
        remarks: what there is to say about records: rows of the rejects.
        unlabelled: usable records without a label.
    """

    path: str
    rows: int
    sha256: str
    content: str
    refused: int
    remarks: int
    unlabelled: int


@final
@dataclass(frozen=True)
class PieceImporter:
    """Imports the pieces of work items; a stateless function for Ray Data's `map`.

    In memory are `ROWS_AT_ONCE` pictures of a piece, and the remarks about all of its records.

    Attributes:
        source: name of the format.
        location: of the data.
        columns: of the source.
        rules: for every record.
        folder: where the files of pieces go.
        seed: of the split.
    """

    source: str
    location: Location
    columns: Columns
    rules: Rules
    folder: Path
    seed: int

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Writes the files of one work item (`piece`, `path`, `key`), unless an earlier run has.

        Returns:
            The fields of `Imported`, and `ranks` and `keys`: 8 bytes each for every usable record.

        Raises:
            InvalidData: a file that cannot be read at all.
            StorageUnwritable: the folder is full or read-only.
        """
        shard = self._finished(item) or self._write(item)
        rejects = pq.ParquetFile(self.folder / rejected_path(shard.path)).read()
        kept = int(pc.sum(rejects["kept"]).as_py() or 0)
        remarks = {"refused": rejects.num_rows - kept, "remarks": rejects.num_rows}
        written = {"path": shard.path, "rows": shard.rows, "sha256": shard.sha256}
        return written | remarks | self._summary(shard, item["key"])

    def _finished(self, item: dict[str, Any]) -> Shard | None:
        if find_shard(self.folder, rejected_path(item["path"]), item["key"]) is None:
            return None
        return find_shard(self.folder, item["path"], item["key"])

    def _write(self, item: dict[str, Any]) -> Shard:
        rejected: list[dict[str, Any]] = []
        with ShardWriter(self.folder, item["path"], PIECE, item["key"]) as writer:
            accepted = _accepted(self._records(json.loads(item["piece"])), self.rules, rejected)
            while rows := list(islice(accepted, ROWS_AT_ONCE)):
                writer.write(pa.Table.from_pylist(rows, schema=PIECE))
            # This file comes last: a later run takes it as the sign that both are whole.
            rejects = pa.Table.from_pylist(rejected, schema=REJECTED)
            write_shard(self.folder, rejected_path(item["path"]), rejects, item["key"])
            return writer.finish()

    def _summary(self, shard: Shard, key: str) -> dict[str, Any]:
        """Reads all but the pictures of a piece, and writes how often its captions occur."""
        content, counts, found, keys, unlabelled = hashlib.sha256(), CaptionCounts(), [], [], 0
        for batch in piece_batches(self.folder / shard.path, ["captions", "label", "digest", "key"]):
            captions, labels, digests, joined = (column.to_pylist() for column in batch.columns)
            unlabelled += labels.count(None)
            keys += joined
            for texts, label, digest in zip(captions, labels, digests, strict=True):
                content.update(json.dumps([texts, label]).encode() + digest)
                counts.add(label, texts[0])
            found.append(ranks(digests, self.seed).tobytes())
        write_shard(self.folder, counts_path(shard.path), counts.table(), key)
        return {
            "content": content.hexdigest(),
            "ranks": b"".join(found),
            "keys": b"".join(keys),
            "unlabelled": unlabelled,
        }

    def _records(self, piece: dict[str, Any]) -> Iterator[Record]:
        return records_of(self.source, self.location, piece, self.columns)


def _accepted(records: Iterable[Record], rules: Rules, rejected: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Records that can be used, as rows of `PIECE`; what there is to say about others goes to `rejected`."""
    for record in records:
        try:
            usable = use(record, rules)
        except InvalidData as error:
            rejected.append(_remark(record, str(error), kept=False))
            continue
        rejected.extend(_remark(record, change, kept=True) for change in usable.changes)
        yield _row(usable, rules.intake)


def piece_batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a finished piece in order, `ROWS_AT_ONCE` at a time."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        yield from file.iter_batches(ROWS_AT_ONCE, columns=columns)


def _row(usable: Usable, intake: Intake) -> dict[str, Any]:
    return {
        "name": as_unicode(usable.record.name),
        "image": intake.encode(usable.row),
        "captions": list(usable.captions),
        "label": usable.record.label,
        "digest": hashlib.sha256(usable.row.tobytes()).digest()[:16],
        "key": join_key(usable.record.image, usable.record.label),
    }


def _remark(record: Record, reason: str, *, kept: bool) -> dict[str, Any]:
    return {"name": as_unicode(record.name)[:_LONGEST_NAME], "kept": kept, "reason": as_unicode(reason)}
