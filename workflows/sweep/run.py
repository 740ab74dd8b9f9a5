"""`raverse sweep`: one model over samplers, steps, eta, guidance and spacings, as tables and plots.

Every point draws the same prompts with the same seeds, so that points differ by what is swept alone.

    steps_eta.csv    steps x eta of DDIM (the shape of DDIM's table 1)
    guidance.csv     the scale of classifier-free, classifier and CLIP guidance: fidelity against diversity
    spacings.csv     samplers x spacings
    schedules.csv    noise schedules, each with a model of its own, where `sweep.schedules` names any
    summary.json     what the tables say in a few numbers
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch

from workflows.config.schema import RunConfig, SweepConfig
from workflows.data.dataset import Dataset
from workflows.errors import InvalidClip
from workflows.evaluate.full import check_shape, log_results
from workflows.evaluate.measure import Drawn, asked_for, image_vectors, spread, text_vectors
from workflows.evaluate.metrics.fidelity import fidelity
from workflows.evaluate.metrics.judge import Judge, train_judge
from workflows.evaluate.metrics.scores import clip_score
from workflows.evaluate.prompts import Prompts, ask
from workflows.evaluate.sampling import SampleJob, sample_jobs
from workflows.model.model import ModelPackage
from workflows.options.guidance import NEUTRAL_SETTINGS, SCALED, Guidance, GuidanceKind
from workflows.package.source import ModelSource
from workflows.runtime.progress import Progress
from workflows.sweep.plots import draw_guidance, draw_spacings, draw_steps_eta
from workflows.sweep.schedules import train_schedules


@final
@dataclass(frozen=True)
class Point:
    """What is swept at one point, by column, and what it draws."""

    columns: Mapping[str, Any]
    job: SampleJob


def run_sweep(config: RunConfig, source: ModelSource, dataset: Dataset, progress: Progress) -> Path:
    """Measures a model at every point of the configuration's `sweep` section, on the present Ray session.

    Returns:
        The folder of tables and plots.

    Raises:
        InvalidBundle: the package was changed.
        InvalidData: the data holds pictures of another shape than the model draws.
        TrackingUnreachable: the store cannot be used; the results stay on disk.
    """
    package = ModelPackage.load(source.folder, "cuda" if torch.cuda.is_available() else "cpu")
    check_shape(package, dataset)
    folder = config.run_folder / "sweeps" / source.label
    folder.mkdir(parents=True, exist_ok=True)
    prompts = plan_prompts(config.sweep, dataset)
    tables = plan_tables(config.sweep, prompts)
    ruler = _Ruler(package, dataset, prompts, train_judge(dataset, config.evaluate.seed))
    points = [(name, point) for name, table in tables.items() for point in table]
    batch, workers = config.evaluate.batch_size, config.evaluate.workers
    images = sample_jobs(source.folder, [point.job for _, point in points], batch, progress, workers)
    progress.log("measuring")
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in tables}
    for (name, point), drawn in zip(points, images, strict=True):
        rows[name].append(dict(point.columns) | ruler.measure(point.job, drawn))
    if config.sweep.schedules:
        rows["schedules"] = _schedules(config, folder, tables["guidance"][1].job, ruler, progress)
    for name, table in rows.items():
        write_csv(folder / f"{name}.csv", table)
    summary = summarize(rows)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2))
    draw_steps_eta(folder / "steps_eta.png", rows["steps_eta"])
    draw_guidance(folder / "guidance.png", rows["guidance"])
    draw_spacings(folder / "spacings.png", rows["spacings"])
    log_results(config, source, folder, summary)
    return folder


def plan_prompts(asked: SweepConfig, dataset: Dataset) -> Prompts:
    """What every point draws: each combination twice or more, since diversity is measured within a prompt."""
    once = len(dataset.info.candidate_captions)
    prompts = ask(dataset, max(asked.num_pictures, 2 * once), asked.seed)
    return prompts.rows(prompts.comparable(asked.num_pictures))


def plan_tables(asked: SweepConfig, prompts: Prompts) -> dict[str, list[Point]]:
    """Every table's points. Scale 0 is the unconditional model, and classifier-free scale 1 the plain conditional.

    The scale alone is swept: a model's own interval, rescaling, projection or CFG++ is left out.
    """
    plain = SampleJob(prompts, Guidance.of("direct"), num_steps=asked.num_steps)
    steps_eta = [
        Point({"steps": steps, "eta": eta}, replace(plain, num_steps=steps, eta=eta))
        for steps in asked.steps
        for eta in asked.etas
    ]
    guidance = [
        Point({"guidance": job.guidance.name, "scale": job.guidance.scale, "eta": job.eta}, job)
        for kind in SCALED
        for job in (
            replace(plain, guidance=_only_scale(kind, scale), eta=asked.gradient_eta if kind.gradient else 0.0)
            for scale in asked.scales(kind)
        )
    ]
    spacings = [
        Point({"sampler": sampler, "spacing": spacing}, replace(plain, sampler=sampler, spacing=spacing))
        for sampler in asked.samplers
        for spacing in asked.spacings
    ]
    unconditional = Point({"guidance": "none", "scale": 0.0, "eta": 0.0}, replace(plain, guidance=Guidance.of("none")))
    direct = Point({"guidance": "direct", "scale": 1.0, "eta": 0.0}, plain)
    return {"steps_eta": steps_eta, "guidance": [unconditional, direct, *guidance], "spacings": spacings}


def _only_scale(kind: GuidanceKind, scale: float) -> Guidance:
    return Guidance.of(kind.name).at(scale).over(NEUTRAL_SETTINGS)


def summarize(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """What the tables say: eta's cost at few and many steps, each guidance's best scale, what guidance recovers."""
    table = {(row["steps"], row["eta"]): row["clip_fd"] for row in rows["steps_eta"]}
    etas = sorted({eta for _, eta in table})
    summary: dict[str, Any] = {
        "clip_fd_of_eta_1_over_0": {
            str(steps): table[steps, etas[-1]] / max(table[steps, etas[0]], 1e-12)
            for steps in sorted({steps for steps, _ in table})
        }
    }
    accuracy: dict[str, float] = {}
    for kind in (kind.name for kind in SCALED):
        curve = [row for row in rows["guidance"] if row["guidance"] == kind]
        best = min(curve, key=lambda row: float(row["clip_fd"]))
        place = sorted(row["scale"] for row in curve).index(best["scale"])
        summary[kind] = {
            "best_scale": best["scale"],
            "best_clip_fd": best["clip_fd"],
            "inside": int(0 < place < len(curve) - 1),
        }
        accuracy[kind] = max(row["accuracy"] for row in curve)
    ends = {row["guidance"]: row["accuracy"] for row in rows["guidance"] if row["guidance"] in ("none", "direct")}
    gap = ends["direct"] - ends["none"]
    if gap > 0:
        summary["classifier_recovers"] = (accuracy["classifier"] - ends["none"]) / gap
    return summary


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows of the same columns."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(
            {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()} for row in rows
        )


def _schedules(
    config: RunConfig, folder: Path, plain: SampleJob, ruler: _Ruler, progress: Progress
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for kind, package in train_schedules(config, folder / "schedules", progress).items():
        (images,) = sample_jobs(package, [plain], config.evaluate.batch_size, progress, config.evaluate.workers)
        rows.append({"schedule": kind} | ruler.measure(plain, images))
    return rows


class _Ruler:
    """Measures pictures against the same real ones, with one CLIP and one judge."""

    def __init__(self, package: ModelPackage, dataset: Dataset, prompts: Prompts, judge: Judge) -> None:
        clip = package.scorer()
        if clip is None:
            raise InvalidClip(f"{package.folder} has no CLIP that looks at pictures: sweep a fine-tune of it")
        self._clip, self._judge = clip, judge
        self._real = image_vectors(asked_for(dataset, prompts).images, self._clip)

    def measure(self, job: SampleJob, images: Any) -> dict[str, float]:
        found = Drawn(job, images, self._judge(images))
        vectors = image_vectors(images, self._clip)
        return fidelity(self._real, vectors) | {
            "clip_score": clip_score(vectors, text_vectors(found, self._clip)),
            "accuracy": found.accuracy,
            "diversity": spread(found, self._clip),
        }
