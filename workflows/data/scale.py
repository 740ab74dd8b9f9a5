"""What the numbers of vectors mean: names, and the mean and deviation that they are normalised by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from workflows.errors import InvalidData

_REACH: Final = 1e4
"""Interquartile ranges: those of a log-normal column with a deviation of 2 reach to half of it in a million rows."""


@final
@dataclass(frozen=True)
class Moments:
    """Moments of raw rows, column by column, in float64; those of two sets of rows add up to those of both.

        mean = mean_a + d n_b / n,  square = square_a + square_b + d^2 n_a n_b / n  with  d = mean_b - mean_a

    Rounding depends on the order of the sum, so it is always formed in the order of the rows.

    Source: T. Chan, G. Golub, R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
    1979.

    Attributes:
        count: rows.
        mean: (d,) of them; 0 of no rows.
        square: (d,) sum of squared distances from the mean.
    """

    count: int
    mean: NDArray[np.float64]
    square: NDArray[np.float64]

    @staticmethod
    def of(raw: NDArray[Any]) -> Moments:
        """Measures raw rows of shape (n, d)."""
        rows = raw.astype(np.float64)
        mean = rows.mean(0) if len(rows) else np.zeros(rows.shape[1])
        return Moments(len(rows), mean, ((rows - mean) ** 2).sum(0))

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        away, share = other.mean - self.mean, other.count / count
        square = self.square + other.square + away**2 * self.count * share
        return Moments(count, self.mean + away * share, square)


@final
@dataclass(frozen=True)
class Limits:
    """The numbers of each column that are taken for true: within 10,000 interquartile ranges of the median.

    A column of which most numbers are equal has no limits.

    Attributes:
        low: (d,) least of each column.
        high: (d,) largest of each.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    @staticmethod
    def of(rows: NDArray[np.float64]) -> Limits | None:
        """Limits from a sample of rows, (n, d); those with a number that is not finite count for nothing."""
        finite = rows[np.isfinite(rows).all(1)] if len(rows) else rows
        if not len(finite):
            return None
        first, median, third = np.quantile(finite, [0.25, 0.5, 0.75], axis=0)
        reach = np.where(third > first, _REACH * (third - first), np.inf)
        return Limits(tuple((median - reach).tolist()), tuple((median + reach).tolist()))

    def check(self, numbers: NDArray[Any], columns: Sequence[str]) -> None:
        """Refuses a row with an outlier, which would leave nothing of the other numbers once they are normalised.

        Raises:
            InvalidData: its column and number.
        """
        wrong = np.flatnonzero((numbers < np.array(self.low)) | (numbers > np.array(self.high)))
        if len(wrong):
            place = int(wrong[0])
            raise InvalidData(
                f"an outlier: {columns[place]} is {numbers[place]:.6g}, and nearly all others lie between "
                f"{self.low[place]:.6g} and {self.high[place]:.6g}: mend it, or leave the column out of "
                "data.vector_columns"
            )


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
    def fit(columns: tuple[str, ...], moments: Moments) -> VectorScale:
        """The scale of rows with these moments."""
        if not moments.count:
            return VectorScale.unit(columns)
        std = np.sqrt(moments.square / moments.count)
        constant = std <= np.finfo(np.float32).eps * np.abs(moments.mean)
        return VectorScale(columns, tuple(moments.mean.tolist()), tuple(np.where(constant, 1.0, std).tolist()))

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
