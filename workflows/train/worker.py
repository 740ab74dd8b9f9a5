"""What each Ray Train worker runs: resume, step, log, checkpoint."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from ray import train
from ray.train import Checkpoint, CheckpointConsistencyMode
from ray.train.torch import get_device

from diffusion_core.errors import NonFinite
from workflows.config import TrainConfig
from workflows.embed.cache import EmbeddingCache
from workflows.train.losslog import LossLog
from workflows.train.objectives import Objective
from workflows.train.trainer import Trainer

SETTINGS: Final = "settings"


@final
@dataclass(frozen=True, eq=False)
class Settings:
    """What the driver tells every worker; folders are absolute, since workers change directory.

    Attributes:
        objective: what is trained.
        config: how.
        cache_folder: of the embedding cache.
        losses: the CSV file of figures.
    """

    objective: Objective
    config: TrainConfig
    cache_folder: Path
    losses: Path


def run_worker(arguments: dict[str, Any]) -> NonFinite | None:
    """Trains to the last step.

    Returns:
        Why it stopped before: a loss that is not finite is not raised, since Ray would begin again and come to
        the same place.
    """
    settings: Settings = arguments[SETTINGS]
    config = settings.config
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    trainer = Trainer(settings.objective, config, EmbeddingCache.open(settings.cache_folder), get_device())
    resumed = train.get_checkpoint()
    if resumed is not None:
        with resumed.as_directory() as folder:
            trainer.load(Path(folder))
    log = LossLog(settings.losses, trainer.steps_done) if trainer.share.rank == 0 else None
    while trainer.steps_done < config.steps:
        try:
            trainer.step()
        except NonFinite as error:
            return error
        last = trainer.steps_done == config.steps
        if last or trainer.steps_done % config.log_every == 0:
            figures = trainer.figures.take()
            if log is not None:
                log.append(trainer.steps_done, figures)
        if last or trainer.steps_done % config.checkpoint_every == 0:
            save_checkpoint(trainer)
    return None


def save_checkpoint(trainer: Trainer) -> None:
    """Reports a checkpoint, and returns when a worker that dies can no longer take it along."""
    with tempfile.TemporaryDirectory() as folder:
        trainer.save(Path(folder))
        name = f"step-{trainer.steps_done:08d}"
        train.report({"step": trainer.steps_done}, Checkpoint.from_directory(folder), checkpoint_dir_name=name)
        train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
