"""A sample of the numbers in Parquet files, from which their usual range is found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from workflows.data.sources import table
from workflows.data.sources.location import Location
from workflows.errors import InvalidData

_PIECES: Final = 64
_ROWS: Final = 512


def sampled(location: Location, pieces: Sequence[dict[str, Any]], columns: Sequence[str]) -> NDArray[np.float64]:
    """Up to 512 rows of each of up to 64 pieces, spread evenly: (n, d), a cell without a number is NaN."""
    readable = [piece for piece in pieces if "columns" in piece]
    every = -(-len(readable) // _PIECES) or 1
    found = [_rows(location, piece, columns) for piece in readable[::every]]
    return np.concatenate([np.empty((0, len(columns))), *found])


def _rows(location: Location, piece: dict[str, Any], columns: Sequence[str]) -> NDArray[np.float64]:
    try:
        batch = table.first_rows(location, piece, columns, _ROWS)
    except InvalidData:
        return np.empty((0, len(columns)))
    cells = [[np.nan if cell is None else float(cell) for cell in batch[name]] for name in columns]
    return np.array(cells, np.float64).T.reshape(-1, len(columns))
