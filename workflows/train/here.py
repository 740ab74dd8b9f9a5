"""Seconds of a training step on this machine, before there is a cache: of rows of noise, in this process.

One worker's share of a step is timed. Workers that wait for each other, and the reading of rows, take a little more.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from diffusion_core.condition import Condition
from diffusion_core.objective import TrainingDraws
from workflows.config.schema import ClipConfig, RunConfig, TrainConfig
from workflows.data.rows import RowType
from workflows.train.batches import Batches, Share, TrainBatch
from workflows.train.clip.batches import ClipBatch
from workflows.train.clip.fitted import sized
from workflows.train.clip.objective import ClipObjective
from workflows.train.clip.stage import loop_config
from workflows.train.length import PACES, Length, TrainedPart
from workflows.train.loop.trainer import Trainer
from workflows.train.networks import Seen, classifier_for, denoiser_for, noise_schedule
from workflows.train.objectives import ClassifierObjective, DenoiserObjective, Objective, RowLosses

_WARM: Final = 2
_SECONDS: Final = 1.0
_LOADED: Final = (512, 512)
"""Widths of CLIP ViT-B/32, which stand for those of towers that are loaded."""
_VOCABULARY: Final = 2000
_MOST_PARAMETERS: Final = 1e8
_MOST_OPERATIONS: Final = 1e12


@final
@dataclass(frozen=True)
class Subject:
    """What is trained on.

    Attributes:
        rows: their type.
        num_rows: to train on.
        num_classes: of the labels; 0: there are none.
        num_candidates: candidate captions.
        num_tokens: of a caption.
    """

    rows: RowType
    num_rows: int
    num_classes: int
    num_candidates: int
    num_tokens: int


def foreseen(part: TrainedPart, config: RunConfig, subject: Subject) -> Length | None:
    """How long a part of the job trains; None where that is not known here.

    So it is where it starts from a base, where nothing is trained, and where the network is too large to be tried in
    this process: above 100 million parameters, or 10^12 operations of a worker in a step.
    """
    if config.denoiser.base is not None or (part == "clip" and config.clip.source != "train"):
        return None
    clip = sized(config.clip, subject.num_rows).model_copy(update={"context_length": subject.num_tokens})
    train = loop_config(clip, np.arange(clip.batch_size)) if part == "clip" else getattr(config, part).train
    with torch.random.fork_rng():
        objective = _on_noise(part, config, clip, subject, train)
        if _too_large(objective, _share(train)[0]):
            return None
        seconds = _step_seconds(objective, train)
    steps = train.steps
    if steps == "auto":
        steps = PACES[part].steps(subject.num_rows, train.batch_size, train.minutes, seconds)
    return Length(steps, subject.num_rows, train.batch_size, seconds)


def _too_large(objective: _OnNoise, rows: int) -> bool:
    with torch.device("meta"):
        num_parameters = sum(parameter.numel() for parameter in objective.build().parameters())
    return (
        num_parameters > _MOST_PARAMETERS or rows * objective.flop_per_sample(objective.num_tokens) > _MOST_OPERATIONS
    )


def _on_noise(part: TrainedPart, config: RunConfig, clip: ClipConfig, subject: Subject, train: TrainConfig) -> _OnNoise:
    rows, side = _share(train)[0], subject.rows.side(clip.patch_size)
    if part == "clip":
        vocabulary = torch.arange(_VOCABULARY)
        return _OnNoise(ClipObjective(clip, side, vocabulary), _clip_batch(subject, rows), subject.num_tokens)
    trained_here = clip.source == "train"
    widths = (clip.text_width, clip.embed_dim) if trained_here else _LOADED
    seen = Seen(subject.rows.name, subject.rows.shape, *widths)
    batch = _noised_batch(subject, seen, rows, config.denoiser.schedule.num_levels)
    return _OnNoise(_objective(part, config, subject, seen), batch, subject.num_tokens)


def _objective(part: TrainedPart, config: RunConfig, subject: Subject, seen: Seen) -> Objective:
    schedule = noise_schedule(config.denoiser.schedule)
    if part == "denoiser":
        network = denoiser_for(config.denoiser.network, seen)
        return DenoiserObjective(network, schedule, config.denoiser.parameterization, config.denoiser.train.weighting)
    candidates = torch.zeros(max(1, subject.num_candidates), seen.pooled_dim)
    classifier = classifier_for(config.classifier.network, seen, subject.num_classes, len(candidates))
    return ClassifierObjective(classifier, schedule, candidates)


def _clip_batch(subject: Subject, rows: int) -> ClipBatch:
    ids = torch.randint(_VOCABULARY, (rows, subject.num_tokens)).to(_device())
    groups = torch.zeros(rows, dtype=torch.int64).to(_device())
    return ClipBatch(torch.arange(rows), _noise(subject, rows), ids, groups, Share())


def _noised_batch(subject: Subject, seen: Seen, rows: int, num_levels: int) -> TrainBatch:
    tokens = torch.randn(rows, subject.num_tokens, seen.token_dim)
    mask = torch.ones(rows, subject.num_tokens, dtype=torch.bool)
    labels = torch.zeros(rows, dtype=torch.int64)
    draws = TrainingDraws(
        torch.randint(1, num_levels + 1, (rows,)), _noise(subject, rows), torch.zeros(rows, dtype=torch.bool)
    )
    condition = Condition.of(tokens, mask, torch.randn(rows, seen.pooled_dim), labels).to(_device())
    return TrainBatch(torch.arange(rows), _noise(subject, rows), draws, condition, Share(), rows)


def _noise(subject: Subject, rows: int) -> torch.Tensor:
    return torch.randn(rows, *subject.rows.shape).clamp(-1.0, 1.0).to(_device())


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@final
@dataclass(frozen=True, eq=False)
class _NoiseBatches:
    """The same batch again and again; see `Batches`."""

    batch: Any
    num_tokens: int

    def read(self, samples_seen: int, part: int, share: Share) -> Any:  # noqa: ARG002 - it is always the same
        return self.batch

    def close(self) -> None: ...


@final
@dataclass(frozen=True, eq=False)
class _OnNoise:
    """An objective that reads one batch of noise; see `Objective`."""

    inner: Objective
    batch: Any
    num_tokens: int

    def describe(self) -> dict[str, Any]:
        return self.inner.describe()

    def build(self) -> nn.Module:
        return self.inner.build()

    def open(self, folder: Path, config: TrainConfig, device: torch.device) -> Batches:  # noqa: ARG002 - reads nothing
        return _NoiseBatches(self.batch, self.num_tokens)

    def optimizer(self, network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        return self.inner.optimizer(network, config)

    def flop_per_sample(self, num_tokens: int) -> float:
        return self.inner.flop_per_sample(num_tokens)

    def losses(self, network: nn.Module, batch: Any) -> RowLosses:
        return self.inner.losses(network, batch)


def _share(train: TrainConfig) -> tuple[int, int]:
    """Rows of a step of one worker, and the threads that it has, on this machine."""
    cpus = len(os.sched_getaffinity(0))
    workers = min(train.most_workers, cpus)
    return max(1, train.batch_size // workers), max(1, cpus // workers)


def _step_seconds(objective: _OnNoise, train: TrainConfig) -> float:
    rows, threads = _share(train)
    alone = {"batch_size": rows, "steps": 1 << 40, "minutes": None, "accumulate": 1, "num_workers": 1}
    config = train.model_copy(update=alone | {"sharding": "ddp", "cpu_offload": False, "compile": False})
    with _alone(threads):
        trainer = Trainer(objective, config, Path(), _device())
        with contextlib.closing(trainer):
            for _ in range(_WARM):
                trainer.step()
            started, steps = time.perf_counter(), 0
            while time.perf_counter() - started < _SECONDS:
                trainer.step()
                steps += 1
            return (time.perf_counter() - started) / steps


@contextlib.contextmanager
def _alone(threads: int) -> Iterator[None]:
    """A process group of this process, and its threads."""
    before = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        torch.set_num_threads(threads)
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()
            torch.set_num_threads(before)
