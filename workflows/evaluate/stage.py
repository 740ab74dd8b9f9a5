"""The evaluation stage: a package in, figures and pictures out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from workflows.config.schema import EvaluateConfig, RunConfig
from workflows.data.dataset import Dataset
from workflows.evaluate.captions import ask_captions
from workflows.evaluate.jobs import all_jobs, compared_scales, grid, offered, titles
from workflows.evaluate.label_free import Ruler, by_kind, headline_figures, left_out, warn
from workflows.evaluate.measure import HEADLINE, Drawn, measure
from workflows.evaluate.metrics.judge import Judge, train_judge
from workflows.evaluate.metrics.matcher import ClipEyes, Matcher, train_matcher
from workflows.evaluate.packaging import assemble_package
from workflows.evaluate.pictures import draw_curves, draw_grid
from workflows.evaluate.prompts import ask
from workflows.evaluate.sampling import SampleJob, sample_jobs
from workflows.evaluate.vectors import evaluate_vectors
from workflows.model.model import ModelPackage
from workflows.package.files import PackageCard
from workflows.package.reference import PACKAGE
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.towers.clip import load_clip

_FIRST: Final = (
    *("accuracy", "accuracy_unseen", "classifier_label_accuracy", "classifier_prompt_accuracy"),
    *("retrieval", "clip_fd", "held_out_loss", "share_of_copies"),
)
"""The first figures, in this order, where they are measured: the table of a job shows four."""


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
    """Draws pictures with every kind of guidance, measures them, and compares scales.

    Where samples have labels, a judge of classes looks at the pictures too.

    Args:
        asked: the `evaluate` section.
        dataset: gives prompts, and real pictures.
        clip_folder: the towers.
        folder: holds `package/`; for `metrics.json`, `samples.png`, `neighbours.png`, with labels `curves.png`.
        progress: told about finished pictures.

    Returns:
        The figures of `workflows.evaluate.label_free`; with labels, also those of `workflows.evaluate.measure`.
    """
    labelled = bool(dataset.info.attributes)
    prompts = (ask if labelled else ask_captions)(dataset, asked.num_prompts, asked.seed)
    jobs = offered(all_jobs(asked, prompts, labelled=labelled), folder / PACKAGE)
    matching = ray.remote(num_cpus=1)(_train_matcher).remote(dataset.folder, asked.seed)
    judging = ray.remote(num_cpus=1)(_train_judge).remote(dataset.folder, asked.seed) if labelled else None
    images = sample_jobs(folder / PACKAGE, list(jobs.values()), asked.batch_size, progress, asked.workers)
    judge: Judge | None = None if judging is None else ray.get(judging)
    clip, matcher = load_clip(clip_folder), ray.get(matching)
    drawn = {name: _drawn(job, part, judge) for (name, job), part in zip(jobs.items(), images, strict=True)}
    kinds = {name: found for name, found in drawn.items() if name in titles(asked)}
    scales = compared_scales(asked, drawn)
    progress.log("measuring")
    ruler = Ruler.of(dataset, prompts, (matcher, ClipEyes(clip)))
    figures, helpless = by_kind(kinds, scales, ruler)
    package = ModelPackage.load(folder / PACKAGE, "cuda" if torch.cuda.is_available() else "cpu")
    figures |= headline_figures(kinds[HEADLINE], ruler, package, dataset, asked.compare_rows, folder, asked.seed)
    figures["judged"] = judge is not None
    if judge is not None:
        figures |= measure(kinds, scales, dataset, clip, judge)
        _draw_judged(asked, folder, kinds, figures)
    else:
        figures["helpless"] = list(helpless)
        _withhold(folder / PACKAGE, kinds, helpless)
        shown = {name: found for name, found in kinds.items() if name not in helpless}
        caption = f"DDIM, {asked.num_steps} steps, one seed per row. {left_out(asked, helpless)}"
        draw_grid(folder / "samples.png", *grid(asked, shown, judged=False), caption)
    figures = {name: figures[name] for name in _FIRST if name in figures} | figures
    warn(figures, progress)
    (folder / "metrics.json").write_text(json.dumps(figures, indent=2))
    return figures


_EVALUATIONS: Final[dict[str, Callable[[EvaluateConfig, Dataset, Path, Path, Progress], dict[str, Any]]]] = {
    "pictures": evaluate_pictures,
    "vectors": evaluate_vectors,
}
"""The evaluations by `RowType.name`."""


def _drawn(job: SampleJob, images: NDArray[np.uint8], judge: Judge | None) -> Drawn:
    return Drawn(job, images, np.zeros((len(images), 0), np.int64) if judge is None else judge(images))


def _train_judge(data_folder: Path, seed: int) -> Judge:
    return train_judge(Dataset.open(data_folder), seed)


def _train_matcher(data_folder: Path, seed: int) -> Matcher:
    return train_matcher(Dataset.open(data_folder), seed)


def _withhold(package: Path, kinds: Mapping[str, Drawn], helpless: Sequence[str]) -> None:
    """Tells the package which kinds of guidance the service does not offer: those of which no job helps."""
    found = {kind for name in helpless for kind in kinds[name].job.guidance.kinds}
    replace(PackageCard.load(package), withheld=tuple(sorted(found))).save(package)


def _draw_judged(asked: EvaluateConfig, folder: Path, kinds: dict[str, Drawn], figures: dict[str, Any]) -> None:
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
