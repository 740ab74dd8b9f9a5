"""Nearest training pictures: does a model draw, or remember?

A copy has one training picture that is far nearer than the next ones. A new picture has several that are about equally
near, and so does a picture that is simply plain. So a picture is judged by

    closeness = d_1 / mean(d_2 .. d_k)

with d_i the distance to its i-th nearest training picture: near 0 for a copy, near 1 for a new picture. What honest
pictures have is measured on held-out pictures, and where these are few also on training pictures that are left out.

References:
    Carlini et al., Extracting Training Data from Diffusion Models (2023), section 4.2: the same ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from workflows.data.dataset import Dataset
from workflows.evaluate.metrics.estimate import Estimate, Floats, mean_of
from workflows.evaluate.pictures import Column, draw_grid
from workflows.evaluate.real import at, pages, some

_SHOWN: Final = 8
_NEAREST: Final = 20
_SIDE: Final = 32
_COPY_QUANTILE: Final = 0.01
_CLOSE: Final = 0.6
"""A copy is at least so much closer than honest pictures usually are."""
_LEAST: Final = 8
_HONEST: Final = 200
"""Real pictures that say what is honest."""
COPIES_ALLOWED: Final = 0.05
"""Share of copies above which a model is said to remember: honest pictures have `_COPY_QUANTILE`."""


@final
@dataclass(frozen=True)
class Neighbours:
    """The nearest training pictures of each drawn one, in root mean square of the pixels in [0, 1].

    Pictures with more than 32 pixels a side are compared at about that size.

    Attributes:
        index: (n,) place of the nearest in the training split.
        distance: (n,) to it.
        closeness: (n,) that distance over the mean distance of the next ones.
        distance_real: (m,) of held-out pictures.
        closeness_real: (m,) of honest pictures: held-out ones, and where they are few training ones that are left out.
        compared: training pictures that were compared with.
        num_train: of all training pictures.
    """

    index: NDArray[np.int64]
    distance: Floats
    closeness: Floats
    distance_real: Floats
    closeness_real: Floats
    compared: int
    num_train: int

    @property
    def known(self) -> bool:
        """Whether there are enough honest pictures to say what is close."""
        return len(self.closeness_real) >= _LEAST

    @property
    def copies(self) -> Floats:
        """(n,) 1 for each drawn picture that is closer to one training picture than 99 % of honest ones, by far.

        All are 0 where that is not known.
        """
        honest = self.closeness_real
        if not self.known:
            return np.zeros(len(self.closeness))
        close = min(float(np.quantile(honest, _COPY_QUANTILE)), _CLOSE * float(np.median(honest)))
        return (self.closeness < close).astype(np.float64)

    @property
    def share_of_copies(self) -> Estimate:
        """Share of copies among the drawn pictures; about 0.01 is honest."""
        return mean_of(self.copies)

    @property
    def remembers(self) -> bool:
        """Whether the model copies its training pictures, beyond doubt."""
        return self.share_of_copies.low > COPIES_ALLOWED

    def figures(self) -> dict[str, Any]:
        """The figures as plain values."""
        return {
            "median_distance": float(np.median(self.distance)),
            "median_distance_held_out": float(np.median(self.distance_real)),
            "median_closeness": float(np.median(self.closeness)),
            "median_closeness_honest": float(np.median(self.closeness_real)) if len(self.closeness_real) else None,
            "share_of_copies": self.share_of_copies.value,
            "remembers": self.remembers,
            "compared_with": self.compared,
        }


def find_neighbours(images: NDArray[Any], dataset: Dataset, most: int) -> Neighbours:
    """Finds them, reading training pictures page by page.

    Memory: a page of pictures, and for each drawn or real picture its nearest distances.

    Args:
        images: drawn ones, (n, c, h, w), or vectors (n, d).
        dataset: of the training.
        most: training pictures that are compared with at most; a copy of any other is not seen.
    """
    held_out = some(dataset, "held_out", _HONEST).images
    missing = _HONEST - len(held_out)
    left_out = some(dataset, "train", missing).images if missing > 0 else held_out[:0]
    search = _Search(np.concatenate([images, held_out, left_out]))
    for start, page in pages(dataset, "train", most):
        search.look(start, page.images)
    n, m = len(images), len(held_out)
    itself = np.arange(len(search.distance)) >= n + m
    closeness = search.closeness(itself)
    return Neighbours(
        search.place[:n],
        search.distance[:n, 0],
        closeness[:n],
        search.distance[n : n + m, 0],
        closeness[n:][np.isfinite(closeness[n:])],
        search.seen,
        dataset.info.num_train,
    )


class _Search:
    """The nearest distances of some pictures among all that they are shown."""

    def __init__(self, images: NDArray[Any]) -> None:
        self._x = _small(images)
        self.distance = np.full((len(images), _NEAREST + 1), np.inf)
        self.place = np.zeros(len(images), np.int64)
        self.seen = 0

    def look(self, start: int, images: NDArray[Any]) -> None:
        """Compares with some more, whose first one has this place."""
        found = torch.cdist(self._x, _small(images)).double().numpy() / np.sqrt(self._x.shape[1])
        first = found.argmin(axis=1)
        least = found[np.arange(len(found)), first]
        nearer = least < self.distance[:, 0]
        self.place[nearer] = first[nearer] + start
        both = np.concatenate([self.distance, found], axis=1)
        self.distance = np.sort(both, axis=1)[:, : _NEAREST + 1]
        self.seen += len(images)

    def closeness(self, itself: NDArray[np.bool_]) -> Floats:
        """(n,) d_1 / mean(d_2 ..); pictures that were shown themselves leave that one out.

        With a single picture to compare with there is no next one, and the closeness is infinite.
        """
        rows = np.where(itself[:, None], np.roll(self.distance, -1, axis=1), self.distance)[:, :_NEAREST]
        later = np.where(np.isfinite(rows[:, 1:]), rows[:, 1:], np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            count = np.isfinite(later).sum(axis=1)
            mean = np.nansum(later, axis=1) / np.maximum(count, 1)
            ratio = rows[:, 0] / np.maximum(mean, 1e-12)
        return np.where((count > 0) & np.isfinite(rows[:, 0]), ratio, np.inf)


def draw_neighbours(path: Path, found: Neighbours, images: NDArray[np.uint8], dataset: Dataset) -> None:
    """Shows the drawn pictures that are closest to one training picture, each beside it."""
    order = np.argsort(found.closeness, kind="stable")[:_SHOWN]
    train = at(dataset, "train", [int(found.index[row]) for row in order])
    columns = [Column("drawn", images[order]), Column("nearest in\ntraining", train.images)]
    labels = [f"distance {found.distance[row]:.3f}, {found.closeness[row]:.2f} of the next ones'" for row in order]
    draw_grid(path, labels, columns, "the most suspicious pictures")


def _small(images: NDArray[Any]) -> Tensor:
    """(n, numbers) pixels in [0, 1], of pictures that are made no larger than about `_SIDE` a side; vectors as is."""
    sides = images.shape[2:]  # vectors have none
    x = torch.from_numpy(np.ascontiguousarray(images)).float() / (255.0 if sides else 1.0)
    factor = max(sides, default=0) // _SIDE
    if len(x) and factor > 1:
        x = functional.avg_pool2d(x, factor)
    return x.flatten(1)
