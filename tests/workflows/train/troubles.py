"""Objectives that go wrong on purpose, around a real one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist
from torch import nn

from workflows.config.schema import TrainConfig
from workflows.train.batches import Batches
from workflows.train.objectives import Objective, RowLosses


@final
class Troubled:
    """Kills one worker once, or spoils one row's loss, at the step after so many.

    Args:
        inner: the real objective.
        after: steps that go well, of this process.
        marker: made by the killed worker, so that it happens once; None: nobody is killed.
        spoil: position in the batch of the row whose loss becomes NaN; None: none does.
    """

    def __init__(self, inner: Objective, after: int, marker: Path | None = None, spoil: int | None = None) -> None:
        self.inner, self.after, self.marker, self.spoil = inner, after, marker, spoil
        self.calls = 0

    def describe(self) -> dict[str, Any]:
        return self.inner.describe()

    def build(self) -> nn.Module:
        return self.inner.build()

    def open(self, folder: Path, config: TrainConfig, device: torch.device) -> Batches:
        return self.inner.open(folder, config, device)

    def optimizer(self, network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        return self.inner.optimizer(network, config)

    def flop_per_sample(self, num_tokens: int) -> float:
        return self.inner.flop_per_sample(num_tokens)

    def losses(self, network: nn.Module, batch: Any) -> RowLosses:
        self.calls += 1
        found = self.inner.losses(network, batch)
        if self.calls != self.after + 1:
            return found
        if self.marker is not None and not self.marker.exists() and dist.get_rank() == 1:
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.spoil is not None:
            rows = torch.arange(len(batch)) * batch.share.size + batch.share.rank
            loss = torch.where((rows == self.spoil).to(found.loss.device), float("nan"), found.loss)
            return found._replace(loss=loss)
        return found
