"""Draws the same prompts and seeds with two packages and hands what is seen to the gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from workflows.config.schema import RunConfig
from workflows.data.dataset import Dataset
from workflows.errors import PromotionRefused
from workflows.evaluate.captions import ask_captions
from workflows.evaluate.label_free import Ruler
from workflows.evaluate.measure import asked_for
from workflows.evaluate.metrics.fidelity import LEAST, moments
from workflows.evaluate.metrics.held_out_loss import LOSS_ROWS, HeldOutLoss, held_out_loss
from workflows.evaluate.metrics.judge import Judge, train_judge
from workflows.evaluate.metrics.matcher import ClipEyes, Eyes, train_matcher
from workflows.evaluate.metrics.neighbours import Neighbours, find_neighbours
from workflows.evaluate.prompts import Prompts, ask
from workflows.evaluate.real import some
from workflows.evaluate.sampling import SampleJob, sample_jobs
from workflows.evaluate.vectors import ask_rows
from workflows.model.model import ModelPackage
from workflows.options.guidance import Guidance
from workflows.package.files import PackageCard, scorer_folder, verify
from workflows.release.gate import Comparison, Seen, compare
from workflows.runtime.progress import Progress
from workflows.towers.clip import load_clip


@final
@dataclass(frozen=True)
class _Version:
    """One version.

    Attributes:
        drawn: its samples.
        near: how near they are to training samples.
        loss: on held-out samples.
        measured_in: what that loss depends on beside the model: losses of two such are compared where it is equal.
    """

    drawn: NDArray[Any]
    near: Neighbours
    loss: HeldOutLoss
    measured_in: tuple[Any, ...]


def compare_packages(
    config: RunConfig, champion: Path, challenger: Path, dataset: Dataset, progress: Progress
) -> Comparison:
    """Compares two packages on the present Ray session.

    The same judges look at both, so that neither is measured with a ruler of its own. Memory: what both draw, as many
    real samples, and what the judges learn from (`workflows.evaluate.real.MOST`).

    Args:
        config: the rules, and how samples are drawn.
        champion: folder of the present holder.
        challenger: folder of the new version.
        dataset: gives prompts, and real samples.
        progress: told about finished samples.

    Raises:
        InvalidBundle: a package that was changed.
        PromotionRefused: one draws other samples than the data holds, so that nothing can be compared.
    """
    for folder in (champion, challenger):
        _check_shape(verify(folder)[0], dataset)
    prompts = _prompts(config, dataset)
    versions = [_version(config, folder, prompts, dataset, progress) for folder in (champion, challenger)]
    if dataset.info.rows.drawable:
        scorer = scorer_folder(champion) or scorer_folder(challenger)
        return _of_pictures(config, versions, prompts, dataset, scorer)
    return _of_vectors(config, versions, prompts, dataset)


def _prompts(config: RunConfig, dataset: Dataset) -> Prompts:
    gate = config.register_.gate
    if not dataset.info.rows.drawable:
        return ask_rows(some(dataset, "held_out", gate.num_prompts), gate.num_prompts, gate.seed)
    return (ask if dataset.info.attributes else ask_captions)(dataset, gate.num_prompts, gate.seed)


def _version(config: RunConfig, folder: Path, prompts: Prompts, dataset: Dataset, progress: Progress) -> _Version:
    package = ModelPackage.load(folder, "cuda" if torch.cuda.is_available() else "cpu")
    wanted = Guidance.of(config.register_.gate.guidance)
    offered = set(wanted.kinds) <= set(package.guidance)
    job = SampleJob(
        prompts,
        (wanted if offered else Guidance.of("none")).over(package.defaults.guidance),
        num_steps=config.evaluate.num_steps,
    )
    (drawn,) = sample_jobs(folder, [job], config.evaluate.batch_size, progress)
    progress.log("measuring")
    return _Version(
        drawn,
        find_neighbours(drawn, dataset, config.evaluate.compare_rows),
        held_out_loss(package, some(dataset, "held_out", LOSS_ROWS), config.register_.gate.seed),
        (package.shape, str(package.schedule.to_config()), package.reads_text, type(package.codec).__name__),
    )


def _of_pictures(
    config: RunConfig, versions: Sequence[_Version], prompts: Prompts, dataset: Dataset, scorer: Path | None
) -> Comparison:
    """Pictures are seen by a judge of classes where samples have labels, else by the matcher; and by a CLIP."""
    gate, judge = config.register_.gate, None
    clip = None if scorer is None else ClipEyes(load_clip(scorer))
    eyes: list[Eyes] = [] if dataset.info.attributes else [train_matcher(dataset, config.evaluate.seed)]
    if clip is not None:
        eyes.append(clip)
    elif not eyes:
        eyes = [train_matcher(dataset, config.evaluate.seed)]
    ruler = Ruler.of(dataset, prompts, eyes)
    looked, unseen = _told(versions, prompts, dataset, len(ruler.real.texts))
    if dataset.info.attributes:
        judge = train_judge(dataset, config.evaluate.seed)
        real = asked_for(dataset, prompts)
    else:
        real = ruler.real.split
        looked, unseen = [*looked, *_of_retrieval(ruler)], [*unseen, *_not_retrieved(ruler)]
    if clip is None:
        unseen.append("how a CLIP scores pictures and prompts: neither version has one that looks at pictures")
    else:
        looked.append("clip_score and clip_fd are seen by the CLIP whose texts the champion reads: they may flatter it")
    enough = len(real) >= LEAST
    if not enough:
        unseen.append(f"the distance to real pictures: {len(real)} are held out")
    seen = [_look(version, prompts, ruler, judge, clip, enough=enough) for version in versions]
    ceilings = _of_real(ruler, clip)
    if ceilings:
        told = ", ".join(f"{name} {value:.3g}" for name, value in ceilings.items())
        looked.append(f"no more counts than real pictures have: {told}")
    features = moments(ruler.eyes[-1].pictures(real.images))
    found = compare(gate, *_comparable(versions, seen, unseen), features, ceilings)
    return replace(found, looked=tuple(looked), unseen=tuple(unseen))


def _of_real(ruler: Ruler, clip: Eyes | None) -> dict[str, float]:
    """Measures held-out pictures and their captions by the figures that a judge may see too well."""
    images, texts = ruler.real.split.images, ruler.real.texts
    if not len(images):
        return {}
    found = {"retrieval": float(ruler.match(images, texts).first.mean())} if ruler.sees else {}
    if clip is not None:
        found["clip_score"] = float(ruler.match(images, texts, clip).scores.mean())
    return found


def _look(
    version: _Version, prompts: Prompts, ruler: Ruler, judge: Judge | None, clip: Eyes | None, *, enough: bool
) -> Seen:
    if judge is not None:
        right = {"accuracy": (judge(version.drawn) == prompts.targets).all(axis=1).astype(np.float64)}
    else:
        right = {"retrieval": ruler.match(version.drawn, prompts.texts).first} if ruler.sees else {}
    return Seen(
        right,
        None if clip is None else ruler.match(version.drawn, prompts.texts, clip).scores,
        moments(ruler.eyes[-1].pictures(version.drawn)) if enough else None,
        losses=version.loss.per_row,
        copies=version.near.copies,
    )


def _of_vectors(config: RunConfig, versions: Sequence[_Version], prompts: Prompts, dataset: Dataset) -> Comparison:
    real = some(dataset, "held_out", config.register_.gate.num_prompts)
    looked, unseen = _told(versions, prompts, dataset, len(real))
    enough = len(real) >= LEAST
    if not enough:
        unseen.append(f"the energy distance: {len(real)} rows are held out")
    seen = [
        Seen({}, rows=version.drawn if enough else None, losses=version.loss.per_row, copies=version.near.copies)
        for version in versions
    ]
    found = compare(config.register_.gate, *_comparable(versions, seen, unseen), real.images)
    return replace(found, looked=tuple(looked), unseen=tuple(unseen))


def _comparable(versions: Sequence[_Version], seen: Sequence[Seen], unseen: list[str]) -> tuple[Seen, Seen]:
    """Leaves out losses that depend on more than the model."""
    one, other = seen
    if versions[0].measured_in == versions[1].measured_in:
        return one, other
    unseen.append("the loss on held-out samples: the versions have different noise schedules or data")
    return replace(one, losses=None), replace(other, losses=None)


def _told(versions: Sequence[_Version], prompts: Prompts, dataset: Dataset, real: int) -> tuple[list[str], list[str]]:
    near = versions[1].near
    amount = f"{len(prompts)} samples of {len(set(prompts.texts))} captions by each version, {real} held-out samples"
    looked = [f"compared: {amount}, {near.compared} of {near.num_train} training samples"]
    unseen = []
    if not near.known:
        unseen.append("copies: too few real samples say how near an honest one may be")
    if near.compared < near.num_train:
        unseen.append(f"copies of the other {near.num_train - near.compared} training samples (evaluate.compare_rows)")
    if not dataset.info.attributes and dataset.info.rows.drawable:
        unseen.append("classes: the samples have no labels")
    return looked, unseen


def _of_retrieval(ruler: Ruler) -> list[str]:
    if not ruler.sees:
        return []
    there = ruler.match(ruler.real.split.images, ruler.real.texts)
    found = f"{there.chance:.1%} by chance, {there.first.mean():.0%} of real pictures"
    among = f"{len(ruler.candidates.texts)} captions"
    return [f"retrieval: the prompt among {among}, {found}; its judge was trained for this comparison"]


def _not_retrieved(ruler: Ruler) -> list[str]:
    if not ruler.candidates.comparable:
        return ["whether pictures fit their prompts: all captions are equal"]
    if not ruler.sees:
        return ["whether pictures fit their prompts: the judge does not know real ones by their captions"]
    return []


def _check_shape(card: PackageCard, dataset: Dataset) -> None:
    if tuple(card.shape) != tuple(dataset.info.shape):
        raise PromotionRefused(
            f"a version draws samples of shape {tuple(card.shape)}, the data holds {tuple(dataset.info.shape)}: "
            f"compare versions of one data set, or give --force"
        )
