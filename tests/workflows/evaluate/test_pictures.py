"""The grid shows the right picture at the right place, and a frame where the judge disagrees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from workflows.evaluate.pictures import Column, draw_curves, draw_grid

RED = (214, 69, 65)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def near(image: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return (np.abs(image - np.array(color)) <= 3).all(axis=-1)


def test_tiles_frames_and_channels(tmp_path: Path) -> None:
    gray = np.stack([np.full((1, 8, 8), value, np.uint8) for value in (40, 80)])
    colored = np.zeros((2, 3, 4, 4), np.uint8)
    colored[0, 2], colored[1, 1] = 200, 160
    draw_grid(
        tmp_path / "grid.png",
        ["a long prompt that has to be broken into two lines", "b"],
        [Column("gray", gray), Column("colored", colored, np.array([True, False]))],
        "caption",
    )
    image = pixels(tmp_path / "grid.png")
    assert near(image, (0, 0, 200)).sum() == near(image, (0, 160, 0)).sum() == 96 * 96
    assert near(image, (40, 40, 40)).sum() >= 96 * 96
    rows, columns = np.nonzero(near(image, RED))
    green_rows, green_columns = np.nonzero(near(image, (0, 160, 0)))
    assert rows.min() == green_rows.min() - 3
    assert columns.max() == green_columns.max() + 3
    assert len(rows) == 102**2 - 96**2, "one frame, three pixels wide, and no other"


def test_curves_are_written(tmp_path: Path) -> None:
    draw_curves(
        tmp_path / "curves.png",
        {0.0: (0.1, 0.9), 1.0: (0.8, 0.5), 2.0: (0.95, 0.4)},
        {"direct": 0.8, "CLIP guidance": 0.4},
        {str(digit): 0.1 for digit in range(10)},
        0.55,
    )
    image = pixels(tmp_path / "curves.png")
    assert image.shape == (380, 1300, 3)
    assert near(image, (76, 120, 168)).any()
    assert near(image, (228, 87, 86)).any()
