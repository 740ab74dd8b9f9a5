"""The CLIP stage: captioned images in, towers in an open_clip folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, cast

import ray
import torch
from ray.exceptions import RayTaskError

from diffusion_core.errors import RaverseError
from workflows.config.schema import ClipConfig, RunConfig, TrainConfig
from workflows.data.dataset import Dataset
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.towers.clip import load_clip
from workflows.towers.clip_files import import_clip, save_clip
from workflows.towers.clip_model import build_tokenizer, model_config
from workflows.towers.retrieval import Retrieval, retrieval
from workflows.towers.zero_shot import zero_shot
from workflows.train.clip.batches import DistinctPlan, Rows, meanings_of, vocabulary_of
from workflows.train.clip.fitted import fitted
from workflows.train.clip.objective import ClipObjective
from workflows.train.loop.fit import fit
from workflows.train.loop.probe import with_steps
from workflows.train.loop.tracking import tracked_training
from workflows.train.losslog import LOSSES_FILE, read_losses
from workflows.train.plots import plot_losses

_NOT_JUDGED: Final = (
    "not judged: no two held-out pictures have captions that differ, so nothing says whether captions mean anything to "
    "this CLIP, and prompts may change nothing"
)
TRAINING: Final = "training"
"""Folder of checkpoints and curves: the towers' own folder holds nothing else than open_clip reads."""
_WARMUP: Final = 0.1
_WEIGHT_DECAY: Final = 0.1
_ENDLESS: Final = 1 << 40
_MAX_CPUS: Final = 8


def train_clip(config: RunConfig, inputs: dict[str, Artifact], folder: Path, progress: Progress) -> dict[str, Any]:
    """Trains the towers on the training split, or loads them, and writes them to the folder.

    Args:
        config: the job; its `clip` section is read.
        inputs: the `data` artifact.
        folder: where the open_clip folder goes, and `training/`; a run that stopped there goes on.
        progress: told about optimizer steps.

    Returns:
        When trained here, the figures of `fit`; zero-shot accuracies on held-out samples, `weights_sha256`.

    Raises:
        InvalidClip: towers that open_clip cannot load, or ones without features per token.
        NonFinite: a loss or gradient was not finite.
        StageFailed: workers were lost too often.
    """
    if config.clip.source == "train":
        return _train(config, inputs["data"], folder, progress)
    progress.start(1, "towers")
    resources = _resources()
    task: Any = ray.remote(**resources)(_import)
    try:
        figures, told = ray.get(task.remote(config.clip.source, inputs["data"].folder, folder, **resources))
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, RaverseError) else error from None
    progress.advance(1)
    progress.log(told)
    return cast("dict[str, Any]", figures)


def _train(config: RunConfig, data: Artifact, folder: Path, progress: Progress) -> dict[str, Any]:
    dataset, training = Dataset.open(data.folder), folder / TRAINING
    training.mkdir(exist_ok=True)
    clip, remarks = fitted(config.clip, dataset)
    for remark in remarks:
        progress.log(remark)
    vocabulary = vocabulary_of(dataset, build_tokenizer(clip))
    objective = ClipObjective(clip, dataset.info.rows.side(clip.patch_size), vocabulary)
    loop, rows = loop_config(clip, meanings_of(dataset)), dataset.info.num_train
    with tracked_training(config, "clip", {"data_hash": dataset.info.data_hash}, training, progress):
        loop = with_steps("clip", objective, loop, data, rows, training, progress)
        trained = fit(objective, loop, data, training, progress)
    plot_losses(read_losses(training / LOSSES_FILE), training / "losses.png")
    model, tokenizer = objective.whole(trained.weights)
    size = model_config(clip, objective.side)
    save_clip(folder, model, tokenizer, name=f"raverse-{dataset.info.source}", source="train", model_cfg=size)
    # Far less work than the training was: no worker need be started for it.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures, told = _judged(folder, dataset, device)
    progress.log(told)
    return trained.metrics | figures


def loop_config(clip: ClipConfig, meanings: Rows) -> TrainConfig:
    """How the loop trains a CLIP: the section's own settings, and what CLIP is always trained with.

    A batch is whole groups, so it may be a little smaller than `clip.batch_size`. Of steps: auto, `with_steps` makes
    the warm-up a tenth too.
    """
    return TrainConfig(
        num_workers=clip.num_workers,
        sharding=clip.sharding,
        steps=clip.steps,
        minutes=clip.minutes,
        batch_size=DistinctPlan(meanings, clip.batch_size, clip.seed).batch_size,
        accumulate=clip.accumulate,
        learning_rate=clip.learning_rate,
        weight_decay=_WEIGHT_DECAY,
        warmup_steps=_ENDLESS if clip.steps == "auto" else max(1, round(_WARMUP * clip.steps)),
        ema_decay=0.0,
        precision=clip.precision,
        checkpoint_every=clip.checkpoint_every,
        cache_folder=clip.cache_folder,
        seed=clip.seed,
    )


def _resources() -> dict[str, int]:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = min(_MAX_CPUS, int(max(node.get("CPU", 0) for node in nodes)), int(ray.available_resources().get("CPU", 0)))
    return {"num_cpus": max(1, cpus), "num_gpus": int(any(node.get("GPU", 0) >= 1 for node in nodes))}


def _import(source: str, data_folder: Path, folder: Path, num_cpus: int, num_gpus: int) -> tuple[dict[str, Any], str]:
    """Runs in a Ray worker, where there is room for large towers."""
    torch.set_num_threads(num_cpus)
    import_clip(source, folder)
    device = torch.device("cuda" if num_gpus and torch.cuda.is_available() else "cpu")
    return _judged(folder, Dataset.open(data_folder), device)


def _judged(folder: Path, dataset: Dataset, device: torch.device) -> tuple[dict[str, Any], str]:
    """Figures over held-out pictures, and a sentence about them."""
    clip = load_clip(folder, device)
    figures: dict[str, Any] = zero_shot(clip, dataset, device)
    if dataset.info.attributes:
        found = Retrieval(len(dataset.info.candidate_captions), figures["zero_shot"]) if figures else None
    else:
        found = retrieval(clip, dataset, device)
        figures |= found.figures() if found is not None else {}
    return figures | {"weights_sha256": clip.identity.weights_sha256}, str(found or _NOT_JUDGED)
