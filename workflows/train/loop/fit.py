"""The driver's side: one Ray Train run, from scratch or from where an earlier try stopped."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast, final

import ray
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, Result, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load

from diffusion_core.errors import RaverseError
from workflows.config.schema import TrainConfig
from workflows.errors import StageFailed, StorageUnwritable
from workflows.runtime.progress import Progress
from workflows.train.loop.checkpoints import sweep_orphans
from workflows.train.loop.grids import GRIDS
from workflows.train.loop.worker import SETTINGS, Settings, run_worker
from workflows.train.losslog import LOSSES_FILE, following, read_losses
from workflows.train.objectives import Objective

CHECKPOINTS: Final = "checkpoints"
_NO_SPACE: Final = os.strerror(errno.ENOSPC)


class Source(Protocol):
    """A finished artifact in storage that every worker reads: an embedding cache, or the data."""

    @property
    def key(self) -> str:
        """What it was made from, as one hash."""
        ...

    @property
    def folder(self) -> Path:
        """Where it lies."""
        ...


@final
@dataclass(frozen=True, eq=False)
class Trained:
    """A finished run.

    Attributes:
        weights: of the network, whole: those that were trained.
        ema: their moving average, whole.
        metrics: final loss, speed and size.
    """

    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    metrics: dict[str, Any]


def fit(objective: Objective, config: TrainConfig, source: Source, folder: Path, progress: Progress) -> Trained:
    """Trains on the workers that the cluster has room for.

    A run that was stopped goes on from its last checkpoint, at any number of workers and in any sharding: its name
    holds what `TrainConfig.keyed` does.

    Args:
        objective: what is trained.
        config: how.
        source: what from.
        folder: for `losses.csv` and `checkpoints/`, in storage that every worker writes.
        progress: told about optimizer steps.

    Raises:
        NonFinite: a loss or gradient was not finite.
        StageFailed: workers were lost more often than `max_failures`.
    """
    started, earlier = time.perf_counter(), _seconds_of(folder / LOSSES_FILE)
    progress.start(config.num_steps, "steps")
    # Ray takes up whatever run bears the name, finished or not: the name says all that determines the result.
    run = RunConfig(
        name=fingerprint(objective, config, source),
        storage_path=str(folder / CHECKPOINTS),
        failure_config=FailureConfig(max_failures=config.max_failures),
        checkpoint_config=CheckpointConfig(num_to_keep=config.keep_checkpoints),
    )
    settings = Settings(objective, config, source.folder, folder / LOSSES_FILE)
    for orphan in sweep_orphans(folder / CHECKPOINTS / cast(str, run.name)):
        progress.log(f"removed {orphan}, which an earlier try left half-written")
    with _finished(settings, run, progress).as_directory() as path:
        weights, ema = read_weights(objective, Path(path))
    progress.advance(config.num_steps)
    num_parameters = sum(value.numel() for value in weights.values())
    return Trained(weights, ema, _metrics(settings, num_parameters, earlier + time.perf_counter() - started))


@final
@dataclass(frozen=True)
class Recorded:
    """A checkpoint that counts, and the optimizer steps before it."""

    checkpoint: Checkpoint
    step: int


def last_checkpoint(run: RunConfig) -> Recorded | None:
    """Where an earlier try of this run stopped or ended; None if it recorded no checkpoint."""
    folder = Path(cast(str, run.storage_path)) / cast(str, run.name)
    try:
        result = Result.from_path(folder)
    except RuntimeError:
        return None
    if result.metrics is None or result.checkpoint is None:
        return None
    return Recorded(result.checkpoint, int(result.metrics["step"]))


def _finished(settings: Settings, run: RunConfig, progress: Progress) -> Checkpoint:
    """The checkpoint of the last step: that of an earlier try, or one that is trained now."""
    last = last_checkpoint(run)
    if last is not None and last.step == settings.config.num_steps:
        return last.checkpoint
    progress.log("starts at step 0" if last is None else f"goes on from the checkpoint of step {last.step}")
    return _run(settings, run, progress)


def _run(settings: Settings, run: RunConfig, progress: Progress) -> Checkpoint:
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={SETTINGS: settings},
        scaling_config=scaling(settings.config),
        run_config=run,
    )
    try:
        with following(settings.losses, progress, settings.losses.parent / GRIDS):
            result = trainer.fit()
    except TrainingFailedError as error:
        raise explained(error, settings.config) from error
    if result.return_value is not None:
        raise result.return_value
    return cast(Checkpoint, result.checkpoint)


def fingerprint(objective: Objective, config: TrainConfig, source: Source) -> str:
    """A name for everything that determines the result."""
    values = {
        "objective": objective.describe(),
        "train": config.keyed(),
        "source": source.key,
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def scaling(config: TrainConfig) -> ScalingConfig:
    """One GPU per worker if the cluster has them, else an equal share of its CPUs."""
    resources = ray.cluster_resources()
    least = config.num_workers if isinstance(config.num_workers, int) else config.num_workers[0]
    if resources.get("GPU", 0) >= least:
        return ScalingConfig(num_workers=config.num_workers, use_gpu=True)
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return ScalingConfig(
        num_workers=config.num_workers, resources_per_worker={"CPU": cpus_per_worker(nodes, config.most_workers)}
    )


def cpus_per_worker(nodes: Sequence[int], num_workers: int) -> int:
    """The largest equal share that all workers can have at once; a worker lives on one node.

    Args:
        nodes: CPUs of each.
        num_workers: of the training run; 1 CPU each where there are too few.
    """
    shares = range(max(nodes, default=1), 0, -1)
    return next((share for share in shares if sum(cpus // share for cpus in nodes) >= num_workers), 1)


def read_weights(objective: Objective, checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Network and average of a distributed checkpoint, whole, in this process."""
    network = objective.build()
    average = {name: torch.empty_like(value) for name, value in network.named_parameters() if value.requires_grad}
    frozen = {name for name, value in network.named_parameters() if not value.requires_grad}
    trained = {name: value for name, value in network.state_dict().items() if name not in frozen}
    state: dict[str, Any] = {"network": trained, "ema": {"averages": average}}
    load(state, checkpoint_id=checkpoint, no_dist=True)
    return state["network"], state["network"] | state["ema"]["averages"]


def _seconds_of(losses: Path) -> float:
    """Training time of the tries before, as far as they were logged."""
    rows = read_losses(losses)
    return rows[-1]["seconds"] if rows else 0.0


def _metrics(settings: Settings, num_parameters: int, seconds: float) -> dict[str, Any]:
    last, config = read_losses(settings.losses)[-1], settings.config
    return {
        "loss": last["loss"],
        "samples_per_second": config.num_steps * config.batch_size / last["seconds"],
        "steps": config.num_steps,
        "parameters": num_parameters,
        "data_wait": last["data_wait"],
        "training_seconds": last["seconds"],
        "overhead_seconds": max(0.0, seconds - last["seconds"]),
    }


def explained(error: TrainingFailedError, config: TrainConfig) -> RaverseError:
    """Our own error out of Ray's, or a sentence about lost workers."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        if isinstance(cause := _cause(failure), RaverseError):
            return cause
    what = f"{type(failures[0]).__name__}: {failures[0]}" if failures else str(error)
    if any(_NO_SPACE in text for text in (what, *map(repr, map(_cause, failures)))):
        return StorageUnwritable(
            f"training stopped: the disk of its checkpoints is full ({_NO_SPACE}): free space, or set storage.root "
            f"elsewhere, and run the same command to go on from the last checkpoint"
        )
    first = what.strip().splitlines()[-1]
    return StageFailed(
        f"training stopped after {config.max_failures} restarts ({first}): "
        f"see the worker logs, and run the same command to go on from the last checkpoint"
    )


def _cause(failure: BaseException) -> BaseException:
    return getattr(failure, "cause", None) or failure.__cause__ or failure
