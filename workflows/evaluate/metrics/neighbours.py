"""Nearest training pictures: does a model draw, or remember?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import numpy as np
import torch
from numpy.typing import NDArray

from workflows.evaluate.pictures import Column, draw_grid

_SHOWN: Final = 8
_AT_ONCE: Final = 256
_COPY_QUANTILE: Final = 0.01


@final
@dataclass(frozen=True)
class Neighbours:
    """The nearest training picture of each drawn one, in root mean square of the pixels in [0, 1].

    Attributes:
        index: (n,) into the training pictures.
        distance: (n,).
        distance_real: (m,) of held-out pictures: what honest pictures have.
    """

    index: NDArray[np.int64]
    distance: NDArray[np.float64]
    distance_real: NDArray[np.float64]

    @property
    def share_of_copies(self) -> float:
        """Share of drawn pictures nearer to a training picture than 99 % of the held-out ones; 0.01 is honest."""
        return float((self.distance < np.quantile(self.distance_real, _COPY_QUANTILE)).mean())


def nearest(images: NDArray[np.uint8], train: NDArray[np.uint8], held_out: NDArray[np.uint8]) -> Neighbours:
    """Finds them.

    Args:
        images: drawn ones, (n, c, h, w).
        train: (k, c, h, w).
        held_out: real ones that no model was trained on, (m, c, h, w).
    """
    index, distance = _nearest(images, train)
    return Neighbours(index, distance, _nearest(held_out, train)[1])


def draw_neighbours(path: Path, found: Neighbours, images: NDArray[np.uint8], train: NDArray[np.uint8]) -> None:
    """Shows the drawn pictures that are nearest to a training picture, each beside it."""
    order = np.argsort(found.distance, kind="stable")[:_SHOWN]
    columns = [Column("drawn", images[order]), Column("nearest in\ntraining", train[found.index[order]])]
    labels = [f"rms distance {found.distance[row]:.3f}" for row in order]
    draw_grid(path, labels, columns, "the most suspicious pictures")


def _nearest(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    there = _flat(others)
    parts = [torch.cdist(_flat(part), there).min(dim=1) for part in _chunks(images)]
    index, distance = torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])
    return index.numpy(), distance.double().numpy() / np.sqrt(there.shape[1])


def _chunks(images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [images[start : start + _AT_ONCE] for start in range(0, len(images), _AT_ONCE)]


def _flat(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images).flatten(1).float() / 255.0
