"""The evaluation stage: a package in, figures and pictures out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ray

from workflows.config.schema import EvaluateConfig, RunConfig
from workflows.data.dataset import Dataset
from workflows.evaluate.jobs import compared_scales, grid, offered, plan_jobs, titles
from workflows.evaluate.measure import Drawn, measure
from workflows.evaluate.metrics.judge import Judge, train_judge
from workflows.evaluate.packaging import assemble_package
from workflows.evaluate.pictures import draw_curves, draw_grid
from workflows.evaluate.prompts import ask
from workflows.evaluate.sampling import sample_jobs
from workflows.evaluate.unlabelled import evaluate_unlabelled
from workflows.package.reference import PACKAGE
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.towers.clip import load_clip


def evaluate(config: RunConfig, inputs: dict[str, Artifact], folder: Path, progress: Progress) -> dict[str, Any]:
    """Draws pictures with every kind of guidance, judges them, and compares scales.

    Args:
        config: the job; its `evaluate` section is read.
        inputs: the artifacts `data`, `clip`, `denoiser`, `classifier`.
        folder: for `package/`, `metrics.json`, `samples.png`, `curves.png`.
        progress: told about finished pictures.

    Returns:
        The figures of `workflows.evaluate.measure.measure`; without labels, those of `evaluate_unlabelled`; of
        vectors, those of `evaluate_vectors`.

    Raises:
        InvalidBundle: parts that do not belong together.
        NonFinite: the model gives no finite pictures.
    """
    assemble_package(config, inputs, folder / PACKAGE)
    dataset = Dataset.open(inputs["data"].folder)
    if dataset.info.scale is not None:
        from workflows.evaluate.vectors import evaluate_vectors

        return evaluate_vectors(config.evaluate, dataset, dataset.info.scale, folder, progress)
    if not dataset.info.attributes:
        return evaluate_unlabelled(config.evaluate, dataset, inputs["clip"].folder, folder, progress)
    jobs = plan_jobs(config.evaluate, ask(dataset, config.evaluate.num_prompts, config.evaluate.seed))
    jobs = offered(jobs, folder / PACKAGE)
    training = ray.remote(num_cpus=1)(_train_judge).remote(inputs["data"].folder, config.evaluate.seed)
    asked = config.evaluate
    images = sample_jobs(folder / PACKAGE, list(jobs.values()), asked.batch_size, progress, asked.workers)
    judge: Judge = ray.get(training)
    drawn = {name: Drawn(job, part, judge(part)) for (name, job), part in zip(jobs.items(), images, strict=True)}
    kinds = {name: found for name, found in drawn.items() if name in titles(config.evaluate)}
    scales = compared_scales(config.evaluate, drawn)
    figures = measure(kinds, scales, dataset, load_clip(inputs["clip"].folder), judge)
    (folder / "metrics.json").write_text(json.dumps(figures, indent=2))
    _draw_pictures(config.evaluate, folder, kinds, figures)
    return figures


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
