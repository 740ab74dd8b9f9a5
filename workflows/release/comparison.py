"""Draws the same prompts and seeds with two packages and hands what is seen to the gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workflows.config.schema import RunConfig
from workflows.data.dataset import Dataset
from workflows.errors import PromotionRefused
from workflows.evaluate.measure import Drawn, asked_for, image_vectors, text_vectors
from workflows.evaluate.metrics.fidelity import moments
from workflows.evaluate.metrics.judge import train_judge
from workflows.evaluate.prompts import ask
from workflows.evaluate.sampling import SampleJob, sample_jobs
from workflows.options.guidance import Guidance
from workflows.package.files import PackageCard, scorer_folder, verify
from workflows.release.gate import Comparison, Seen, compare
from workflows.runtime.progress import Progress
from workflows.towers.clip import Clip, load_clip


def compare_packages(
    config: RunConfig, champion: Path, challenger: Path, dataset: Dataset, progress: Progress
) -> Comparison:
    """Compares two packages on the present Ray session.

    One judge and the champion's CLIP look at both, so that neither is measured with a ruler of its own.

    Args:
        config: the rules, and how pictures are drawn.
        champion: folder of the present holder.
        challenger: folder of the new version.
        dataset: gives prompts, and real pictures.
        progress: told about finished pictures.

    Raises:
        InvalidBundle: a package that was changed.
        PromotionRefused: one draws other pictures than the data holds, or nothing says what is seen in them, so that
            nothing can be compared.
    """
    if not dataset.info.rows.drawable:
        raise _unjudged(f"are {dataset.info.rows.name}")
    if not dataset.info.attributes:
        raise _unjudged("have no labels")
    gate = config.register_.gate
    prompts = ask(dataset, gate.num_prompts, gate.seed)
    clip, judge = load_clip(_scorer(champion, challenger)), train_judge(dataset, config.evaluate.seed)
    real = image_vectors(asked_for(dataset, prompts).images, clip)
    seen: list[Seen] = []
    for folder in (champion, challenger):
        card, _ = verify(folder)
        _check_shape(card, dataset)
        job = SampleJob(
            prompts,
            Guidance.of(gate.guidance).over(card.defaults.guidance),
            num_steps=config.evaluate.num_steps,
        )
        (images,) = sample_jobs(folder, [job], config.evaluate.batch_size, progress)
        seen.append(_look(Drawn(job, images, judge(images)), clip))
    return compare(gate, seen[0], seen[1], moments(real))


def _unjudged(what: str) -> PromotionRefused:
    return PromotionRefused(
        f"the data {what}, and the gate judges pictures of classes: compare the versions' evaluations, and give "
        f"--force, or set register.gate.enabled=false"
    )


def _scorer(*packages: Path) -> Path:
    """Folder of the first CLIP that looks at pictures: an imported pipeline has none."""
    found = [folder for package in packages if (folder := scorer_folder(package)) is not None]
    if not found:
        raise PromotionRefused(
            "both versions are imported, and neither has a CLIP that looks at pictures: give --force"
        )
    return found[0]


def _look(drawn: Drawn, clip: Clip) -> Seen:
    vectors = image_vectors(drawn.images, clip)
    scores = 100.0 * (vectors * text_vectors(drawn, clip)).sum(dim=1).clamp(min=0.0)
    return Seen(drawn.right.astype(np.float64), scores.double().cpu().numpy(), moments(vectors))


def _check_shape(card: PackageCard, dataset: Dataset) -> None:
    if tuple(card.shape) != tuple(dataset.info.shape):
        raise PromotionRefused(
            f"a version draws pictures of shape {tuple(card.shape)}, the data holds {tuple(dataset.info.shape)}: "
            f"compare versions of one data set, or give --force"
        )
