"""Trainers in plain processes with a gloo group: what Ray Train's workers do, without Ray's start-up."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from diffusion_core.ema import EMA
from diffusion_core.errors import RaverseError
from workflows.config.schema import TrainConfig
from workflows.train.loop.trainer import Trainer
from workflows.train.objectives import Objective
from workflows.train.parallel import unwrapped, whole

MAX_SIZE = 4


@dataclass(frozen=True)
class Job:
    """Steps to make, and checkpoints to load before and to save after.

    `spoil` names a parameter that becomes NaN before the first step. `beside` is where a checkpoint of the state
    before the first step is written while the steps are made. `forget` is `ema` or `optimizer`, which is then not
    loaded; `forget_rank` is a rank that loses its part of the weights after loading.
    """

    objective: Objective
    config: TrainConfig
    source: Path
    steps: int
    load: Path | None = None
    save: Path | None = None
    spoil: str | None = None
    beside: Path | None = None
    forget: str | None = None
    forget_rank: int | None = None


@dataclass(frozen=True)
class Ended:
    """What a rank saw: whole weights and averages, figures, and the error that stopped it."""

    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    figures: dict[str, float]
    samples_seen: int
    error: RaverseError | None
    powers: dict[float, dict[str, Tensor]]


class Ranks:
    """Processes that wait for jobs, one for each rank: torch remembers a process's place in a device mesh.

    They are forked from one that has imported what they need, before any of it has started a thread.
    """

    def __init__(self) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._pools = [ProcessPoolExecutor(1, mp_context=context) for _ in range(MAX_SIZE)]
        self._folder = tempfile.TemporaryDirectory()
        self._ended: dict[Hashable, list[Ended]] = {}
        self._stopped: dict[Hashable, tuple[Path, list[Ended]]] = {}
        self._objectives: list[Objective] = []  # kept, so that none gets the number of another

    def run(self, size: int, job: Job, timeout: float = 120) -> list[Ended]:
        """The job on that many ranks.

        One that neither reads nor writes a checkpoint is run once: several tests compare with it.
        """
        if job.load or job.save or job.beside:
            return self._run(size, job, timeout)
        key = self._key(size, job)
        if key not in self._ended:
            self._ended[key] = self._run(size, job, timeout)
        return self._ended[key]

    def stop(self, size: int, job: Job) -> tuple[Path, list[Ended]]:
        """The checkpoint that the job leaves, and how it ended; made once. Do not write to it."""
        key = self._key(size, job)
        if key not in self._stopped:
            folder = Path(self._folder.name) / str(len(self._stopped))
            self._stopped[key] = folder, self._run(size, replace(job, save=folder), timeout=120)
        return self._stopped[key]

    def _key(self, size: int, job: Job) -> Hashable:
        self._objectives.append(job.objective)
        return size, id(job.objective), job.config.model_dump_json(), job.source, job.steps, job.spoil

    def _run(self, size: int, job: Job, timeout: float) -> list[Ended]:
        with tempfile.TemporaryDirectory() as folder:
            futures = [self._pools[rank].submit(_rank, rank, size, f"{folder}/store", job) for rank in range(size)]
            return [future.result(timeout=timeout) for future in futures]

    def close(self) -> None:
        """Ends the processes."""
        for pool in self._pools:
            pool.shutdown()
        self._folder.cleanup()


def _rank(rank: int, size: int, store: str, job: Job) -> Ended:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    try:
        trainer = Trainer(job.objective, job.config, job.source, torch.device("cpu"))
        return _run(trainer, job)
    finally:
        dist.destroy_process_group()


def _run(trainer: Trainer, job: Job) -> Ended:
    if job.load is not None:
        load(trainer, job)
    if job.spoil is not None:
        with torch.no_grad():
            dict(unwrapped(trainer.network).named_parameters())[job.spoil].fill_(float("nan"))
    error, figures = None, {}
    writing = trainer.save_async(job.beside) if job.beside is not None else None
    try:
        for _ in range(job.steps):
            trainer.step()
        figures = dict(trainer.figures.take())
    except RaverseError as caught:
        error = caught
    if writing is not None:
        writing.result()
    if job.save is not None:
        trainer.save(job.save)
    weights = get_model_state_dict(trainer.network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    averages = gathered(trainer.ema)
    powers = {width: gathered(average) for width, average in trainer.powers.items()}
    return Ended({k: v.clone() for k, v in weights.items()}, averages, figures, trainer.samples_seen, error, powers)


def gathered(average: EMA) -> dict[str, Tensor]:
    return {name: whole(value).clone() for name, value in average.averages.items()}


def load(trainer: Trainer, job: Job) -> None:
    """Loads the checkpoint, or all of it but a part: what a faulty resume would do."""
    kept = trainer.ema.state_dict() if job.forget == "ema" else None
    before = {name: value.clone() for name, value in kept["averages"].items()} if kept else {}
    trainer.load(job.load)
    if kept is not None:
        trainer.ema.load_state_dict({"num_updates": 0, "averages": before})
    if job.forget == "optimizer":
        trainer.optimizer.state.clear()
    if job.forget_rank == trainer.share.rank:
        with torch.no_grad():
            for parameter in trainer.network.parameters():
                local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
                local.zero_()
