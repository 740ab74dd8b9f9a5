"""How a latent is stored, and how training draws from it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from diffusion_core import noise
from diffusion_core.types import Data

POSTERIOR_STREAM: Final = 18
"""Of the draws of latents; those of a training row's wording and order come before it."""
FLIP_STREAM: Final = 19
_BYTES: Final = 4


@final
@dataclass(frozen=True)
class LatentFormat:
    """How latents are stored.

    Attributes:
        autoencoder: hash of what encodes.
        shape: (z, h, w) of a latent.
        flips: whether those of mirrored pictures are stored too.
    """

    autoencoder: str
    shape: tuple[int, int, int]
    flips: bool = False

    def describe(self) -> dict[str, Any]:
        """As plain values, for the manifest and the cache's key."""
        return asdict(self) | {"shape": list(self.shape)}

    @staticmethod
    def of(values: dict[str, Any]) -> LatentFormat:
        """The inverse of `describe`."""
        return LatentFormat(**(values | {"shape": tuple(values["shape"])}))

    @property
    def stored(self) -> tuple[int, ...]:
        """Shape of a stored row: mean, deviation, and both of the mirrored picture, one after the other."""
        z, *sides = self.shape
        return ((4 if self.flips else 2) * z, *sides)

    @property
    def row_bytes(self) -> int:
        """Of a stored row."""
        return math.prod(self.stored) * _BYTES

    def mean(self, stored: Tensor) -> Data:
        """The mean of each row's posterior."""
        return stored[:, : self.shape[0]]

    def draw(self, stored: Tensor, seed: int, numbers: Tensor) -> Data:
        """A draw of each row's posterior, of the picture or, where chance says so, of the mirrored one.

        Args:
            stored: rows `(b, *self.stored)`.
            seed: of the run.
            numbers: of the rows in the run, `(b,)`; the draw depends on seed and number alone.
        """
        parts = stored.unflatten(1, (-1, self.shape[0]))
        if self.flips:
            mirrored = noise.uniform(seed, FLIP_STREAM, numbers, ()).to(stored.device) < 0.5
            parts = torch.where(mirrored.view(-1, 1, 1, 1, 1), parts[:, 2:], parts[:, :2])
        mean, deviation = parts.unbind(dim=1)
        drawn: Tensor = mean + deviation * noise.normal(seed, POSTERIOR_STREAM, numbers, self.shape, stored.device)
        return drawn
