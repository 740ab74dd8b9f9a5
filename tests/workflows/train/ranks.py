"""Trainers in plain processes with a gloo group: what Ray Train's workers do, without Ray's start-up."""

from __future__ import annotations

import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from diffusion_core.errors import RaverseError
from workflows.config import TrainConfig
from workflows.embed.cache import EmbeddingCache
from workflows.train.objectives import Objective
from workflows.train.parallel import unwrapped, whole
from workflows.train.trainer import Trainer

MAX_SIZE = 3


@dataclass(frozen=True)
class Job:
    """Steps to make, and checkpoints to load before and to save after.

    `spoil` names a parameter that becomes NaN before the first step.
    """

    objective: Objective
    config: TrainConfig
    cache: Path
    steps: int
    load: Path | None = None
    save: Path | None = None
    spoil: str | None = None


@dataclass(frozen=True)
class Ended:
    """What a rank saw: whole weights and averages, figures, and the error that stopped it."""

    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    figures: dict[str, float]
    samples_seen: int
    error: RaverseError | None


class Ranks:
    """Processes that wait for jobs, one for each rank: torch remembers a process's place in a device mesh."""

    def __init__(self) -> None:
        self._pools = [ProcessPoolExecutor(1, mp_context=get_context("spawn")) for _ in range(MAX_SIZE)]

    def run(self, size: int, job: Job) -> list[Ended]:
        """The job on that many ranks."""
        with tempfile.TemporaryDirectory() as folder:
            futures = [self._pools[rank].submit(_rank, rank, size, f"{folder}/store", job) for rank in range(size)]
            return [future.result(timeout=120) for future in futures]

    def close(self) -> None:
        """Ends the processes."""
        for pool in self._pools:
            pool.shutdown()


def _rank(rank: int, size: int, store: str, job: Job) -> Ended:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    try:
        trainer = Trainer(job.objective, job.config, EmbeddingCache.open(job.cache), torch.device("cpu"))
        return _run(trainer, job)
    finally:
        dist.destroy_process_group()


def _run(trainer: Trainer, job: Job) -> Ended:
    if job.load is not None:
        trainer.load(job.load)
    if job.spoil is not None:
        with torch.no_grad():
            dict(unwrapped(trainer.network).named_parameters())[job.spoil].fill_(float("nan"))
    error, figures = None, {}
    try:
        for _ in range(job.steps):
            trainer.step()
        figures = dict(trainer.figures.take())
    except RaverseError as caught:
        error = caught
    if job.save is not None:
        trainer.save(job.save)
    weights = get_model_state_dict(trainer.network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    averages = {name: whole(value).clone() for name, value in trainer.ema.averages.items()}
    return Ended({k: v.clone() for k, v in weights.items()}, averages, figures, trainer.samples_seen, error)
