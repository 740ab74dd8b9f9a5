"""What an evaluation draws, with labels or without: a job for each kind of guidance, the scales, the grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from workflows.config.schema import EvaluateConfig
from workflows.evaluate.measure import Drawn
from workflows.evaluate.pictures import Column
from workflows.evaluate.prompts import Prompts
from workflows.evaluate.sampling import SampleJob
from workflows.package.files import CLIP, scorer_folder

TITLES: Final = {
    "none": "unconditional",
    "direct": "direct",
    "classifier_free": "classifier-free\nw = {guidance_scale:g}",
    "classifier_label": "classifier\nby class",
    "classifier_prompt": "classifier\nby prompt",
    "clip": "CLIP\nguidance",
}
"""Of each kind's column in the grid; formatted with the `evaluate` section."""
_GRID_ROWS: Final = 10


def plan_jobs(asked: EvaluateConfig, prompts: Prompts) -> dict[str, SampleJob]:
    """What is to be drawn, by name; the rows of all jobs are the same prompts and seeds, as far as they go.

    The headline comes first, with its rows in rounds over all combinations. The other jobs take rows of it
    that can be compared within their combination, and steps that cost a gradient take fewer of them.
    """
    compared = prompts.rows(prompts.comparable(asked.num_prompts_per_scale))
    guided = compared.first(asked.num_prompts_per_gradient)
    headline = SampleJob(prompts, "classifier_free", num_steps=asked.num_steps, guidance_scale=asked.guidance_scale)
    steered = replace(headline, prompts=guided, eta=asked.gradient_eta)
    gradient = replace(steered, guidance="classifier", classifier_scale=asked.classifier_scale)
    jobs = {
        "classifier_free": headline,
        "clip": replace(steered, guidance="clip", clip_scale=asked.clip_scale),
        "classifier_label": replace(gradient, by_label=True),
        "classifier_prompt": gradient,
        "direct": replace(headline, prompts=compared, guidance="direct"),
        "none": replace(headline, prompts=compared, guidance="none"),
    }
    for scale in asked.scales:
        if scale not in (0.0, 1.0, asked.guidance_scale):
            jobs[f"scale_{scale:g}"] = replace(headline, prompts=compared, guidance_scale=scale)
    return jobs


def offered(jobs: dict[str, SampleJob], package: Path) -> dict[str, SampleJob]:
    """Without what a package cannot draw: the text tower of a pipeline comes without one for pictures."""
    looks = scorer_folder(package) == package / CLIP
    return {name: job for name, job in jobs.items() if looks or job.guidance != "clip"}


def compared_scales(asked: EvaluateConfig, drawn: dict[str, Drawn]) -> dict[float, Drawn]:
    """The pictures at each scale: 0 is the unconditional model, 1 the plain conditional one."""
    headline = drawn["classifier_free"]
    found = {
        0.0: drawn["none"],
        1.0: drawn["direct"],
        asked.guidance_scale: headline.rows(headline.job.prompts.comparable(asked.num_prompts_per_scale)),
    }
    return {scale: found[scale] if scale in found else drawn[f"scale_{scale:g}"] for scale in asked.scales}


def grid(asked: EvaluateConfig, drawn: Mapping[str, Drawn], *, judged: bool) -> tuple[tuple[str, ...], list[Column]]:
    """The first prompts, and a column for each kind that was drawn, one seed per row.

    Args:
        asked: the `evaluate` section.
        drawn: pictures by kind.
        judged: whether columns say which pictures are right; the unconditional one never does.
    """
    shown = drawn["classifier_prompt"].job.prompts.first(_GRID_ROWS)
    headline = drawn["classifier_free"]
    rows = headline.job.prompts.comparable(asked.num_prompts_per_scale)
    aligned = {**drawn, "classifier_free": headline.rows(rows)}
    columns = [
        Column(
            title.format(**asked.model_dump()),
            aligned[name].images[: len(shown)],
            aligned[name].right[: len(shown)] if judged and name != "none" else None,
        )
        for name, title in TITLES.items()
        if name in aligned
    ]
    return shown.texts, columns
