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
from workflows.evaluate.captions import ask_captions
from workflows.evaluate.full import check_shape, log_results
from workflows.evaluate.prompts import Prompts, ask
from workflows.evaluate.real import some
from workflows.evaluate.sampling import SampleJob, sample_jobs
from workflows.evaluate.vectors import ask_rows
from workflows.model.model import ModelPackage
from workflows.options.guidance import KINDS, NEUTRAL_SETTINGS, SCALED, Guidance, GuidanceKind
from workflows.package.source import ModelSource
from workflows.runtime.progress import Progress
from workflows.sweep.plots import draw_guidance, draw_spacings, draw_steps_eta
from workflows.sweep.ruler import SweepRuler, distance_of, fit_of, make_ruler
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
    tables = plan_tables(config.sweep, prompts, package.guidance)
    ruler = make_ruler(package, dataset, prompts, config.evaluate.seed)
    points = [(name, point) for name, table in tables.items() for point in table]
    batch, workers = config.evaluate.batch_size, config.evaluate.workers
    images = sample_jobs(source.folder, [point.job for _, point in points], batch, progress, workers)
    progress.log("measuring")
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in tables}
    for (name, point), drawn in zip(points, images, strict=True):
        rows[name].append(dict(point.columns) | ruler.measure(point.job, drawn))
    if config.sweep.schedules:
        rows["schedules"] = _schedules(config, folder, tables["guidance"][:2][-1].job, ruler, progress)
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
    """What every point draws: each prompt twice or more, since diversity is measured within one."""
    if not dataset.info.rows.drawable:
        return ask_rows(some(dataset, "held_out", asked.num_pictures), asked.num_pictures, asked.seed)
    if not dataset.info.attributes:
        return ask_captions(dataset, asked.num_pictures, asked.seed)
    once = len(dataset.info.candidate_captions)
    prompts = ask(dataset, max(asked.num_pictures, 2 * once), asked.seed)
    return prompts.rows(prompts.comparable(asked.num_pictures))


def plan_tables(asked: SweepConfig, prompts: Prompts, offered: Sequence[str] = tuple(KINDS)) -> dict[str, list[Point]]:
    """Every table's points, of the kinds of guidance that the model offers.

    Scale 0 is the unconditional model, and classifier-free scale 1 the plain conditional.

    The scale alone is swept: a model's own interval, rescaling, projection or CFG++ is left out.
    """
    plain = SampleJob(prompts, Guidance.of("direct" if "direct" in offered else "none"), num_steps=asked.num_steps)
    steps_eta = [
        Point({"steps": steps, "eta": eta}, replace(plain, num_steps=steps, eta=eta))
        for steps in asked.steps
        for eta in asked.etas
    ]
    guidance = [
        Point({"guidance": job.guidance.name, "scale": job.guidance.scale, "eta": job.eta}, job)
        for kind in SCALED
        if kind.name in offered
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
    ends = [unconditional, direct] if "direct" in offered else [unconditional]
    return {"steps_eta": steps_eta, "guidance": [*ends, *guidance], "spacings": spacings}


def _only_scale(kind: GuidanceKind, scale: float) -> Guidance:
    return Guidance.of(kind.name).at(scale).over(NEUTRAL_SETTINGS)


def summarize(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """What the tables say: eta's cost at few and many steps, each guidance's best scale, what guidance recovers."""
    distance, fit = distance_of(rows["steps_eta"]), fit_of(rows["guidance"])
    table = {(row["steps"], row["eta"]): row[distance] for row in rows["steps_eta"]}
    etas = sorted({eta for _, eta in table})
    summary: dict[str, Any] = {
        f"{distance}_of_eta_1_over_0": {
            str(steps): table[steps, etas[-1]] / max(table[steps, etas[0]], 1e-12)
            for steps in sorted({steps for steps, _ in table})
            # An unbiased distance may be below 0, and has no ratio then.
            if table[steps, etas[0]] >= 0.0
        }
    }
    accuracy: dict[str, float] = {}
    for kind in (kind.name for kind in SCALED):
        curve = [row for row in rows["guidance"] if row["guidance"] == kind]
        if not curve:
            continue
        best = min(curve, key=lambda row: float(row[distance]))
        place = sorted(row["scale"] for row in curve).index(best["scale"])
        summary[kind] = {
            "best_scale": best["scale"],
            f"best_{distance}": best[distance],
            "inside": int(0 < place < len(curve) - 1),
        }
        if fit is not None:
            accuracy[kind] = max(row[fit] for row in curve)
    if fit is None:
        return summary
    ends = {row["guidance"]: row[fit] for row in rows["guidance"] if row["guidance"] in ("none", "direct")}
    gap = ends.get("direct", 0.0) - ends["none"]
    if gap > 0 and "classifier" in accuracy:
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
    config: RunConfig, folder: Path, plain: SampleJob, ruler: SweepRuler, progress: Progress
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for kind, package in train_schedules(config, folder / "schedules", progress).items():
        (images,) = sample_jobs(package, [plain], config.evaluate.batch_size, progress, config.evaluate.workers)
        rows.append({"schedule": kind} | ruler.measure(plain, images))
    return rows
