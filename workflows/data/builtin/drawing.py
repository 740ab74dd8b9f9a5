"""Anti-aliased drawing of coloured shapes, all pictures at once.

A shape is the set where its distance function d(p) is negative. A pixel's coverage is
clip(1/2 - d, 0, 1), which is exact where an edge runs along the pixel grid, and the picture is
background + coverage * (color - background).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_AT_ONCE: Final = 512
"""Pictures drawn at once: what fits into a processor's cache."""


@final
@dataclass(frozen=True)
class Drawing:
    """Parameters of n pictures; lengths in pixels, angles in radians, colors in 0..255.

    Attributes:
        shapes: (n,) index into the names of `DISTANCES`.
        centers: (n, 2) x and y of the middle, from the upper left corner.
        radii: (n,) size: the radius of a circle of about the same area.
        angles: (n,) rotation.
        colors: (n, 3) of the shape.
        backgrounds: (n, 3) of the background in the middle of the picture.
        slopes: (n, 2) change of the background over the width and the height.
    """

    shapes: NDArray[np.int64]
    centers: Floats
    radii: Floats
    angles: Floats
    colors: Floats
    backgrounds: Floats
    slopes: Floats


def draw(drawing: Drawing, size: int) -> NDArray[np.uint8]:
    """(n, 3, size, size) pictures."""
    pictures = np.empty((len(drawing.shapes), 3, size, size), np.uint8)
    for start in range(0, len(pictures), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        pictures[rows] = _draw(Drawing(*(getattr(drawing, field.name)[rows] for field in fields(drawing))), size)
    return pictures


def _draw(drawing: Drawing, size: int) -> NDArray[np.uint8]:
    grid = (np.arange(size, dtype=np.float32) + 0.5)[None]
    x = (grid - drawing.centers[:, :1])[:, None, :]
    y = (grid - drawing.centers[:, 1:])[:, :, None]
    cos, sin = np.cos(drawing.angles)[:, None, None], np.sin(drawing.angles)[:, None, None]
    coverage = np.clip(0.5 - _distance(drawing, cos * x + sin * y, cos * y - sin * x), 0, 1)[:, None]
    ramp = grid / size - 0.5
    slope = drawing.slopes[:, :1, None] * ramp[:, None, :] + drawing.slopes[:, 1:, None] * ramp[:, :, None]
    background = drawing.backgrounds[:, :, None, None] + slope[:, None]
    pixels = background + coverage * (drawing.colors[:, :, None, None] - background)
    rounded: NDArray[np.uint8] = np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)
    return rounded


def _distance(drawing: Drawing, x: Floats, y: Floats) -> Floats:
    distance = np.empty(np.broadcast_shapes(x.shape, y.shape), np.float32)
    for index, function in enumerate(DISTANCES.values()):
        rows = drawing.shapes == index
        distance[rows] = function(x[rows], y[rows], drawing.radii[rows, None, None])
    return distance


def _circle(x: Floats, y: Floats, r: Floats) -> Floats:
    return np.sqrt(x * x + y * y) - r


def _square(x: Floats, y: Floats, r: Floats) -> Floats:
    distance: Floats = np.maximum(np.abs(x), np.abs(y)) - 0.88 * r
    return distance


def _triangle(x: Floats, y: Floats, r: Floats) -> Floats:
    side = np.float32(np.sqrt(3) / 2)
    distance: Floats = np.maximum(y, side * np.abs(x) - 0.5 * y) - 0.62 * r
    return distance


def _cross(x: Floats, y: Floats, r: Floats) -> Floats:
    x, y, arm, half = np.abs(x), np.abs(y), 1.1 * r, 0.36 * r
    return np.minimum(np.maximum(x - arm, y - half), np.maximum(x - half, y - arm))


DISTANCES: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
}
"""Name -> d(x, y, r) with the middle at the origin and y pointing down."""
