"""What each Ray Train worker runs: resume, step, log, checkpoint."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from ray import train
from ray.train.torch import get_device

from diffusion_core.errors import NonFinite
from workflows.config.schema import TrainConfig
from workflows.package.kinds import register
from workflows.storage.atomic import remove_partial
from workflows.train.flop import Speed
from workflows.train.loop.checkpoints import Checkpoints
from workflows.train.loop.grid_clock import GridClock
from workflows.train.loop.grids import GRIDS, draw_grid
from workflows.train.loop.snapshots import SNAPSHOTS, write_snapshots
from workflows.train.loop.trainer import Trainer
from workflows.train.losslog import LossLog
from workflows.train.objectives import Objective

SETTINGS: Final = "settings"


@final
@dataclass(frozen=True, eq=False)
class Settings:
    """What the driver tells every worker; folders are absolute, since workers change directory.

    Attributes:
        objective: what is trained.
        config: how.
        source: folder of the artifact that it learns from.
        losses: the CSV file of figures; snapshots and grids lie beside it.
    """

    objective: Objective
    config: TrainConfig
    source: Path
    losses: Path


def run_worker(arguments: dict[str, Any]) -> NonFinite | None:
    """Trains to the last step.

    Returns:
        Why it stopped before: a loss that is not finite is not raised, since Ray would begin again and come to
        the same place.
    """
    register()
    settings: Settings = arguments[SETTINGS]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    trainer = Trainer(settings.objective, settings.config, settings.source, get_device())
    with contextlib.closing(trainer):
        return _train(trainer, settings)


def _train(trainer: Trainer, settings: Settings) -> NonFinite | None:
    checkpoints = Checkpoints(trainer)
    checkpoints.resume()
    log = _begun_log(settings.losses, trainer.steps_done) if trainer.share.rank == 0 else None
    flop = settings.objective.flop_per_sample(trainer.batches.num_tokens)
    speed, warned = Speed.measured(flop, trainer.device, trainer.share), False
    clock = GridClock(trainer)
    while trainer.steps_done < settings.config.num_steps:
        try:
            trainer.step()
        except NonFinite as error:
            return checkpoints.pointing_at_last(error)
        if _due(trainer, settings.config.log_every):
            _log(trainer, log, speed)
            checkpoints.poll()
            leaving = train.get_preemption_info() is not None
            if leaving and not warned:
                checkpoints.save()
            warned = leaving
        if _due(trainer, settings.config.checkpoint_every):
            checkpoints.save()
        _draw(trainer, settings.losses.parent, clock)
    checkpoints.close()
    return None


def _begun_log(losses: Path, steps_done: int) -> LossLog:
    """The log of the first worker, after what a killed one had not finished beside it is gone."""
    for name in (SNAPSHOTS, GRIDS):
        remove_partial(losses.parent / name)
    return LossLog(losses, steps_done)


def _due(trainer: Trainer, every: int) -> bool:
    """At every so many steps and at the last one; never if it is 0."""
    return every > 0 and (trainer.steps_done % every == 0 or trainer.steps_done == trainer.config.num_steps)


def _log(trainer: Trainer, log: LossLog | None, speed: Speed) -> None:
    figures = trainer.figures.take()
    if log is not None:
        log.append(trainer.steps_done, {**figures, **speed.figures(figures["samples_per_second"])})


def _draw(trainer: Trainer, folder: Path, clock: GridClock) -> None:
    config = trainer.config
    if config.ema_widths and _due(trainer, config.snapshot_every or config.num_steps):
        write_snapshots(trainer, folder)
    if config.sample_every == "auto":
        clock.draw(folder)
    elif _due(trainer, config.sample_every):
        draw_grid(trainer, folder)
