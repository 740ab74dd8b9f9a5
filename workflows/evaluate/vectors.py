"""Evaluation of vectors: drawn rows against held-out ones, by the energy distance.

Rows are asked for with the captions of held-out samples, one each, so that both have the same mixture of captions.
Distances are between normalised rows; 0 in expectation if both samples are of one distribution.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from diffusion_core.oracle import energy_distance
from workflows.config.schema import EvaluateConfig
from workflows.data.dataset import Dataset, Split
from workflows.data.rows import Vectors
from workflows.data.scale import VectorScale
from workflows.evaluate.jobs import jobs_by_kind, offered
from workflows.evaluate.label_free import warn
from workflows.evaluate.measure import HEADLINE
from workflows.evaluate.metrics.energy import Energy
from workflows.evaluate.metrics.estimate import Estimate, estimate, plain
from workflows.evaluate.metrics.neighbours import find_neighbours
from workflows.evaluate.prompts import Prompts
from workflows.evaluate.real import some
from workflows.evaluate.sampling import sample_jobs
from workflows.package.reference import PACKAGE
from workflows.runtime.progress import Progress

_LEAST_ROWS: Final = 8
"""A caption with fewer rows gets no distance of its own."""
_HISTOGRAMS: Final = 4


def evaluate_vectors(
    asked: EvaluateConfig,
    dataset: Dataset,
    clip_folder: Path,  # noqa: ARG001 -- rows are compared as they are
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Draws rows with every kind of guidance and compares them with held-out ones.

    Args:
        asked: the `evaluate` section.
        dataset: gives held-out captions and rows.
        clip_folder: not used.
        folder: holds `package/`; for `metrics.json`, `samples.csv` (with raw numbers) and `samples.png`.
        progress: told about finished rows.

    Returns:
        The figures of `measure_vectors`.
    """
    figures = measure_vectors(asked, dataset, folder / PACKAGE, folder, progress)
    (folder / "metrics.json").write_text(json.dumps(figures, indent=2))
    return figures


def measure_vectors(
    asked: EvaluateConfig, dataset: Dataset, package: Path, folder: Path, progress: Progress
) -> dict[str, Any]:
    """The figures of a package that draws vectors; in memory are as many rows as are drawn, and a page.

    Args:
        asked: the `evaluate` section.
        dataset: gives held-out captions and rows.
        package: folder of the model.
        folder: for `samples.csv` (with raw numbers) and `samples.png`.
        progress: told about finished rows.

    Returns:
        `energy_distance` of the headline with its interval, `energy_distance_KIND`, `energy_distance_real` (training
        rows: what a perfect model would reach), `energy_distance_by_caption` and its `_real`: means over captions with
        enough rows; `share_of_copies` and `nearest`.
    """
    scale = cast(Vectors, dataset.info.rows).scale
    held_out = some(dataset, "held_out", asked.num_prompts)
    chosen = some(dataset, "train", len(held_out))
    prompts = ask_rows(held_out, asked.num_prompts, asked.seed)
    fewer = prompts.first(asked.num_prompts_per_gradient)
    jobs = jobs_by_kind(asked, prompts, prompts, fewer, labelled=bool(dataset.info.class_names))
    jobs = offered(jobs, package)
    drawn = dict(zip(jobs, sample_jobs(package, list(jobs.values()), asked.batch_size, progress), strict=True))
    headline = drawn[HEADLINE]
    texts = jobs[HEADLINE].prompts.texts
    near = find_neighbours(headline, dataset, asked.compare_rows)
    figures: dict[str, Any] = {
        **plain({"energy_distance": _estimate(headline, held_out.images), "share_of_copies": near.share_of_copies}),
        "energy_distance_real": _distance(chosen.images, held_out.images),
        **{f"energy_distance_{kind}": _distance(rows, held_out.images[: len(rows)]) for kind, rows in drawn.items()},
        **_by_caption({"": (headline, texts), "_real": (chosen.images, _first(chosen))}, held_out),
        "nearest": near.figures(),
        "compared": {"drawn": len(headline), "held_out": len(held_out), "train": near.compared},
        "not_measured": {} if len(held_out) > 1 else {"energy_distance": "one held-out row has no distance: add rows"},
    }
    warn(figures, progress)
    table = pd.DataFrame(scale.raw(headline), columns=list(scale.columns))
    table.assign(caption=list(texts)).to_csv(folder / "samples.csv", index=False)
    draw_samples(folder / "samples.png", scale, scale.raw(held_out.images), scale.raw(headline))
    return figures


def ask_rows(held_out: Split, count: int, seed: int) -> Prompts:
    """Asks for `count` rows: the captions of held-out samples in order, from the first again when they are used up."""
    rows = np.arange(count) % len(held_out)
    first = int(np.random.default_rng(seed).integers(2**32))
    return Prompts(
        tuple(held_out.captions[row][0] for row in rows),
        rows.astype(np.int64),
        held_out.labels[rows][:, None],
        tuple(first + row for row in range(count)),
        np.zeros(count, np.bool_),
    )


def _distance(rows: NDArray[Any], other: NDArray[Any]) -> float:
    """The energy distance; 0 where a sample of one row has none."""
    if min(len(rows), len(other)) < 2:
        return 0.0
    return energy_distance(torch.tensor(rows), torch.tensor(other))


def _estimate(rows: NDArray[Any], other: NDArray[Any]) -> Estimate:
    energy = Energy(rows, other)
    return estimate(_distance(rows, other), energy.of, len(rows))


def _first(split: Split) -> tuple[str, ...]:
    return tuple(captions[0] for captions in split.captions)


def _by_caption(samples: Mapping[str, tuple[NDArray[Any], tuple[str, ...]]], held_out: Split) -> dict[str, float]:
    """Mean distance among rows of the same caption, over captions of which every sample has enough."""
    asked = np.array(_first(held_out))
    groups = {name: (rows, np.array(texts)) for name, (rows, texts) in samples.items()}
    known = [
        text
        for text in sorted(set(asked.tolist()))
        if min((texts == text).sum() for texts in (asked, *(texts for _, texts in groups.values()))) >= _LEAST_ROWS
    ]
    if not known:
        return {}
    return {
        f"energy_distance_by_caption{name}": float(
            np.mean([_distance(rows[texts == text], held_out.images[asked == text]) for text in known])
        )
        for name, (rows, texts) in groups.items()
    }


def draw_samples(path: Path, scale: VectorScale, real: NDArray[Any], drawn: NDArray[Any]) -> None:
    """Writes a scatter plot of the first two columns, and histograms of the first few.

    Args:
        path: of the PNG.
        scale: names the columns.
        real: (n, d) held-out rows.
        drawn: (m, d).
    """
    shown = min(_HISTOGRAMS, real.shape[1])
    figure = Figure(figsize=(4.2 * (shown + 1), 3.8), layout="constrained")
    scatter, *panels = np.atleast_1d(figure.subplots(1, shown + 1))
    other = min(1, real.shape[1] - 1)
    for rows, color, name in ((real, "#4c78a8", "held out"), (drawn, "#e45756", "drawn")):
        scatter.scatter(rows[:, 0], rows[:, other], s=10, alpha=0.5, color=color, label=name, edgecolors="none")
    scatter.set(xlabel=scale.columns[0], ylabel=scale.columns[other], title="held out and drawn")
    scatter.legend(fontsize=8, frameon=False)
    for place, axes in enumerate(panels):
        both = np.concatenate([real[:, place], drawn[:, place]])
        edges = np.linspace(both.min(), both.max() or 1.0, 31) if both.min() < both.max() else 30
        for rows, color in ((real, "#4c78a8"), (drawn, "#e45756")):
            axes.hist(rows[:, place], bins=edges, density=True, alpha=0.5, color=color)
        axes.set(xlabel=scale.columns[place], yticks=[])
    for axes in (scatter, *panels):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
