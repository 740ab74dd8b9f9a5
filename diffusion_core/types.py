"""Shapes as they are written in annotations, and the broadcast that every module needs.

`b` is the batch, `...` any data shape: an image is `(b, c, h, w)`, a vector `(b, c)`, a video
`(b, c, frames, h, w)`. Nothing in the core asks which.
"""

from __future__ import annotations

from typing import TypeAlias

from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffusion_core.errors import InvalidShape

Data: TypeAlias = Float[Tensor, "b ..."]
"""One sample per row, any data shape."""
Rows: TypeAlias = Float[Tensor, "b"]
"""One number per row."""
Levels: TypeAlias = Int[Tensor, "b"]
"""One level of the noise schedule per row: 0 is clean data."""
RowMask: TypeAlias = Bool[Tensor, "b"]
"""One truth value per row."""


def expand(rows: Tensor, like: Tensor) -> Tensor:
    """Views `(b,)` as `(b, 1, ..., 1)`, so that it multiplies row by row.

    Args:
        rows: one entry per row, `(b,)`.
        like: data of shape `(b, ...)`.

    Raises:
        InvalidShape: the two do not have the same number of rows.
    """
    if rows.dim() != 1 or like.dim() < 1 or rows.shape[0] != like.shape[0]:
        raise InvalidShape(
            f"found {tuple(rows.shape)} entries for data of shape {tuple(like.shape)}: give one entry per row"
        )
    return rows.reshape(-1, *(1,) * (like.dim() - 1))
