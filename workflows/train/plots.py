"""Pictures of a training run, drawn without pyplot's global state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from workflows.train.validation import LevelAccuracy


def plot_losses(rows: Sequence[dict[str, float]], path: Path) -> None:
    """The loss over steps, in all and by quarter of the noise levels."""
    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in (key for key in rows[0] if key.startswith("loss_level_")):
        quarter = int(name.removeprefix("loss_level_")) + 1
        axes.plot(steps, [row[name] for row in rows], linewidth=0.8, label=f"quarter {quarter} of the levels")
    axes.plot(steps, [row["loss"] for row in rows], color="black", label="all")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def plot_accuracy(measured: Sequence[LevelAccuracy], path: Path) -> None:
    """Accuracy of both heads over the noise level, and the label head's confidence and calibration error."""
    levels = [point.level for point in measured]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(levels, [point.label for point in measured], marker="o", label="label head")
    axes.plot(levels, [point.text for point in measured], marker="s", label="text head, among the candidates")
    axes.plot(levels, [point.confidence for point in measured], linestyle="--", label="label head's confidence")
    axes.plot(levels, [point.calibration_error for point in measured], linestyle=":", label="its calibration error")
    axes.set(xlabel="level", ylabel="share of held-out samples", ylim=(0, 1.02))
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
