"""How a user's records become rows: what each kind of record must hold, and what `raverse data check` says about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeAlias, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workflows.data.picture import Found, PictureShape, prepare
from workflows.data.png import encode_png, image_of, png_of
from workflows.data.rows import Pictures, RowType, Vectors
from workflows.data.scale import Limits, Moments, VectorScale
from workflows.errors import InvalidData

if TYPE_CHECKING:
    from workflows.config.schema import DataConfig

Sample: TypeAlias = Callable[[Sequence[str]], NDArray[np.float64]]
"""Gives some rows of these columns, spread over the pieces: (n, d)."""
_FAST: Final = 1
"""Compression of parts, which live as long as an import."""


class Intake(Protocol):
    """What the import and the check ask about the records of a source.

    Attributes:
        counted: a plural noun for the records' contents.
        facts: entries of the check's report that say something about them.
        preset: configuration whose sizes suit a first job on them.
        options: fields of the `data` section that shape the rows.
        measured: whether the type of the rows depends on the training samples.
        joins: whether records of equal contents and label are one, with the captions of all.
    """

    counted: ClassVar[str]
    facts: ClassVar[tuple[str, ...]]
    preset: ClassVar[str]
    options: ClassVar[tuple[str, ...]]
    measured: ClassVar[bool]
    joins: ClassVar[bool]

    @staticmethod
    def of(config: DataConfig, pieces: Sequence[dict[str, Any]], sample: Sample) -> Intake:
        """What a configuration makes of the records of these pieces.

        Raises:
            InvalidData: pieces that do not fit together.
        """
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of a row's numbers; none where they have no names."""
        ...

    @property
    def least_side(self) -> int:
        """Pixels of a side, below which a record is counted as small."""
        ...

    def read(self, data: bytes) -> tuple[NDArray[Any], Found]:
        """The raw row in a record, and what the record held.

        Raises:
            InvalidData: why there is none.
        """
        ...

    def encode(self, row: NDArray[Any]) -> bytes:
        """A raw row as a cell of Parquet."""
        ...

    def measure(self, cells: Sequence[bytes]) -> Moments:
        """Moments of raw cells; never asked for where `measured` is false."""
        ...

    def rows(self, moments: Moments | None) -> RowType:
        """The type of the rows, once those of the training samples are measured; None: they are not `measured`."""
        ...

    def thumbnail(self, row: NDArray[Any], side: int) -> bytes | None:
        """A raw row as a PNG file with sides of so many pixels; None: it is no picture."""
        ...


@final
@dataclass(frozen=True)
class PictureIntake:
    """Records are encoded pictures, which become pictures of one shape; see `Intake`."""

    counted: ClassVar[str] = "images"
    facts: ClassVar[tuple[str, ...]] = (
        "width",
        "height",
        "aspect_ratio",
        "smaller_than_wanted",
        "modes",
        "formats",
    )
    preset: ClassVar[str] = "pictures"
    options: ClassVar[tuple[str, ...]] = ("image_size", "channels")
    measured: ClassVar[bool] = False
    joins: ClassVar[bool] = True

    shape: PictureShape

    @staticmethod
    def of(config: DataConfig, pieces: Sequence[dict[str, Any]], sample: Sample) -> PictureIntake:  # noqa: ARG004
        """See `Intake.of`; all pieces are alike."""
        return PictureIntake(PictureShape(config.image_size, config.channels, config.max_pixels, config.background))

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Intake.columns`."""
        return ()

    @property
    def least_side(self) -> int:
        """See `Intake.least_side`."""
        return self.shape.size

    def read(self, data: bytes) -> tuple[NDArray[np.uint8], Found]:
        """See `Intake.read`."""
        return prepare(data, self.shape)

    def encode(self, row: NDArray[np.uint8]) -> bytes:
        """See `Intake.encode`."""
        return encode_png(row, compression=_FAST)

    def measure(self, cells: Sequence[bytes]) -> Moments:  # noqa: ARG002 - nothing is measured
        """See `Intake.measure`."""
        raise AssertionError("nothing of pictures is measured")

    def rows(self, moments: Moments | None) -> Pictures:  # noqa: ARG002 - nothing is measured
        """See `Intake.rows`."""
        return Pictures((self.shape.channels, self.shape.size, self.shape.size))

    def thumbnail(self, row: NDArray[np.uint8], side: int) -> bytes:
        """See `Intake.thumbnail`."""
        return png_of(image_of(row).resize((side, side), Image.Resampling.NEAREST))


@final
@dataclass(frozen=True)
class VectorIntake:
    """Records are named numbers, as little-endian float32; see `Intake`."""

    counted: ClassVar[str] = "rows"
    facts: ClassVar[tuple[str, ...]] = ("columns",)
    preset: ClassVar[str] = "vectors"
    options: ClassVar[tuple[str, ...]] = ()
    measured: ClassVar[bool] = True
    joins: ClassVar[bool] = False

    columns: tuple[str, ...]
    limits: Limits | None = None

    @staticmethod
    def of(config: DataConfig, pieces: Sequence[dict[str, Any]], sample: Sample) -> VectorIntake:  # noqa: ARG004
        """See `Intake.of`; the columns of a piece are those of numbers, then caption and label."""
        found = {tuple(piece["columns"][:-2]) for piece in pieces if "columns" in piece}
        if len(found) > 1:
            one, other = sorted(found)[:2]
            raise InvalidData(f"files with columns {', '.join(one)} and {', '.join(other)}: set data.vector_columns")
        columns = found.pop() if found else ()
        return VectorIntake(columns, Limits.of(sample(columns)) if columns else None)

    @property
    def least_side(self) -> int:
        """See `Intake.least_side`."""
        return 0

    def read(self, data: bytes) -> tuple[NDArray[np.float32], Found]:
        """See `Intake.read`."""
        numbers = np.frombuffer(data, "<f4")
        if self.limits is not None:
            self.limits.check(numbers, self.columns)
        return numbers, Found(len(numbers), 1, "float32", "vector", 1)

    def encode(self, row: NDArray[np.float32]) -> bytes:
        """See `Intake.encode`."""
        return row.tobytes()

    def measure(self, cells: Sequence[bytes]) -> Moments:
        """See `Intake.measure`."""
        return Moments.of(np.frombuffer(b"".join(cells), "<f4").reshape(len(cells), len(self.columns)))

    def rows(self, moments: Moments | None) -> Vectors:
        """See `Intake.rows`."""
        return Vectors(VectorScale.unit(self.columns) if moments is None else VectorScale.fit(self.columns, moments))

    def thumbnail(self, row: NDArray[np.float32], side: int) -> None:  # noqa: ARG002 - there is none
        """See `Intake.thumbnail`."""
        return
