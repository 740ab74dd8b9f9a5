"""Real samples to compare with: a bounded number, from all over a split.

Up to a bound the whole split is read, beyond it short stretches at even distances. A page of at most `PAGE` samples is
in memory at a time, whatever the size of the split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from workflows.data.dataset import SCHEMA, Dataset, Split, SplitName, decode

PAGE: Final = 1024
"""Samples of a page."""
MOST: Final = 8192
"""Samples that an evaluation reads of a split at most, where it holds them or their captions in memory."""
_STRETCH: Final = 64


def stretches(rows: int, most: int) -> list[tuple[int, int]]:
    """First and last place (exclusive) of each page that is read: all rows, or about `most` of them, evenly spread."""
    if rows <= most:
        return [(start, min(start + PAGE, rows)) for start in range(0, rows, PAGE)]
    size = min(_STRETCH, most)
    starts = np.linspace(0, rows - size, most // size).astype(np.int64)
    return [(int(start), int(start) + size) for start in starts]


def pages(dataset: Dataset, name: SplitName, most: int) -> Iterator[tuple[int, Split]]:
    """At most about `most` samples of a split, page by page, each with the place of its first sample.

    Raises:
        InvalidData: a part is missing or damaged.
    """
    for start, stop in stretches(dataset.info.num_samples(name), most):
        yield start, decode(dataset.table(name, start, stop), dataset.info.rows)


def some(dataset: Dataset, name: SplitName, most: int = MOST) -> Split:
    """At most `most` samples of a split in memory, with their pixels."""
    return decode(_table(dataset, name, most), dataset.info.rows)


def some_captions(dataset: Dataset, name: SplitName, most: int = MOST) -> list[list[str]]:
    """The captions of these samples; reads no picture."""
    found: list[list[str]] = _table(dataset, name, most, ["captions"])["captions"].to_pylist()
    return found


def at(dataset: Dataset, name: SplitName, places: Sequence[int]) -> Split:
    """The samples at these places; holds one row group besides."""
    tables = [dataset.table(name, place, place + 1) for place in places]
    return decode(pa.concat_tables(tables), dataset.info.rows)


def _table(dataset: Dataset, name: SplitName, most: int, columns: Sequence[str] | None = None) -> pa.Table:
    parts = stretches(dataset.info.num_samples(name), most)
    tables = [dataset.table(name, start, stop, columns) for start, stop in parts]
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()
