"""Plots of a sweep's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

from workflows.sweep.ruler import distance_of, fit_of

_DPI: Final = 100
_COLORS: Final = ("#4c78a8", "#e45756", "#72b7b2", "#f58518", "#54a24b", "#b279a2")

_TITLES: Final[Mapping[str, str]] = {
    "clip_fd": "CLIP-FD",
    "energy_distance": "energy distance",
    "accuracy": "judged as asked",
    "retrieval": "prompt found among captions",
}

Rows = Sequence[Mapping[str, Any]]


def draw_steps_eta(path: Path, rows: Rows) -> None:
    """The distance to real samples over the number of steps, a line per eta."""
    figure, axes = _figure(1)
    distance = distance_of(rows)
    for color, eta in zip(_COLORS, sorted({row["eta"] for row in rows}), strict=False):
        line = sorted((row["steps"], row[distance]) for row in rows if row["eta"] == eta)
        axes[0].plot(*zip(*line, strict=True), "o-", color=color, label=f"eta = {eta:g}")
    axes[0].set(xscale="log", yscale="log", xlabel="DDIM steps", ylabel=_TITLES[distance], title="steps and eta")
    _finish(path, figure, axes)


def draw_guidance(path: Path, rows: Rows) -> None:
    """The distance over the scale, and how well prompts are met against diversity, a line per kind of guidance."""
    distance, fit = distance_of(rows), fit_of(rows)
    figure, axes = _figure(1 if fit is None else 2)
    kinds = list(dict.fromkeys(row["guidance"] for row in rows))
    for color, kind in zip(_COLORS, kinds, strict=False):
        line = sorted((row for row in rows if row["guidance"] == kind), key=lambda row: float(row["scale"]))
        marker = "o-" if len(line) > 1 else "D"
        axes[0].plot([row["scale"] for row in line], [row[distance] for row in line], marker, color=color, label=kind)
        if fit is not None:
            diversity, right = [row["diversity"] for row in line], [row[fit] for row in line]
            axes[1].plot(diversity, right, marker, color=color, label=kind)
    axes[0].set_xscale("symlog", linthresh=1.0)
    axes[0].set(yscale="log", xlabel="scale", ylabel=_TITLES[distance], title="guidance scale")
    if fit is not None:
        axes[1].set(xlabel="diversity within a prompt", ylabel=_TITLES[fit], title="fidelity against diversity")
    _finish(path, figure, axes)


def draw_spacings(path: Path, rows: Rows) -> None:
    """The distance of each sampler and spacing, as bars."""
    figure, axes = _figure(1)
    distance = distance_of(rows)
    names = [f"{row['sampler']}, {row['spacing']}" for row in rows]
    values = [row[distance] for row in rows]
    axes[0].bar_label(axes[0].barh(names[::-1], values[::-1], color=_COLORS[0]), fmt="{:.2f}", padding=3, fontsize=8)
    axes[0].set(xlabel=_TITLES[distance], title="samplers and spacings")
    _finish(path, figure, axes, legend=False)


def _figure(panels: int) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(5.5 * panels, 4), dpi=_DPI, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)
    return figure, list(axes[0])


def _finish(path: Path, figure: Figure, axes: Sequence[Any], *, legend: bool = True) -> None:
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        if legend:
            one.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=_DPI)
