"""A figure with the interval in which it would lie if other pictures had been drawn: the percentile bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
RESAMPLES: Final = 200
CONFIDENCE: Final = 0.95


@final
@dataclass(frozen=True)
class Estimate:
    """A figure, and the ends of its interval.

    Attributes:
        value: of the pictures that were drawn.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float


def bounds(found: Floats, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The ends of the middle part of resampled figures."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(found, (tail, 1.0 - tail))
    return float(low), float(high)


def resampled_rows(count: int, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.int64]:
    """Rows of each resample, `(resamples, count)`: drawn with replacement."""
    return np.random.default_rng(seed).integers(0, count, (resamples, count))


def mean_of(values: Floats) -> Estimate:
    """The mean of a figure of each picture, `(n,)`."""
    found = values[resampled_rows(len(values))].mean(axis=1)
    return Estimate(float(values.mean()), *bounds(found))


def estimate(value: float, figure: Callable[[NDArray[np.int64]], float], count: int) -> Estimate:
    """A figure of all pictures together.

    Args:
        value: of the pictures themselves.
        figure: of a resample, given by its rows.
        count: of pictures.

    Returns:
        The interval is moved so that its middle is the value: a distance of resampled pictures, of which some are
        equal, is larger than that of the pictures themselves.
    """
    found = np.array([figure(rows) for rows in resampled_rows(count)])
    low, high = bounds(found - np.median(found) + value)
    return Estimate(value, min(low, value), max(high, value))


def plain(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """The values by name, and under `intervals` the ends of each."""
    ends = {name: {"low": found.low, "high": found.high} for name, found in estimates.items()}
    return {name: found.value for name, found in estimates.items()} | {"intervals": ends}
