"""The types of rows that a model learns and draws: pictures, and vectors of numbers.

A row has three forms, and its type leads from one to the next and back:

    raw      as the user has it: pictures; numbers in their own units
    stored   as Parquet and the cache hold it: uint8 pixels (PNG in Parquet); float32 numbers, normalised
    x        as networks see it: pixels in [-1, 1]; the stored numbers

`DataInfo.rows`, `PackageCard.rows` and `EmbeddingCache.rows` make the type from what is on disk. Other code asks the
type, and compares neither shapes nor scales. A third type of row, such as sequences of tokens, takes

    1. a class in this module with all that `RowType` lists, and a line in `rows_of`; where the shape alone does not
       tell it from the others, also a field in `data.json`, `package.json` and `manifest.json`;
    2. an `Intake` (`workflows.data.intake`), and a source whose records it reads (`workflows.data.sources`);
    3. a network for it (`workflows.options.networks`) and an evaluation (`workflows.evaluate.stage`), each an entry of
       a table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, final

import numpy as np
from numpy.typing import NDArray

from workflows.data.png import decode_png, encode_png
from workflows.data.scale import VectorScale

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_core.types import Data

_DEVIATIONS: Final = 2.0
"""Deviations from the mean that make a cell three quarters white or black."""


class RowType(Protocol):
    """What the code around a model asks about its rows.

    Attributes:
        name: in messages, and in the tables that hold what differs from type to type.
        bound: of |x0| while sampling; 0: there is none.
        drawable: whether a row is a picture, which the service, the gate and the grids of a training run show.
        usage: a line of Python that keeps what `predict` returns, with a place for the call.
        dtype: of a stored row in memory.
    """

    name: ClassVar[str]
    bound: ClassVar[float]
    drawable: ClassVar[bool]
    usage: ClassVar[str]
    dtype: ClassVar[np.dtype[Any]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a row: (c, h, w) of a picture, (d,) of a vector."""
        ...

    @property
    def scale(self) -> VectorScale | None:
        """What `data.json` and `package.json` hold beside the shape."""
        ...

    @property
    def description(self) -> str:
        """A plural noun that says what the rows are."""
        ...

    @property
    def outputs(self) -> Mapping[str, str]:
        """Columns of what a registered model's `predict` returns, with the type that MLflow gives each."""
        ...

    def store(self, cells: Sequence[bytes]) -> Sequence[bytes]:
        """Cells of Parquet with raw rows, as cells with stored rows."""
        ...

    def decode(self, cell: bytes) -> NDArray[Any]:
        """The stored row in a cell of Parquet."""
        ...

    def to_x(self, stored: Tensor) -> Data:
        """Stored rows `(b, *shape)` as networks see them, in float32."""
        ...

    def from_x(self, x: Data) -> Tensor:
        """The inverse of `to_x`, on the CPU."""
        ...

    def table(self, stored: NDArray[Any]) -> dict[str, Any]:
        """The columns `outputs` of stored rows `(n, *shape)`: raw numbers, or PNG files."""
        ...

    def side(self, patch: int) -> int:
        """Pixels of a side of the pictures for which an image tower with this patch is trained."""
        ...

    def seen(self, x: Data, size: tuple[int, int]) -> Tensor:
        """Rows `(b, *shape)` as pictures in [-1, 1] for an image tower, which it may still resize to `size`."""
        ...


@final
@dataclass(frozen=True)
class Pictures:
    """Rows are pictures of one shape (c, h, w), with one or three channels; see `RowType`."""

    name: ClassVar[str] = "pictures"
    bound: ClassVar[float] = 1.0
    drawable: ClassVar[bool] = True
    usage: ClassVar[str] = 'png = {}["image"][0]'
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.uint8)

    shape: tuple[int, ...]

    @property
    def scale(self) -> None:
        """See `RowType.scale`."""
        return None

    @property
    def description(self) -> str:
        """See `RowType.description`."""
        return f"{' x '.join(str(size) for size in self.shape)} pictures"

    @property
    def outputs(self) -> Mapping[str, str]:
        """See `RowType.outputs`."""
        return {"image": "binary"}

    def store(self, cells: Sequence[bytes]) -> Sequence[bytes]:
        """See `RowType.store`; the raw cells are PNG files of this shape already."""
        return cells

    def decode(self, cell: bytes) -> NDArray[np.uint8]:
        """See `RowType.decode`."""
        return decode_png(cell)

    def to_x(self, stored: Tensor) -> Data:
        """See `RowType.to_x`."""
        from workflows.data.pixels import to_data

        return to_data(stored)

    def from_x(self, x: Data) -> Tensor:
        """See `RowType.from_x`; what is outside [-1, 1] is cut off."""
        from workflows.data.pixels import to_pixels

        return to_pixels(x).cpu()

    def table(self, stored: NDArray[np.uint8]) -> dict[str, Any]:
        """See `RowType.table`."""
        return {"image": [encode_png(pixels) for pixels in stored]}

    def side(self, patch: int) -> int:  # noqa: ARG002 - a picture has its own
        """See `RowType.side`."""
        return self.shape[-1]

    def seen(self, x: Data, size: tuple[int, int]) -> Tensor:  # noqa: ARG002 - the tower resizes pictures
        """See `RowType.seen`."""
        return x


@final
@dataclass(frozen=True)
class Vectors:
    """Rows are d named numbers, normalised column by column; see `RowType`."""

    name: ClassVar[str] = "vectors"
    bound: ClassVar[float] = 0.0
    drawable: ClassVar[bool] = False
    usage: ClassVar[str] = "rows = {}"
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.float32)

    scale: VectorScale

    @property
    def shape(self) -> tuple[int, ...]:
        """See `RowType.shape`."""
        return (len(self.scale.columns),)

    @property
    def description(self) -> str:
        """See `RowType.description`."""
        return f"vectors of {', '.join(self.scale.columns)}"

    @property
    def outputs(self) -> Mapping[str, str]:
        """See `RowType.outputs`."""
        return dict.fromkeys(self.scale.columns, "double")

    def store(self, cells: Sequence[bytes]) -> Sequence[bytes]:
        """See `RowType.store`."""
        return [row.tobytes() for row in self.scale.normalised(np.stack([self.decode(cell) for cell in cells]))]

    def decode(self, cell: bytes) -> NDArray[np.float32]:
        """See `RowType.decode`."""
        return np.frombuffer(cell, "<f4")

    def to_x(self, stored: Tensor) -> Data:
        """See `RowType.to_x`."""
        return stored.float()

    def from_x(self, x: Data) -> Tensor:
        """See `RowType.from_x`."""
        return x.float().cpu()

    def table(self, stored: NDArray[np.float32]) -> dict[str, Any]:
        """See `RowType.table`."""
        return dict(zip(self.scale.columns, self.scale.raw(stored).T, strict=True))

    def side(self, patch: int) -> int:
        """See `RowType.side`; each number has a patch."""
        return patch * _cells_per_side(self.shape[0])

    def seen(self, x: Data, size: tuple[int, int]) -> Tensor:
        """See `RowType.seen`; each number is a gray cell, nearly black or white four deviations from the mean."""
        from torch.nn import functional

        side = _cells_per_side(x.shape[1])
        padded = functional.pad(x, (0, side * side - x.shape[1]))
        return functional.interpolate((padded / _DEVIATIONS).tanh().view(-1, 1, side, side), size, mode="nearest")


def rows_of(shape: Sequence[int], scale: VectorScale | None = None) -> RowType:
    """The type of rows of which a file says these two; without a scale, the numbers of vectors stand for themselves."""
    if len(shape) > 1:
        return Pictures(tuple(shape))
    return Vectors(VectorScale.unit([str(place) for place in range(shape[0])]) if scale is None else scale)


def _cells_per_side(numbers: int) -> int:
    """Of the smallest square that has room for them."""
    return math.isqrt(numbers - 1) + 1
