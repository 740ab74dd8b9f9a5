"""What an evaluation draws, with labels or without: a job for each kind of guidance, the scales, the grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from workflows.config.schema import EvaluateConfig
from workflows.evaluate.measure import HEADLINE, Drawn
from workflows.evaluate.pictures import Column
from workflows.evaluate.prompts import Prompts
from workflows.evaluate.sampling import SampleJob
from workflows.options.guidance import KINDS, Guidance, GuidanceKind
from workflows.package.files import CLIP, scorer_folder

_GRID_ROWS: Final = 10


def job_name(kind: GuidanceKind, *, by_label: bool) -> str:
    """The name of a kind's job in figures: a kind that can be asked for a class or a prompt has two."""
    if not kind.takes_label:
        return kind.name
    return f"{kind.name}_label" if by_label else f"{kind.name}_prompt"


def titles(asked: EvaluateConfig) -> dict[str, str]:
    """The title of each job's column in the grid, by the job's name, in the table's order."""
    return {
        job_name(kind, by_label=by_label): _title(kind, asked, by_label=by_label)
        for kind in KINDS.values()
        for by_label in ((True, False) if kind.takes_label else (False,))
    }


def _title(kind: GuidanceKind, asked: EvaluateConfig, *, by_label: bool) -> str:
    if kind.takes_label:
        return f"{kind.title}\nby class" if by_label else f"{kind.title}\nby prompt"
    if kind.gradient:
        return f"{kind.title}\nguidance"
    return kind.title if kind.scale is None else f"{kind.title}\nw = {asked.guidance_settings[kind.scale]:g}"


def jobs_by_kind(
    asked: EvaluateConfig, prompts: Prompts, compared: Prompts, guided: Prompts, *, labelled: bool = True
) -> dict[str, SampleJob]:
    """A job for each kind of guidance, by name: the headline first, then the slow kinds.

    Args:
        asked: the `evaluate` section.
        prompts: of the headline.
        compared: of the other kinds.
        guided: of kinds with a gradient.
        labelled: whether the prompts have labels.
    """
    jobs: dict[str, SampleJob] = {}
    for kind in sorted(KINDS.values(), key=lambda kind: (kind.name != HEADLINE, not kind.gradient)):
        rows = guided if kind.gradient else prompts if kind.name == HEADLINE else compared
        job = SampleJob(
            rows,
            Guidance.of(kind.name).over(asked.guidance_settings),
            num_steps=asked.num_steps,
            eta=asked.gradient_eta if kind.gradient else 0.0,
        )
        if kind.takes_label and labelled:
            jobs[job_name(kind, by_label=True)] = replace(job, by_label=True)
        jobs[job_name(kind, by_label=False)] = job
    return jobs


def all_jobs(asked: EvaluateConfig, prompts: Prompts, *, labelled: bool = True) -> dict[str, SampleJob]:
    """All jobs of an evaluation by name; their rows are the same prompts and seeds, as far as they go.

    The headline comes first, with its rows in rounds over all combinations. The other jobs take rows of it
    that can be compared within their combination, and steps that cost a gradient take fewer of them.
    """
    compared = prompts.rows(prompts.comparable(asked.num_prompts_per_scale))
    guided = compared.first(asked.num_prompts_per_gradient)
    jobs = jobs_by_kind(asked, prompts, compared, guided, labelled=labelled)
    headline = jobs[HEADLINE]
    for scale in asked.scales:
        if scale not in (headline.guidance.scale, *_same_as(headline.guidance)):
            jobs[f"scale_{scale:g}"] = replace(headline, prompts=compared, guidance=headline.guidance.at(scale))
    return jobs


def _same_as(guidance: Guidance) -> dict[float, str]:
    """The scales at which a kind without one draws the same pictures, with the name of its job.

    Settings that are no scale spoil that: with an interval 0 is not the unconditional model, and with CFG++ 1 is not
    the plain conditional one.
    """
    return {} if guidance.further() else {0.0: "none", 1.0: "direct"}


def offered(jobs: dict[str, SampleJob], package: Path) -> dict[str, SampleJob]:
    """The jobs that a package can draw: the text tower of a pipeline comes without one for pictures."""
    looks = scorer_folder(package) == package / CLIP
    return {
        name: job
        for name, job in jobs.items()
        if looks or all(kind.needs != "image_tower" for kind in job.guidance.rows)
    }


def compared_scales(asked: EvaluateConfig, drawn: dict[str, Drawn]) -> dict[float, Drawn]:
    """The pictures at each scale, whether they were drawn for it or are those of another job."""
    headline = drawn[HEADLINE]
    found = {scale: drawn[name] for scale, name in _same_as(headline.job.guidance).items()}
    found[headline.job.guidance.scale] = headline.rows(headline.job.prompts.comparable(asked.num_prompts_per_scale))
    return {scale: found[scale] if scale in found else drawn[f"scale_{scale:g}"] for scale in asked.scales}


def grid(asked: EvaluateConfig, drawn: Mapping[str, Drawn], *, judged: bool) -> tuple[tuple[str, ...], list[Column]]:
    """The first prompts that all have, and a column for each kind that was drawn, one seed per row.

    Args:
        asked: the `evaluate` section.
        drawn: pictures by kind.
        judged: whether columns say which pictures are right; the unconditional one never does.
    """
    headline = drawn[HEADLINE]
    rows = headline.job.prompts.comparable(asked.num_prompts_per_scale)
    aligned = {**drawn, HEADLINE: headline.rows(rows)}
    count = min(_GRID_ROWS, *(len(found.images) for found in aligned.values()))
    shown = aligned[HEADLINE].job.prompts.first(count)
    columns = [
        Column(
            title,
            aligned[name].images[: len(shown)],
            aligned[name].right[: len(shown)] if judged and name != "none" else None,
        )
        for name, title in titles(asked).items()
        if name in aligned
    ]
    return shown.texts, columns
