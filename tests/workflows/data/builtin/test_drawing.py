"""Drawn shapes against their areas in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from workflows.data.builtin.drawing import DISTANCES, Drawing, draw

AREAS = {
    "circle": lambda r: np.pi * r**2,
    "square": lambda r: (2 * 0.88 * r) ** 2,
    "triangle": lambda r: 3 * np.sqrt(3) * (0.62 * r) ** 2,
    "cross": lambda r: 4 * 1.1 * 0.36 * 2 * r**2 - (2 * 0.36 * r) ** 2,
}
"""Square of side 2a: 4a^2; equilateral triangle of inradius a: 3 sqrt(3) a^2; two bars less their overlap."""


def one(shape: str, **changes: Any) -> Drawing:
    values: dict[str, Any] = {
        "centers": [16, 16],
        "radii": 8,
        "angles": 0,
        "colors": [255, 255, 255],
        "backgrounds": [0, 0, 0],
        "slopes": [0, 0],
    } | changes
    arrays = {name: np.array([value], np.float32) for name, value in values.items()}
    return Drawing(shapes=np.array([list(DISTANCES).index(shape)]), **arrays)


@pytest.mark.parametrize("shape", DISTANCES)
@pytest.mark.parametrize("radius", [3.8, 6.6, 9.0])
@pytest.mark.parametrize("angle", [0.0, 0.1, 0.7])
def test_a_shape_covers_its_area(shape: str, radius: float, angle: float) -> None:
    picture = draw(one(shape, radii=radius, angles=angle, centers=[16.3, 15.6]), 32)
    assert picture[0, 0].sum() / 255 == pytest.approx(AREAS[shape](radius), rel=0.04)


@pytest.mark.parametrize("shape", DISTANCES)
def test_edges_are_smooth(shape: str) -> None:
    """A quarter of a pixel to the right changes the edge, by about a quarter of the shape's height."""
    here, there = (draw(one(shape, centers=[x, 16]), 32)[0, 0].astype(float) / 255 for x in (16, 16.25))
    assert 0 < np.abs(there - here).max() <= 0.5
    columns = np.arange(32) + 0.5
    middle = [(picture.sum(0) @ columns) / picture.sum() for picture in (here, there)]
    assert middle[1] - middle[0] == pytest.approx(0.25, abs=0.05)


def test_colors_and_background_are_those_asked_for() -> None:
    picture = draw(one("circle", colors=[200, 100, 50], backgrounds=[40, 30, 20], slopes=[16, -8]), 32)[0]
    assert picture[:, 16, 16].tolist() == [200, 100, 50]
    left, right = picture[:, 16, 0], picture[:, 16, 31]
    # From the middle of the first pixel to the middle of the last it is 31/32 of the slope.
    assert np.abs(right.astype(int) - left - 16 * 31 / 32).max() <= 1
    assert np.abs(picture[:, 31, 0].astype(int) - picture[:, 0, 0] + 8 * 31 / 32).max() <= 1


def test_the_triangle_points_up() -> None:
    rows = draw(one("triangle"), 32)[0, 0].sum(1, dtype=float)
    inside = np.flatnonzero(rows > 255)
    assert (np.diff(rows[inside[:-1]]) >= 0).all()
    assert rows[inside[-2]] > 4 * rows[inside[0]]
