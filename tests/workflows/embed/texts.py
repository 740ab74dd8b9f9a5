"""Captions of a cache as text, whether they are encoded there or not."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from workflows.embed.row_reader import RowReader
from workflows.storage.mapped import MappedShard


def texts_at(reader: RowReader, positions: Tensor) -> list[str]:
    """The text of captions by their position, normalised."""
    found = [""] * len(positions)
    for visit, column in reader.visit("captions", positions, _texts):
        for place, row in zip(visit.places, visit.rows, strict=True):
            found[place] = column[int(row)].as_py()
    return found


def _texts(shard: MappedShard, name: str) -> Any:
    return shard.column("caption")
