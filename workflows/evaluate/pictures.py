"""The pictures of an evaluation: a labelled grid of samples, and what guidance does."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

_TILE: Final = 96
_GAP: Final = 10
_LABEL_WIDTH: Final = 220
_TITLE_HEIGHT: Final = 46
_DPI: Final = 100
_WRONG: Final = (214, 69, 65)
_FRAME: Final = 3
_TEXT: Final[dict[str, Any]] = {"fontsize": 9, "color": "#222222"}


@final
@dataclass(frozen=True)
class Column:
    """One column of the grid.

    Attributes:
        title: two short lines at most.
        images: (rows, c, h, w) uint8, one or three channels.
        right: whether the judge sees what was asked; None: nothing was asked.
    """

    title: str
    images: NDArray[np.uint8]
    right: NDArray[np.bool_] | None = None


def draw_grid(path: Path, prompts: Sequence[str], columns: Sequence[Column], caption: str) -> None:
    """Writes the grid: a row per prompt, a column per kind of guidance, a red frame where the judge disagrees."""
    step = _TILE + _GAP
    width, height = _LABEL_WIDTH + step * len(columns), _TITLE_HEIGHT + step * len(prompts) + 2 * _GAP
    canvas = np.full((height, width, 3), 255, np.uint8)
    for place, column in enumerate(columns):
        for row in range(len(prompts)):
            top, left = _TITLE_HEIGHT + step * row, _LABEL_WIDTH + step * place
            if column.right is not None and not column.right[row]:
                canvas[top - _FRAME : top + _TILE + _FRAME, left - _FRAME : left + _TILE + _FRAME] = _WRONG
            canvas[top : top + _TILE, left : left + _TILE] = _tile(column.images[row])
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    for place, column in enumerate(columns):
        middle = _LABEL_WIDTH + step * place + _TILE / 2
        axes.text(middle, _TITLE_HEIGHT - _GAP, column.title, ha="center", va="bottom", fontweight="bold", **_TEXT)
    for row, prompt in enumerate(prompts):
        label = textwrap.fill(prompt, 27)
        axes.text(
            _LABEL_WIDTH - 2 * _GAP, _TITLE_HEIGHT + step * row + _TILE / 2, label, ha="right", va="center", **_TEXT
        )
    axes.text(width - _GAP, height - _GAP, caption, ha="right", va="center", fontsize=8, color="#777777")
    figure.savefig(path, dpi=_DPI)


def draw_curves(
    path: Path,
    by_scale: Mapping[float, tuple[float, float]],
    by_kind: Mapping[str, float],
    shares: Mapping[str, float],
    real_diversity: float,
) -> None:
    """Writes three panels: fidelity against diversity over the scale, accuracy by guidance, unconditional classes.

    Args:
        path: of the PNG.
        by_scale: accuracy and diversity at each classifier-free scale.
        by_kind: accuracy of each kind of guidance.
        shares: share of each class among unconditional pictures.
        real_diversity: diversity of held-out pictures.
    """
    figure = Figure(figsize=(13, 3.8), dpi=_DPI, layout="constrained")
    scale_axes, kind_axes, class_axes = figure.subplots(1, 3)
    _plot_scales(scale_axes, by_scale, real_diversity)
    names = list(by_kind)
    bars = kind_axes.barh(names[::-1], [by_kind[name] for name in names[::-1]], color="#4c78a8")
    kind_axes.bar_label(bars, fmt="{:.0%}", padding=3, fontsize=8)
    kind_axes.set(xlim=(0, 1.12), title="judged as asked")
    class_axes.bar(list(shares), list(shares.values()), color="#72b7b2")
    class_axes.axhline(1 / len(shares), color="#777777", linewidth=0.8, linestyle=":")
    class_axes.set(title="classes of unconditional pictures", ylim=(0, None))
    class_axes.tick_params(axis="x", rotation=45)
    for axes in (scale_axes, kind_axes, class_axes):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=_DPI)


def _plot_scales(axes: Axes, by_scale: Mapping[float, tuple[float, float]], real_diversity: float) -> None:
    scales = sorted(by_scale)
    axes.plot(scales, [by_scale[w][0] for w in scales], "o-", color="#4c78a8", label="judged as asked")
    axes.plot(scales, [by_scale[w][1] for w in scales], "s--", color="#e45756", label="diversity")
    axes.axhline(real_diversity, color="#e45756", linewidth=0.8, linestyle=":", label="diversity of real pictures")
    axes.set(xlabel="classifier-free scale w", ylim=(0, 1.05), title="guidance: fidelity against diversity")
    axes.legend(fontsize=8, frameon=False)


def _tile(pixels: NDArray[np.uint8]) -> NDArray[Any]:
    """A picture (c, h, w) as (tile, tile, 3) with hard pixel edges."""
    channels, height, width = pixels.shape
    color = np.broadcast_to(pixels, (3, height, width)) if channels == 1 else pixels
    y, x = (np.arange(_TILE) * size // _TILE for size in (height, width))
    return color[:, y][:, :, x].transpose(1, 2, 0)
