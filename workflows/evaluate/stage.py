"""The evaluation stage: a package in, figures and pictures out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import ray

from workflows.config.schema import EvaluateConfig, RunConfig
from workflows.data.dataset import Dataset
from workflows.evaluate.jobs import all_jobs, compared_scales, grid, offered, titles
from workflows.evaluate.measure import Drawn, measure
from workflows.evaluate.metrics.judge import Judge, train_judge
from workflows.evaluate.packaging import assemble_package
from workflows.evaluate.pictures import draw_curves, draw_grid
from workflows.evaluate.prompts import ask
from workflows.evaluate.sampling import sample_jobs
from workflows.evaluate.unlabelled import evaluate_unlabelled
from workflows.evaluate.vectors import evaluate_vectors
from workflows.package.reference import PACKAGE
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.towers.clip import load_clip


def evaluate(config: RunConfig, inputs: dict[str, Artifact], folder: Path, progress: Progress) -> dict[str, Any]:
    """Makes the package of a job and measures what it draws, as suits the type of the rows.

    Args:
        config: the job; its `evaluate` section is read.
        inputs: the artifacts `data`, `clip`, `denoiser`, `classifier`.
        folder: for `package/`, `metrics.json`, `samples.png`, and what else the evaluation writes.
        progress: told about finished rows.

    Returns:
        The figures of `evaluate_pictures`, or of `evaluate_vectors`.

    Raises:
        InvalidBundle: parts that do not belong together.
        NonFinite: the model gives no finite rows.
    """
    assemble_package(config, inputs, folder / PACKAGE)
    dataset = Dataset.open(inputs["data"].folder)
    measure_rows = _EVALUATIONS[dataset.info.rows.name]
    return measure_rows(config.evaluate, dataset, inputs["clip"].folder, folder, progress)


def evaluate_pictures(
    asked: EvaluateConfig, dataset: Dataset, clip_folder: Path, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Draws pictures with every kind of guidance, judges them, and compares scales.

    Args:
        asked: the `evaluate` section.
        dataset: gives prompts, and real pictures.
        clip_folder: the towers.
        folder: holds `package/`; for `metrics.json`, `samples.png`, `curves.png`.
        progress: told about finished pictures.

    Returns:
        The figures of `workflows.evaluate.measure.measure`; without labels, those of `evaluate_unlabelled`.
    """
    if not dataset.info.attributes:
        return evaluate_unlabelled(asked, dataset, clip_folder, folder, progress)
    jobs = all_jobs(asked, ask(dataset, asked.num_prompts, asked.seed))
    jobs = offered(jobs, folder / PACKAGE)
    training = ray.remote(num_cpus=1)(_train_judge).remote(dataset.folder, asked.seed)
    images = sample_jobs(folder / PACKAGE, list(jobs.values()), asked.batch_size, progress, asked.workers)
    judge: Judge = ray.get(training)
    drawn = {name: Drawn(job, part, judge(part)) for (name, job), part in zip(jobs.items(), images, strict=True)}
    kinds = {name: found for name, found in drawn.items() if name in titles(asked)}
    scales = compared_scales(asked, drawn)
    figures = measure(kinds, scales, dataset, load_clip(clip_folder), judge)
    (folder / "metrics.json").write_text(json.dumps(figures, indent=2))
    _draw_pictures(asked, folder, kinds, figures)
    return figures


_EVALUATIONS: Final[dict[str, Callable[[EvaluateConfig, Dataset, Path, Path, Progress], dict[str, Any]]]] = {
    "pictures": evaluate_pictures,
    "vectors": evaluate_vectors,
}
"""The evaluations by `RowType.name`."""


def _train_judge(data_folder: Path, seed: int) -> Judge:
    return train_judge(Dataset.open(data_folder), seed)


def _draw_pictures(asked: EvaluateConfig, folder: Path, kinds: dict[str, Drawn], figures: dict[str, Any]) -> None:
    caption = (
        f"DDIM, {asked.num_steps} steps, eta {asked.gradient_eta:g} under a gradient, else 0; one seed per row. "
        "Red frame: the judge does not see what was asked."
    )
    draw_grid(folder / "samples.png", *grid(asked, kinds, judged=True), caption)
    at_scale = {
        float(w): (share, figures["diversity_at_scale"][w]) for w, share in figures["accuracy_at_scale"].items()
    }
    by_kind = {
        titles(asked)[name].replace("\n", " "): found.accuracy for name, found in kinds.items() if name != "none"
    }
    shares = figures["unconditional_shares"]
    draw_curves(folder / "curves.png", at_scale, by_kind, shares, figures["diversity_real"])
