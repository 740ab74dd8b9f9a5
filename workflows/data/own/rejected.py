"""The records that were refused, or kept with a change, each with its reason: `rejected.parquet`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from workflows.config.schema import DataConfig
from workflows.errors import InvalidData

REJECTED: Final = pa.schema({"name": pa.string(), "kept": pa.bool_(), "reason": pa.string()})
REJECTED_FILE: Final = "rejected.parquet"
_SHOWN: Final = 3


def rejected_path(path: str) -> str:
    """Where the rejects of a piece lie."""
    return path.replace(".parquet", ".rejected.parquet")


def join_rejected(pieces: Iterable[Path], path: Path) -> None:
    """Joins the rejects of pieces in order; those of one piece are in memory."""
    with pq.ParquetWriter(path, REJECTED) as writer:
        for piece in pieces:
            writer.write_table(pq.ParquetFile(piece.with_name(rejected_path(piece.name))).read().cast(REJECTED))


def check_share(config: DataConfig, usable: int, refused: int, rejected: Path) -> None:
    """Stops an import of which too little can be used.

    Raises:
        InvalidData: there are no records, none that can be used, or too many that cannot.
    """
    total = refused + usable
    if total == 0:
        raise InvalidData(f"no records in {config.path}: check data.path and data.source")
    if not usable or refused / total > config.max_bad_fraction:
        raise InvalidData(
            f"{refused} of {total} records in {config.path} cannot be used, more than data.max_bad_fraction "
            f"{config.max_bad_fraction:g} (all are in {rejected}; {'; '.join(_examples(rejected))})"
        )


def _examples(rejected: Path) -> list[str]:
    """The first records that cannot be used."""
    found: list[str] = []
    for batch in pq.ParquetFile(rejected).iter_batches():
        bad = batch.filter(pc.invert(batch["kept"])).slice(0, _SHOWN).to_pylist()
        found += [f"{row['name']}: {row['reason']}" for row in bad]
        if len(found) >= _SHOWN:
            break
    return found[:_SHOWN]
