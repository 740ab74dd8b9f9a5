"""Data of any number of axes as a sequence of patches, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.errors import InvalidShape
from diffusion_core.networks.embedding import sinusoidal
from diffusion_core.types import Data


@final
class PatchGrid:
    """How `(b, c, *axes)` is cut: `(b, number of patches, c * volume of a patch)`.

    Args:
        shape: of one row, `(c, *axes)`.
        patch: length of a patch along each axis, or one for all.

    Raises:
        InvalidShape: no axis, another number of lengths, or a length that does not divide its axis.
    """

    def __init__(self, shape: Sequence[int], patch: int | Sequence[int]) -> None:
        self.shape = tuple(shape)
        axes = self.shape[1:]
        lengths = (patch,) * len(axes) if isinstance(patch, int) else tuple(patch)
        if not axes or len(lengths) != len(axes) or any(p < 1 or n % p for n, p in zip(axes, lengths, strict=True)):
            raise InvalidShape(f"found patch {patch} for data of shape {self.shape}: give one divisor for each axis")
        self.patch = lengths
        self.counts = tuple(n // p for n, p in zip(axes, lengths, strict=True))
        self.volume = math.prod(lengths)

    def split(self, x: Data) -> Float[Tensor, "b n d"]:
        """Cuts rows into patches.

        Raises:
            InvalidShape: rows of another shape.
        """
        check_shape(x, self.shape)
        sizes = [size for pair in zip(self.counts, self.patch, strict=True) for size in pair]
        order = [0, *range(2, 2 + len(sizes), 2), 1, *range(3, 3 + len(sizes), 2)]
        return x.reshape(len(x), self.shape[0], *sizes).permute(order).flatten(1, len(self.patch)).flatten(2)

    def join(self, patches: Float[Tensor, "b n d"]) -> Data:
        """The inverse of `split`, for any number of channels."""
        rank, channels = len(self.patch), patches.shape[2] // self.volume
        grid = patches.reshape(len(patches), *self.counts, channels, *self.patch)
        order = [0, rank + 1, *(i for axis in range(rank) for i in (1 + axis, rank + 2 + axis))]
        axes = [n * p for n, p in zip(self.counts, self.patch, strict=True)]
        return grid.permute(order).reshape(len(patches), channels, *axes)


@final
class PatchEmbedding(nn.Module):
    """Patches as vectors, with a learned position for each axis.

    Args:
        grid: how data is cut.
        width: of the vectors.
    """

    def __init__(self, grid: PatchGrid, width: int) -> None:
        super().__init__()
        self.grid = grid
        self.project = nn.Linear(grid.shape[0] * grid.volume, width)
        # Each axis starts with sinusoids in columns of its own: their sum tells the axes apart from the start.
        columns = torch.arange(width).chunk(len(grid.counts))
        tables = [torch.zeros(count, width) for count in grid.counts]
        for table, own in zip(tables, columns, strict=False):
            table[:, own] = sinusoidal(torch.arange(len(table), dtype=torch.float32), len(own), longest=100.0)
        self.positions = nn.ParameterList(tables)

    def forward(self, x: Data) -> Float[Tensor, "b n w"]:
        """`(b, c, *axes)` to `(b, n, width)`."""
        embedded = self.project(self.grid.split(x)).unflatten(1, self.grid.counts)
        for axis, table in enumerate(self.positions):
            embedded = embedded + table.reshape(-1, *(1,) * (len(self.grid.counts) - 1 - axis), table.shape[1])
        return cast(Tensor, embedded.flatten(1, -2))


@final
class VectorEmbedding(nn.Module):
    """A vector as a sequence of one element.

    Args:
        channels: of a row `(c,)`.
        width: of the element.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(channels, width)

    def forward(self, x: Data) -> Float[Tensor, "b 1 w"]:
        """`(b, c)` to `(b, 1, width)`."""
        check_shape(x, (self.project.in_features,))
        return cast(Tensor, self.project(x))[:, None]


def check_shape(x: Data, shape: Sequence[int]) -> None:
    """Refuses rows of another shape.

    Raises:
        InvalidShape: says both.
    """
    if tuple(x.shape[1:]) != tuple(shape):
        raise InvalidShape(f"found rows of shape {tuple(x.shape[1:])}, this network was made for {tuple(shape)}")
