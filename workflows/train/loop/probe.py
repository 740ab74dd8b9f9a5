"""`steps: auto` becomes a number: some steps are made on the workers of the training, timed, and thrown away.

The number depends on the machine. So it is decided once, kept beside the losses, and found again by a later try, which
goes on bit for bit. It is no part of the stage's key, which holds `auto` and the budget.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Any, Final, cast

import torch
import torch.distributed as dist
from ray.train import RunConfig, TrainingFailedError
from ray.train.torch import TorchTrainer, get_device

from workflows.config.schema import TrainConfig
from workflows.package.kinds import register
from workflows.runtime.progress import Progress
from workflows.train.length import PACES, Length, TrainedPart
from workflows.train.loop.fit import Source, explained, scaling
from workflows.train.loop.trainer import Trainer
from workflows.train.loop.worker import SETTINGS, Settings
from workflows.train.losslog import LOSSES_FILE
from workflows.train.objectives import Objective

_PROBE: Final = "probe"
_WARM: Final = 2
_SECONDS: Final = 3.0
_FEWEST, _MOST = 3, 40
_ENDLESS: Final = 1 << 40


def with_steps(
    part: TrainedPart,
    objective: Objective,
    config: TrainConfig,
    source: Source,
    rows: int,
    folder: Path,
    progress: Progress,
) -> TrainConfig:
    """The configuration with a number for `steps: auto`; one that has a number stays as it is.

    The warm-up is a tenth of the steps at most.

    Args:
        part: whose pace it follows.
        objective: what is trained.
        config: how.
        source: what from.
        rows: to train on.
        folder: of the training; keeps the decision.
        progress: told how long the training will be.

    Raises:
        NonFinite: a loss or gradient of the first steps was not finite.
        StageFailed: workers were lost.
    """
    if config.steps != "auto":
        return config
    length = Length.load(folder)
    if length is None:
        endless = config.model_copy(update={"steps": _ENDLESS, "minutes": None})
        seconds = _step_seconds(objective, endless, source, folder)
        steps = PACES[part].steps(rows, config.batch_size, config.minutes, seconds)
        length = Length(steps, rows, config.batch_size, seconds)
        length.save(folder)
    progress.log(f"steps: auto is {length}")
    warmup = min(config.warmup_steps, max(1, length.steps // 10))
    return config.model_copy(update={"steps": length.steps, "minutes": None, "warmup_steps": warmup})


def _step_seconds(objective: Objective, config: TrainConfig, source: Source, folder: Path) -> float:
    run = RunConfig(name=_PROBE, storage_path=str(folder / _PROBE))
    settings = Settings(objective, config, source.folder, folder / _PROBE / LOSSES_FILE)
    trainer = TorchTrainer(
        _timed, train_loop_config={SETTINGS: settings}, scaling_config=scaling(config), run_config=run
    )
    try:
        return cast(float, trainer.fit().return_value)
    except TrainingFailedError as error:
        raise explained(error, config) from error
    finally:
        shutil.rmtree(folder / _PROBE, ignore_errors=True)


def _timed(arguments: dict[str, Any]) -> float:
    """Mean seconds of a step, on each worker; the slowest is waited for in every step."""
    register()
    settings: Settings = arguments[SETTINGS]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    trainer = Trainer(settings.objective, settings.config, settings.source, get_device())
    with contextlib.closing(trainer):
        _seconds(trainer, _WARM)
        # All workers make the same steps, so they agree on the longest time.
        return _seconds(trainer, _enough(_longest(_seconds(trainer, 1))))


def _seconds(trainer: Trainer, steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        trainer.step()
    return (time.perf_counter() - started) / steps


def _longest(seconds: float) -> float:
    gathered: list[float] = [seconds] * dist.get_world_size()
    dist.all_gather_object(gathered, seconds)
    return max(gathered)


def _enough(seconds: float) -> int:
    return max(_FEWEST, min(_MOST, int(_SECONDS / seconds)))
