"""The data stage for a user's own captioned images: three passes of Ray Data over the pieces of the input.

    1. Records are checked and decoded, and each piece becomes a file (`pieces`).
    2. Of vectors, the training samples are measured (`parts`).
    3. Pieces become parts of the two splits, in the artifact's folder or in `data.store` (`parts`).

Tasks read and write all rows. The driver decodes no picture, and reads no column of them. It holds at most 50 bytes for
each row, between the first pass and the second: a rank and a key of 8 bytes each, twice while they are sorted, their
order, and marks. After that it holds 50 bytes for each row that is joined to another (`joining`), 1 for others.
Beside these it holds about a kilobyte for each piece, the names of the classes, and some 100,000 captions at most
(`counts`). The list of a folder with a file for each picture (`folder`, `sidecar`) is held in addition.

The pieces and the split depend on the input alone, so any number of workers writes the same bytes. An import that was
killed goes on with the pieces and parts that are missing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from workflows.config.schema import DataConfig
from workflows.data.dataset import SPLITS, DataInfo, part_path
from workflows.data.intake import Intake
from workflows.data.own.counts import CaptionCounts, counts_path
from workflows.data.own.joining import Joins
from workflows.data.own.opening import Opened
from workflows.data.own.parts import PartWriter, PieceMeasurer
from workflows.data.own.pieces import Imported, PieceImporter
from workflows.data.own.rejected import REJECTED_FILE, check_share, join_rejected
from workflows.data.rows import RowType
from workflows.data.scale import Moments
from workflows.data.sources import Piece
from workflows.data.split import RankSplit
from workflows.errors import InvalidData
from workflows.runtime.progress import Progress
from workflows.runtime.ray_pass import run_pass
from workflows.storage.atomic import remove_partial
from workflows.storage.shards import Shard
from workflows.storage.shelf import Shelf

_PIECES: Final = "parts"
_FEW: Final = 10
_BLOCKS_PER_CPU: Final = 16
"""Few enough for the driver, and enough for processes that end at about the same time."""


def import_own(config: DataConfig, folder: Path, progress: Progress) -> tuple[DataInfo, dict[str, int]]:
    """Imports `data.path` and writes the parts of both splits, `rejected.parquet` and `data.json`.

    Args:
        config: source, path, columns, sizes, limits and store.
        folder: of the artifact; pieces and parts that an earlier run has made there are kept.
        progress: told about finished pieces, then about samples in parts.

    Returns:
        What was written, and how many records were refused (`num_rejected`) and joined to another (`num_joined`).

    Raises:
        InvalidData: nothing usable, too much of it broken, files of another format, or a store that cannot be read.
        StorageUnwritable: the folder or the store is full or read-only.
    """
    opened = Opened.of(config)
    if mixture := opened.mixture():
        progress.log(mixture)
    intake = opened.rules.intake
    importer = PieceImporter(
        opened.source, opened.location, opened.columns, opened.rules, folder / _PIECES, config.seed
    )
    remove_partial(folder)
    imported, ranks, joins = _import(importer, _items(importer, opened.pieces), progress)
    refused = sum(piece.refused for piece in imported)
    join_rejected((importer.folder / piece.path for piece in imported if piece.remarks), folder / REJECTED_FILE)
    check_share(config, len(ranks), refused, folder / REJECTED_FILE)
    plan = _Plan.of(config, imported, ranks, joins)
    del ranks
    _tell(config, plan, refused, progress, folder / REJECTED_FILE)
    rows = intake.rows(_measure(plan, importer.folder, intake, progress) if intake.measured else None)
    info = _write_parts(config, opened.source, plan, rows, importer.folder, progress)
    info.save(folder)
    _remove_the_rest(folder, info)
    return info, {"num_rejected": refused, "num_joined": len(joins)}


def _tell(config: DataConfig, plan: _Plan, refused: int, progress: Progress, rejected: Path) -> None:
    """Says what of the data is not used, or not as it is."""
    if refused:
        progress.log(f"{refused} records refused, each with its reason in {rejected}")
    if changed := sum(piece.remarks - piece.refused for piece in plan.imported):
        progress.log(f"{changed} remarks on records that are used with a change are in {rejected}")
    if plan.joins:
        progress.log(f"{len(plan.joins)} records name a picture that another names too: it has the captions of all")
    rows = sum(piece.rows for piece in plan.imported)
    missing = sum(piece.unlabelled for piece in plan.imported)
    if 0 < missing < rows:
        progress.log(
            f"{missing} of {rows} records have no label, so no label is used (data.label_missing={config.label_missing}"
            "; refuse leaves those records out instead)"
        )
    if plan.num_held_out < _FEW:
        progress.log(
            f"only {plan.num_held_out} of {rows} samples are held out: figures that compare with held-out data "
            "(validation loss, FID, retrieval) say little"
        )


def _items(importer: PieceImporter, pieces: list[Piece]) -> list[dict[str, Any]]:
    """Work items for Ray Data; a piece's key changes with the files, the piece and the rules."""
    base = json.dumps([importer.source, importer.location.stamp(), repr(importer.columns), repr(importer.rules)])
    return [
        {"piece": json.dumps(piece), "path": f"part-{number:06d}.parquet", "key": _key(base, piece)}
        for number, piece in enumerate(pieces)
    ]


def _key(base: str, piece: Piece) -> str:
    return hashlib.sha256(f"{base}\n{json.dumps(piece)}".encode("utf-8", "replace")).hexdigest()


def _import(
    importer: PieceImporter, items: list[dict[str, Any]], progress: Progress
) -> tuple[list[Imported], NDArray[np.uint64], Joins]:
    """The summary of each piece, in order, the ranks of all samples, in ascending order, and which rows are joined."""
    found: dict[str, Imported] = {}
    ranks: dict[str, bytes] = {}
    keys: dict[str, bytes] = {}
    progress.start(len(items), "pieces")
    for row in run_pass(items, lambda rows: rows.map(importer), _BLOCKS_PER_CPU):
        ranks[row["path"]], keys[row["path"]] = row.pop("ranks"), row.pop("keys")
        found[row["path"]] = Imported(**row)
        progress.advance(len(found))
    paths = [item["path"] for item in items]
    joins = Joins.of(_joined(keys, paths), wanted=importer.rules.joins)
    in_order = _joined(ranks, paths)[joins.kept()]
    in_order.sort()
    return [found[path] for path in paths], in_order, joins


def _joined(found: dict[str, bytes], paths: list[str]) -> NDArray[np.uint64]:
    """Eight bytes for each row, in order of the pieces; what `found` held is dropped."""
    whole = b"".join(found.pop(path) for path in paths)
    return np.frombuffer(whole, np.uint64)


@final
@dataclass(frozen=True)
class _Plan:
    """The inputs that the second pass needs for each piece.

    Attributes:
        imported: pieces, in order.
        split: which samples are held out.
        num_train: samples to train on.
        num_held_out: the others.
        joins: rows that are joined to another.
    """

    imported: list[Imported]
    split: RankSplit
    num_train: int
    num_held_out: int
    joins: Joins

    @staticmethod
    def of(config: DataConfig, imported: list[Imported], ranks: NDArray[np.uint64], joins: Joins) -> _Plan:
        split = RankSplit.of(ranks, config.held_out, config.seed)
        num_held_out = split.count(ranks)
        num_train = len(ranks) - num_held_out
        if not num_train or not num_held_out:
            raise InvalidData(
                f"{num_train} samples to train on and {num_held_out} held out: set data.held_out between 0 and 1, and "
                "give at least two pictures that differ"
            )
        return _Plan(imported, split, num_train, num_held_out, joins)

    def items(self) -> list[dict[str, Any]]:
        """Work items for Ray Data: the pieces that have samples."""
        rows, paths = [piece.rows for piece in self.imported], [piece.path for piece in self.imported]
        hashes = {piece.path: piece.sha256 for piece in self.imported}
        found, first = [], 0
        for number, (piece, joins) in enumerate(zip(self.imported, self.joins.items(rows, paths), strict=True)):
            if piece.rows:
                item = {"path": piece.path, "sha256": piece.sha256, "number": number, "first": first}
                found.append(item | joins | {"more_sha256": [hashes[path] for path in joins["more_paths"]]})
            first += joins["kept"]
        return found

    def data_hash(self, rows: RowType) -> str:
        """SHA-256 over pixels, captions, labels and split."""
        content = "".join(piece.content for piece in self.imported if piece.rows)
        content += f"{self.split}{rows.shape}{rows.scale or ''}"
        joined = self.joins.followers.tobytes() + self.joins.leaders.tobytes()
        content += hashlib.sha256(joined).hexdigest() if joined else ""
        return hashlib.sha256(content.encode()).hexdigest()


def _measure(plan: _Plan, folder: Path, intake: Intake, progress: Progress) -> Moments:
    """Moments of all training samples; those of the pieces are added in order."""
    items, measure = plan.items(), PieceMeasurer(folder, plan.split, intake)
    found: dict[int, Moments] = {}
    progress.start(len(items), "pieces measured")
    for row in run_pass(items, lambda rows: rows.map(measure), _BLOCKS_PER_CPU):
        found[row["number"]] = Moments(row["count"], np.array(row["mean"]), np.array(row["square"]))
        progress.advance(len(found))
    first, *others = (found[number] for number in sorted(found))
    return sum(others, start=first)


def _write_parts(
    config: DataConfig, source: str, plan: _Plan, rows: RowType, folder: Path, progress: Progress
) -> DataInfo:
    counts = CaptionCounts()
    for item in plan.items():
        counts.merge(pq.ParquetFile(folder / counts_path(item["path"])).read())
    names, data_hash = counts.class_names(), plan.data_hash(rows)
    shelf = Shelf.of(folder.parent, config.store, data_hash)
    write = PartWriter(folder, shelf, plan.split, names, rows)
    return DataInfo(
        source=source,
        shape=rows.shape,
        class_names=names,
        attributes={"label": names} if names else {},
        num_train=plan.num_train,
        num_held_out=plan.num_held_out,
        data_hash=data_hash,
        candidate_captions=counts.candidates(),
        unseen_combinations=(),
        parts=_parts(plan, write, progress),
        scale=rows.scale,
        store=None if shelf.store is None else shelf.store.url,
    )


def _parts(plan: _Plan, write: PartWriter, progress: Progress) -> dict[str, tuple[Shard, ...]]:
    """Writes the parts of both splits; returns them in order."""
    stored, done = write.shelf.stored(), 0
    items = [
        item | {"stored": {split: stored.get(part_path(split, item["number"]), []) for split in SPLITS}}
        for item in plan.items()
    ]
    found: dict[str, dict[int, Shard]] = {split: {} for split in SPLITS}
    progress.start(plan.num_train + plan.num_held_out, "samples")
    for row in run_pass(items, lambda rows: rows.flat_map(write), _BLOCKS_PER_CPU):
        split, number = row.pop("split"), row.pop("number")
        found[split][number] = Shard(**row)
        done += row["rows"]
        progress.advance(done)
    return {split: tuple(parts[number] for number in sorted(parts)) for split, parts in found.items()}


def _remove_the_rest(folder: Path, info: DataInfo) -> None:
    """Removes pieces, and parts that an earlier run has made of other input."""
    wanted = {folder / part.path for parts in info.parts.values() for part in parts}
    for path in (path for split in SPLITS for path in (folder / split).glob("*.parquet")):
        if path not in wanted:
            path.unlink()
    shutil.rmtree(folder / _PIECES)
