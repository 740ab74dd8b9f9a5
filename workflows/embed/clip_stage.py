"""The CLIP stage: captioned images in, towers in an open_clip folder out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import RayTaskError

from diffusion_core.errors import RaverseError
from workflows.artifact import Artifact
from workflows.config import ClipConfig, RunConfig
from workflows.progress import Progress

_REPORT_EVERY: Final = 10
_MAX_CPUS: Final = 8


def train_clip(config: RunConfig, inputs: dict[str, Artifact], folder: Path, progress: Progress) -> dict[str, Any]:
    """Trains the towers on the training split, or loads them, and writes them to the folder.

    Args:
        config: the job; its `clip` section is read.
        inputs: the `data` artifact.
        folder: where the open_clip folder goes.
        progress: told about optimizer steps.

    Returns:
        `loss` of the last steps when trained here, zero-shot accuracies on held-out samples, `weights_sha256`.

    Raises:
        InvalidClip: towers that open_clip cannot load, or ones without features per token.
    """
    resources = _resources()
    task: Any = ray.remote(num_returns="streaming", **resources)(_make_towers)
    progress.start(config.clip.steps if config.clip.source == "train" else 1, "steps")
    metrics: dict[str, Any] = {}
    try:
        for reference in task.remote(config.clip, inputs["data"].folder, folder, **resources):
            done, metrics = ray.get(reference)
            progress.advance(done, **{k: v for k, v in metrics.items() if isinstance(v, float)})
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, RaverseError) else error from None
    return metrics


def _resources() -> dict[str, int]:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = min(_MAX_CPUS, int(max(node.get("CPU", 0) for node in nodes)), int(ray.available_resources().get("CPU", 0)))
    return {"num_cpus": max(1, cpus), "num_gpus": int(any(node.get("GPU", 0) >= 1 for node in nodes))}


def _make_towers(
    config: ClipConfig, data_folder: Path, folder: Path, num_cpus: int, num_gpus: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Runs in a Ray worker: yields (steps done, figures so far)."""
    import torch

    from workflows.data.dataset import Dataset
    from workflows.embed.clip import load_clip
    from workflows.embed.clip_files import import_clip, save_clip
    from workflows.embed.clip_training import build_model, fit, model_config, tower_side
    from workflows.embed.zero_shot import zero_shot

    torch.set_num_threads(num_cpus)
    device = torch.device("cuda" if num_gpus and torch.cuda.is_available() else "cpu")
    dataset = Dataset.open(data_folder)
    figures: dict[str, Any] = {}
    if config.source == "train":
        side = tower_side(config, dataset.info.shape)
        model, tokenizer = build_model(config, side)
        for step, loss in enumerate(fit(model, tokenizer, dataset.read("train"), config, device), start=1):
            figures = {"loss": loss}
            if step % _REPORT_EVERY == 0 and step < config.steps:
                yield step, figures
        name = f"raverse-{dataset.info.source}"
        cfg = model_config(config, side)
        save_clip(folder, model, tokenizer, name=name, source=config.source, model_cfg=cfg)
    else:
        import_clip(config.source, folder)
    clip = load_clip(folder, device)
    figures |= zero_shot(clip, dataset, device) | {"weights_sha256": clip.identity.weights_sha256}
    yield config.steps if config.source == "train" else 1, figures
