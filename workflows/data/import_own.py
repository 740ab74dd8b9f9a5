"""The data stage for a user's own captioned images: parts by Ray Data, then two splits in order.

The pieces and the split depend on the input alone: a picture is held out by the rank of its hash, so equal
pictures land on the same side, and a few new samples move few old ones.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from workflows.config.schema import DataConfig
from workflows.data.dataset import SCHEMA, SPLITS, DataInfo, part_path
from workflows.data.intake import Intake
from workflows.data.own import REJECTED, PieceImporter, columns_of, rejected_path, rules_of
from workflows.data.rows import RowType
from workflows.data.sources import SOURCES, Piece, detect
from workflows.data.sources.location import Location
from workflows.errors import InvalidData
from workflows.runtime.progress import Progress
from workflows.runtime.ray_pass import run_pass
from workflows.storage.atomic import remove_partial
from workflows.storage.shards import Shard, ShardWriter, find_shard

REJECTED_FILE: Final = "rejected.parquet"
_PARTS: Final = "parts"
_MAX_CANDIDATES: Final = 256
_SHOWN: Final = 3
_LEAST_CLASSES: Final = 2
_ROWS_AT_ONCE: Final = 512


def import_own(config: DataConfig, folder: Path, progress: Progress) -> tuple[DataInfo, int]:
    """Imports `data.path` and writes `train.parquet`, `held_out.parquet`, `rejected.parquet` and `data.json`.

    Args:
        config: source, path, columns, sizes and limits.
        folder: of the artifact; parts that an earlier run has made there are kept.
        progress: told about finished pieces.

    Returns:
        What was written, and how many records were refused.

    Raises:
        InvalidData: nothing usable, too much of it broken, or files of another format.
        StorageUnwritable: the folder is full or read-only.
    """
    location = Location(config.path or "")
    source = detect(location) if config.source == "auto" else config.source
    columns = columns_of(config)
    pieces = list(SOURCES[source].pieces(location, columns))
    intake = SOURCES[source].intake.of(config, pieces)
    importer = PieceImporter(source, location, columns, rules_of(config, intake), folder / _PARTS)
    items = _items(importer, pieces)
    remove_partial(folder)
    shards = {item["path"]: found for item in items if (found := _finished(importer.folder, item))}
    progress.start(len(items), "pieces")
    progress.advance(len(shards))
    missing = [item for item in items if item["path"] not in shards]
    for row in run_pass(missing, lambda rows: rows.map(importer)):
        shards[row["path"]] = Shard(**row)
        progress.advance(len(shards))
    parts = [importer.folder / item["path"] for item in items]
    num_rejected = _write_rejected(parts, folder / REJECTED_FILE)
    summary = _Summary.of(parts)
    _check_share(config, summary, num_rejected, folder / REJECTED_FILE)
    info = _write_splits(config, source, parts, summary, folder, intake)
    shutil.rmtree(importer.folder)
    if num_rejected:
        progress.log(f"{num_rejected} records refused, each with its reason in {folder / REJECTED_FILE}")
    return info, num_rejected


def _items(importer: PieceImporter, pieces: list[Piece]) -> list[dict[str, Any]]:
    """Work items for Ray Data; a part's key changes with the files, the piece and the rules."""
    base = json.dumps([importer.source, importer.location.stamp(), repr(importer.columns), repr(importer.rules)])
    return [
        {"piece": piece, "path": f"part-{number:06d}.parquet", "key": _key(base, piece)}
        for number, piece in enumerate(pieces)
    ]


def _key(base: str, piece: Piece) -> str:
    return hashlib.sha256(f"{base}\n{json.dumps(piece)}".encode("utf-8", "replace")).hexdigest()


def _finished(folder: Path, item: dict[str, Any]) -> Shard | None:
    if find_shard(folder, rejected_path(item["path"]), item["key"]) is None:
        return None
    return find_shard(folder, item["path"], item["key"])


@final
@dataclass(frozen=True)
class _Summary:
    """What the parts hold, without their pictures.

    Attributes:
        digests: (n,) 16 bytes each, of the pixels.
        class_names: labels in order; none where a sample has none, or all have the same.
        captions: how often each first caption occurs, by label.
        content: hash over all parts, in order.
    """

    digests: NDArray[np.void]
    class_names: tuple[str, ...]
    captions: dict[str | None, Counter[str]]
    content: str

    @staticmethod
    def of(parts: list[Path]) -> _Summary:
        digests: list[bytes] = []
        captions: defaultdict[str | None, Counter[str]] = defaultdict(Counter)
        content = hashlib.sha256()
        for part in parts:
            for batch in pq.ParquetFile(part).iter_batches(columns=["captions", "label", "digest"]):
                rows = batch.to_pydict()
                digests.extend(rows["digest"])
                content.update(json.dumps([rows["captions"], rows["label"]]).encode() + b"".join(rows["digest"]))
                for label, texts in zip(rows["label"], rows["captions"], strict=True):
                    captions[label][texts[0]] += 1
        names = (
            ()
            if None in captions or len(captions) < _LEAST_CLASSES
            else tuple(sorted((str(name) for name in captions), key=_natural))
        )
        return _Summary(np.array(digests, "V16"), names, dict(captions), content.hexdigest())

    def held_out(self, fraction: float, seed: int) -> NDArray[np.bool_]:
        """(n,) bool: the share of distinct pictures whose hash with the seed ranks lowest."""
        distinct, index = np.unique(self.digests, return_inverse=True)
        ranks = [hashlib.sha256(f"{seed}".encode() + bytes(value)).digest() for value in distinct]
        chosen = np.zeros(len(distinct), np.bool_)
        chosen[sorted(range(len(ranks)), key=ranks.__getitem__)[: round(fraction * len(ranks))]] = True
        kept_out: NDArray[np.bool_] = chosen[index]
        return kept_out

    def candidates(self) -> tuple[str, ...]:
        """A caption for each class, its most frequent one; without classes, the most frequent captions of all."""
        if not self.class_names:
            total: Counter[str] = sum(self.captions.values(), Counter())
            return tuple(sorted(total, key=lambda text: (-total[text], text))[:_MAX_CANDIDATES])
        found: list[str] = []
        for name in self.class_names:
            counts = self.captions[name]
            best = min(counts, key=lambda text: (-counts[text], text))
            found.append(name if best in found else best)
        return tuple(found)


def _natural(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)


def _write_rejected(parts: list[Path], path: Path) -> int:
    """Joins the rejects in order; returns how many records were refused."""
    refused = 0
    with pq.ParquetWriter(path, REJECTED) as writer:
        for part in parts:
            table = pq.read_table(part.with_name(rejected_path(part.name))).cast(REJECTED)
            refused += table.num_rows - int(pc.sum(table["kept"]).as_py() or 0)
            writer.write_table(table)
    return refused


def _check_share(config: DataConfig, summary: _Summary, refused: int, rejected: Path) -> None:
    total = refused + len(summary.digests)
    if total == 0:
        raise InvalidData(f"no records in {config.path}: check data.path and data.source")
    if not len(summary.digests) or refused / total > config.max_bad_fraction:
        table = pq.read_table(rejected)
        bad = table.filter(pc.invert(table["kept"])).slice(0, _SHOWN).to_pylist()
        shown = "; ".join(f"{row['name']}: {row['reason']}" for row in bad)
        raise InvalidData(
            f"{refused} of {total} records in {config.path} cannot be used, more than data.max_bad_fraction "
            f"{config.max_bad_fraction:g} (all are in {rejected}; {shown})"
        )


def _write_splits(
    config: DataConfig, source: str, parts: list[Path], summary: _Summary, folder: Path, intake: Intake
) -> DataInfo:
    held_out = summary.held_out(config.held_out, config.seed)
    rows = intake.rows(table["image"].to_pylist() for table in _chosen(parts, ~held_out, ()))
    written: dict[str, tuple[Shard, ...]] = {}
    for split, chosen in zip(SPLITS, (~held_out, held_out), strict=True):
        with ShardWriter(folder, part_path(split, 0), SCHEMA, split) as writer:
            for table in _chosen(parts, chosen, summary.class_names):
                writer.write(_stored(table, rows))
            written[split] = (writer.finish(),)
    content = f"{summary.content}{np.packbits(held_out).tobytes().hex()}{rows.shape}{rows.scale or ''}"
    info = DataInfo(
        source=source,
        shape=rows.shape,
        class_names=summary.class_names,
        attributes={"label": summary.class_names} if summary.class_names else {},
        num_train=int((~held_out).sum()),
        num_held_out=int(held_out.sum()),
        data_hash=hashlib.sha256(content.encode()).hexdigest(),
        candidate_captions=summary.candidates(),
        unseen_combinations=(),
        parts=written,
        scale=rows.scale,
    )
    if not info.num_train or not info.num_held_out:
        raise InvalidData(
            f"{info.num_train} samples to train on and {info.num_held_out} held out: set data.held_out between 0 and 1"
        )
    info.save(folder)
    return info


def _stored(table: pa.Table, rows: RowType) -> pa.Table:
    """Raw samples as they are stored."""
    cells = pa.array(rows.store(table["image"].to_pylist()), pa.binary())
    return table.set_column(table.schema.get_field_index("image"), SCHEMA.field("image"), cells)


def _chosen(parts: list[Path], chosen: NDArray[np.bool_], class_names: tuple[str, ...]) -> Iterator[pa.Table]:
    """The chosen samples of the parts as rows of `SCHEMA`; ids count all samples in order."""
    index = {name: number for number, name in enumerate(class_names)}
    start = 0
    for batch in (batch for part in parts for batch in pq.ParquetFile(part).iter_batches(_ROWS_AT_ONCE)):
        rows = np.flatnonzero(chosen[start : start + batch.num_rows])
        picked = batch.take(pa.array(rows))
        labels = picked["label"].to_pylist()
        columns = {
            "sample_id": pa.array(rows + start, pa.int64()),
            "image": picked["image"],
            "captions": picked["captions"],
            "label": pa.array([index.get(label, -1) for label in labels], pa.int64()),
            "attributes": pa.array([[label] if index else [] for label in labels], pa.list_(pa.string())),
            "unseen": pa.array([False] * len(rows), pa.bool_()),
        }
        start += batch.num_rows
        if len(rows):
            yield pa.table(columns, schema=SCHEMA)
