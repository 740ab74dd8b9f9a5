"""The energy distance of resampled rows, from distances that are computed once: fast enough for a bootstrap."""

from __future__ import annotations

from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist


@final
class Energy:
    """`2 E|x - y| - E|x - x'| - E|y - y'|` of rows x of a set of drawn ones, and all real ones y.

    Pairs of a row with itself are left out, also where a resample holds it twice, so it is that of
    `diffusion_core.oracle.energy_distance` where each row is taken once. Memory: `n x n` and `n x m` distances.

    Args:
        drawn: (n, d).
        real: (m, d), at least two.
    """

    def __init__(self, drawn: NDArray[Any], real: NDArray[Any]) -> None:
        self._between = cdist(drawn, real).mean(axis=1)
        self._drawn = cdist(drawn, drawn)
        self._real = cdist(real, real).sum() / max(1, len(real) * (len(real) - 1))

    def of(self, rows: NDArray[np.int64]) -> float:
        """Of the drawn rows in these places."""
        count = np.bincount(rows, minlength=len(self._drawn)).astype(np.float64)
        pairs = len(rows) ** 2 - (count**2).sum()
        within = count @ self._drawn @ count / max(pairs, 1.0)
        return float(2.0 * (count @ self._between) / len(rows) - within - self._real)
