"""The evaluation stage: a package in, figures and pictures out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import ray

from workflows.artifact import Artifact
from workflows.config import EvaluateConfig, RunConfig
from workflows.data.dataset import Dataset
from workflows.embed.clip import load_clip
from workflows.evaluate.judge import Judge, train_judge
from workflows.evaluate.measure import Drawn, measure
from workflows.evaluate.packaging import assemble_package
from workflows.evaluate.pictures import Column, draw_curves, draw_grid
from workflows.evaluate.prompts import Prompts, ask
from workflows.evaluate.sampling import SampleJob, sample_jobs
from workflows.progress import Progress

PACKAGE: Final = "package"
_GRID_ROWS: Final = 10
_TITLES: Final = {
    "none": "unconditional",
    "direct": "direct",
    "classifier_free": "classifier-free\nw = {guidance_scale:g}",
    "classifier_label": "classifier\nby class",
    "classifier_prompt": "classifier\nby prompt",
    "clip": "CLIP\nguidance",
}


def evaluate(config: RunConfig, inputs: dict[str, Artifact], folder: Path, progress: Progress) -> dict[str, Any]:
    """Draws pictures with every kind of guidance, judges them, and compares scales.

    Args:
        config: the job; its `evaluate` section is read.
        inputs: the artifacts `data`, `clip`, `denoiser`, `classifier`.
        folder: for `package/`, `metrics.json`, `samples.png`, `curves.png`.
        progress: told about finished pictures.

    Returns:
        The figures of `workflows.evaluate.measure.measure`; without labels, those of `evaluate_unlabelled`.

    Raises:
        InvalidBundle: parts that do not belong together.
        NonFinite: the model gives no finite pictures.
    """
    assemble_package(config, inputs, folder / PACKAGE)
    dataset = Dataset.open(inputs["data"].folder)
    if not dataset.info.attributes:
        from workflows.evaluate.unlabelled import evaluate_unlabelled

        return evaluate_unlabelled(config.evaluate, dataset, inputs["clip"].folder, folder, progress)
    jobs = plan_jobs(config.evaluate, ask(dataset, config.evaluate.num_prompts, config.evaluate.seed))
    training = ray.remote(num_cpus=1)(_train_judge).remote(inputs["data"].folder, config.evaluate.seed)
    asked = config.evaluate
    images = sample_jobs(folder / PACKAGE, list(jobs.values()), asked.batch_size, progress, asked.workers)
    judge: Judge = ray.get(training)
    drawn = {name: Drawn(job, part, judge(part)) for (name, job), part in zip(jobs.items(), images, strict=True)}
    kinds = {name: found for name, found in drawn.items() if name in _TITLES}
    scales = compared_scales(config.evaluate, drawn)
    figures = measure(kinds, scales, dataset, load_clip(inputs["clip"].folder), judge)
    (folder / "metrics.json").write_text(json.dumps(figures, indent=2))
    _draw_pictures(config.evaluate, folder, kinds, figures)
    return figures


def plan_jobs(asked: EvaluateConfig, prompts: Prompts) -> dict[str, SampleJob]:
    """What is to be drawn, by name; the rows of all jobs are the same prompts and seeds, as far as they go.

    The headline comes first, with its rows in rounds over all combinations. The other jobs take rows of it
    that can be compared within their combination, and steps that cost a gradient take fewer of them.
    """
    compared = prompts.rows(prompts.comparable(asked.num_prompts_per_scale))
    guided = compared.first(asked.num_prompts_per_gradient)
    headline = SampleJob(prompts, "classifier_free", num_steps=asked.num_steps, guidance_scale=asked.guidance_scale)
    gradient = replace(headline, prompts=guided, guidance="classifier", classifier_scale=asked.classifier_scale)
    jobs = {
        "classifier_free": headline,
        "clip": replace(headline, prompts=guided, guidance="clip", clip_scale=asked.clip_scale),
        "classifier_label": replace(gradient, by_label=True),
        "classifier_prompt": gradient,
        "direct": replace(headline, prompts=compared, guidance="direct"),
        "none": replace(headline, prompts=compared, guidance="none"),
    }
    for scale in asked.scales:
        if scale not in (0.0, 1.0, asked.guidance_scale):
            jobs[f"scale_{scale:g}"] = replace(headline, prompts=compared, guidance_scale=scale)
    return jobs


def compared_scales(asked: EvaluateConfig, drawn: dict[str, Drawn]) -> dict[float, Drawn]:
    """The pictures at each scale: 0 is the unconditional model, 1 the plain conditional one."""
    headline = drawn["classifier_free"]
    found = {
        0.0: drawn["none"],
        1.0: drawn["direct"],
        asked.guidance_scale: headline.rows(headline.job.prompts.comparable(asked.num_prompts_per_scale)),
    }
    return {scale: found[scale] if scale in found else drawn[f"scale_{scale:g}"] for scale in asked.scales}


def _train_judge(data_folder: Path, seed: int) -> Judge:
    return train_judge(Dataset.open(data_folder), seed)


def _draw_pictures(asked: EvaluateConfig, folder: Path, kinds: dict[str, Drawn], figures: dict[str, Any]) -> None:
    shown = kinds["classifier_label"].job.prompts.first(_GRID_ROWS)
    rows = np.arange(len(shown))
    headline = kinds["classifier_free"]
    aligned = kinds | {"classifier_free": headline.rows(headline.job.prompts.comparable(asked.num_prompts_per_scale))}
    columns = [
        Column(
            title.format(**asked.model_dump()),
            aligned[name].images[rows],
            None if name == "none" else aligned[name].right[rows],
        )
        for name, title in _TITLES.items()
    ]
    caption = f"DDIM, {asked.num_steps} steps, one seed per row. Red frame: the judge does not see what was asked."
    draw_grid(folder / "samples.png", shown.texts, columns, caption)
    at_scale = {
        float(w): (share, figures["diversity_at_scale"][w]) for w, share in figures["accuracy_at_scale"].items()
    }
    by_kind = {
        _TITLES[name].format(**asked.model_dump()).replace("\n", " "): found.accuracy
        for name, found in kinds.items()
        if name != "none"
    }
    shares = figures["unconditional_shares"]
    draw_curves(folder / "curves.png", at_scale, by_kind, shares, figures["diversity_real"])
