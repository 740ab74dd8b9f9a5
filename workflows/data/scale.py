"""What the numbers of vectors mean: names, and the mean and deviation that they are normalised by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray


@final
@dataclass(frozen=True)
class VectorScale:
    """`x = (raw - mean) / std`, column by column.

    Attributes:
        columns: names, in order.
        mean: of the training samples.
        std: of them; 1 where a column is constant.
    """

    columns: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def unit(columns: Sequence[str]) -> VectorScale:
        """Leaves numbers as they are."""
        return VectorScale(tuple(columns), (0.0,) * len(columns), (1.0,) * len(columns))

    @staticmethod
    def fit(columns: tuple[str, ...], parts: Iterable[NDArray[np.float32]]) -> VectorScale:
        """Measures raw rows, given in parts of shape (n, d)."""
        count, total, square = 0, np.zeros(len(columns)), np.zeros(len(columns))
        shift: NDArray[np.float64] | None = None
        for part in parts:
            if not len(part):
                continue
            # Moments about a first row: of a column with a large mean and a small spread little is left otherwise.
            shift = part[0].astype(np.float64) if shift is None else shift
            away = part.astype(np.float64) - shift
            count, total, square = count + len(part), total + away.sum(0), square + (away**2).sum(0)
        if shift is None:
            return VectorScale.unit(columns)
        mean = total / count
        std = np.sqrt(np.maximum(square / count - mean**2, 0.0))
        constant = std <= np.finfo(np.float32).eps * np.abs(shift + mean)
        return VectorScale(
            columns, tuple((shift + mean).tolist()), tuple(np.where(constant | (std == 0), 1.0, std).tolist())
        )

    @staticmethod
    def of(values: Mapping[str, Any] | None) -> VectorScale | None:
        """From plain values, as JSON gives them."""
        return None if values is None else VectorScale(**{name: tuple(value) for name, value in values.items()})

    def normalised(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """(n, d) numbers as a network sees them."""
        found: NDArray[np.float32] = ((raw - np.array(self.mean)) / np.array(self.std)).astype(np.float32)
        return found

    def raw(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """The inverse of `normalised`."""
        found: NDArray[np.float64] = x.astype(np.float64) * np.array(self.std) + np.array(self.mean)
        return found
