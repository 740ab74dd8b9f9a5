"""The two training stages: cache in, model bundle and loss curves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diffusion_core.bundle import ModelBundle
from diffusion_core.prediction import Parameterization
from workflows.config.schema import DenoiserConfig, RunConfig
from workflows.data.dataset import Dataset
from workflows.embed.cache import EmbeddingCache
from workflows.package.base import Base, base_of, schedule_of
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.train.batches import open_cache
from workflows.train.finetune import Start, save_tuned
from workflows.train.loop.fit import Trained, fit
from workflows.train.loop.probe import with_steps
from workflows.train.loop.tracking import tracked_training
from workflows.train.losslog import LOSSES_FILE, read_losses
from workflows.train.networks import classifier_network, denoiser_network, noise_schedule
from workflows.train.objectives import ClassifierObjective, DenoiserObjective, NoisyObjective
from workflows.train.plots import plot_accuracy, plot_losses
from workflows.train.validation import accuracy_by_level


def train_denoiser(config: RunConfig, inputs: dict[str, Artifact], folder: Path, progress: Progress) -> dict[str, Any]:
    """Trains the denoiser.

    Args:
        config: the job; its `denoiser` section is read.
        inputs: the `data` and `embed` artifacts.
        folder: for `bundle/`, `checkpoints/`, `losses.csv`, `losses.png`; a run that stopped there goes on.
        progress: told about optimizer steps.

    Returns:
        `loss`, `samples_per_second`, `steps`, `parameters`, `data_wait`, `overhead_seconds`, `bundle_hash`.

    Raises:
        NonFinite: a loss or gradient was not finite.
        StageFailed: workers were lost too often.
    """
    section, base = config.denoiser, base_of(config)
    cache = open_cache(inputs["embed"].folder, section.train)
    objective = denoiser_objective(section, cache, base)
    rows = cache.num_samples("train")
    with tracked_training(config, "denoiser", _hashes(cache), folder, progress):
        train = with_steps("denoiser", objective, section.train, cache, rows, folder, progress)
        trained = fit(objective, train, cache, folder, progress)
    if base is not None and objective.start is not None:
        plot_losses(read_losses(folder / LOSSES_FILE), folder / "losses.png")
        bundle = save_tuned(folder, base, objective.start, trained.weights, trained.ema)
        return trained.metrics | {"bundle_hash": bundle.hash, "base_hash": base.bundle.hash}
    bundle = _save(objective, trained, cache, folder, section.parameterization)
    return trained.metrics | {"bundle_hash": bundle.hash}


def denoiser_objective(section: DenoiserConfig, cache: EmbeddingCache, base: Base | None) -> DenoiserObjective:
    """What the denoiser learns: from nothing, or from a base, which says all but how it is trained."""
    if base is None:
        network, schedule = denoiser_network(section.network, cache), noise_schedule(section.schedule)
        return DenoiserObjective(network, schedule, section.parameterization, section.train.weighting)
    start, bundle = Start.of(base, section.lora), base.bundle
    return DenoiserObjective(bundle.config, bundle.schedule, base.parameterization, section.train.weighting, start)


def train_classifier(
    config: RunConfig, inputs: dict[str, Artifact], folder: Path, progress: Progress
) -> dict[str, Any]:
    """Trains the noisy-image classifier, and measures it on held-out samples at several levels.

    Args:
        config: the job; its `classifier` section and the denoiser's schedule are read.
        inputs: the `data` and `embed` artifacts.
        folder: as for the denoiser, and `accuracy_by_level.png`.
        progress: told about optimizer steps.

    Returns:
        As the denoiser, `label_accuracy` (with classes) and `text_accuracy` at the cleanest level measured, and the
        mean `calibration_error` over the levels (with classes).

    Raises:
        NonFinite: a loss or gradient was not finite.
        StageFailed: workers were lost too often.
    """
    section, cache = config.classifier, open_cache(inputs["embed"].folder, config.classifier.train)
    dataset = Dataset.open(inputs["data"].folder)
    candidates = cache.captions.pooled(cache.caption_positions(dataset.info.candidate_captions))
    network = classifier_network(section.network, cache, len(dataset.info.class_names), len(candidates))
    schedule = schedule_of(base_of(config), noise_schedule(config.denoiser.schedule))
    objective = ClassifierObjective(network, schedule, candidates)
    rows = cache.num_samples("train")
    with tracked_training(config, "classifier", _hashes(cache), folder, progress):
        train = with_steps("classifier", objective, section.train, cache, rows, folder, progress)
        trained = fit(objective, train, cache, folder, progress)
    bundle = _save(objective, trained, cache, folder)
    meanings = torch.from_numpy(dataset.all_combinations("held_out"))
    measured = accuracy_by_level(bundle, cache, meanings)
    plot_accuracy(measured, folder / "accuracy_by_level.png")
    figures = {"text_accuracy": measured[0].text} if measured else {}
    by_level: dict[str, float] = {}
    if dataset.info.class_names and measured:
        figures = {"label_accuracy": measured[0].label} | figures
        figures["calibration_error"] = sum(point.calibration_error for point in measured) / len(measured)
        by_level = {f"accuracy_at_{point.level}": point.label for point in measured}
    return trained.metrics | figures | by_level | {"bundle_hash": bundle.hash}


def _hashes(cache: EmbeddingCache) -> dict[str, str]:
    return {"data_hash": cache.manifest.data_hash, "cache_key": cache.key}


def _save(
    objective: NoisyObjective,
    trained: Trained,
    cache: EmbeddingCache,
    folder: Path,
    target: Parameterization | None = None,
) -> ModelBundle:
    plot_losses(read_losses(folder / LOSSES_FILE), folder / "losses.png")
    return ModelBundle.save(
        folder / "bundle",
        objective.config,
        trained.weights,
        schedule=objective.schedule,
        parameterization=target,
        ema=trained.ema,
        clip=cache.manifest.clip,
    )
