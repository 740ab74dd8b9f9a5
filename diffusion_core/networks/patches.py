"""Data of any number of axes as a sequence of patches, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, Literal, TypeAlias, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from diffusion_core.errors import InvalidShape
from diffusion_core.networks.convolution import convolution, num_groups
from diffusion_core.networks.embedding import sinusoidal
from diffusion_core.types import Data

Stem: TypeAlias = Literal["linear", "convolution"]
"""What makes a vector of a patch: `linear`, a map of its values, or `convolution`, see `ConvolutionStem`."""

_KERNEL: Final = 5


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
        self.positions = position_tables(grid.counts, width)

    def forward(self, x: Data) -> Float[Tensor, "b n w"]:
        """`(b, c, *axes)` to `(b, n, width)`."""
        return with_positions(self.project(self.grid.split(x)), self.positions)


@final
class ConvolutionStem(nn.Module):
    """As `PatchEmbedding`, by convolutions that overlap: each halves every axis, the last has `width` channels.

    Edges are found wherever they lie, which a linear map of patches must learn for each place in the patch.

    Args:
        grid: how many vectors there are: patches of 2^k along every axis, k being the number of convolutions.
        width: of the vectors; a convolution before has half the channels of the one after it.

    Raises:
        InvalidShape: patches of other sides, more than three axes, or a width that cannot be halved that often.

    References:
        Xiao et al., Early Convolutions Help Transformers See Better (2021).
    """

    def __init__(self, grid: PatchGrid, width: int) -> None:
        super().__init__()
        side, rank = grid.patch[0], len(grid.patch)
        count = side.bit_length() - 1
        if side < 2 or set(grid.patch) != {2**count} or rank > 3:
            raise InvalidShape(f"a convolution stem has patches of 2, 4, 8, ... along one to three axes: {grid.patch}")
        channels = [grid.shape[0], *(width >> (count - 1 - place) for place in range(count))]
        if width % 2 ** (count - 1):
            raise InvalidShape(f"width {width} cannot be halved {count - 1} times: a stem of patch {side} needs that")
        self.grid = grid
        pairs = list(pairwise(channels))
        self.convolutions = nn.ModuleList(convolution(rank, a, b, size=_KERNEL, stride=2) for a, b in pairs)
        self.norms = nn.ModuleList(nn.GroupNorm(num_groups(wanted), wanted) for wanted in channels[1:])
        self.positions = position_tables(grid.counts, width)

    def forward(self, x: Data) -> Float[Tensor, "b n w"]:
        """`(b, c, *axes)` to `(b, n, width)`."""
        check_shape(x, self.grid.shape)
        for place, (convolve, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = norm(convolve(x if place == 0 else functional.silu(x)))
        return with_positions(x.flatten(2).transpose(1, 2), self.positions)


def patch_embedding(grid: PatchGrid, width: int, stem: Stem) -> PatchEmbedding | ConvolutionStem:
    """The stem of that name."""
    return PatchEmbedding(grid, width) if stem == "linear" else ConvolutionStem(grid, width)


def position_tables(counts: Sequence[int], width: int) -> nn.ParameterList:
    """A table `(count, width)` per axis.

    Each starts with sinusoids in columns of its own: their sum tells the axes apart from the start.
    """
    columns = torch.arange(width).chunk(len(counts))
    tables = [torch.zeros(count, width) for count in counts]
    for table, own in zip(tables, columns, strict=False):
        table[:, own] = sinusoidal(torch.arange(len(table), dtype=torch.float32), len(own), longest=100.0)
    return nn.ParameterList(tables)


def with_positions(vectors: Float[Tensor, "b n w"], tables: nn.ParameterList) -> Float[Tensor, "b n w"]:
    """Adds to each vector of the grid its entry in the table of every axis."""
    placed = vectors.unflatten(1, [len(table) for table in tables])
    for axis, table in enumerate(tables):
        placed = placed + table.reshape(-1, *(1,) * (len(tables) - 1 - axis), table.shape[1])
    return cast(Tensor, placed.flatten(1, -2))


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
