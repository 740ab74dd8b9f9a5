"""What is logged about a stretch of steps: sums on each worker, added up over the workers when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, final

import torch
import torch.distributed as dist
from torch import Tensor

from workflows.train.batches import TrainBatch
from workflows.train.objectives import RowLosses

_QUARTERS: Final = 4


@final
class Figures:
    """Sums since the last `take`.

    Args:
        num_levels: T; the loss is also told apart by quarters of the levels, from clean to noisy.
        device: of the losses.
    """

    def __init__(self, num_levels: int, device: torch.device) -> None:
        self._num_levels, self._device = num_levels, device
        self._sums: dict[str, Tensor] = {}
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        self._clear()

    def add(self, batch: TrainBatch, losses: RowLosses) -> None:
        """Counts a worker's rows."""
        loss = losses.loss.detach().double()
        quarter = ((batch.draws.level - 1) * _QUARTERS // self._num_levels).to(loss.device)
        self._by_level[0].index_add_(0, quarter, loss)
        self._by_level[1].index_add_(0, quarter, torch.ones_like(loss))
        for name, value in losses.figures.items():
            self._sums[name] = self._sums.get(name, loss.new_zeros(())) + value.detach().double().sum()

    def step(self, norm: Tensor, seconds: float, waited: float) -> None:
        """Counts a step: its gradient norm, its length and how much of it went into reading rows."""
        self._norm += norm.detach().double()
        self._steps, self._seconds, self._waited = self._steps + 1, self._seconds + seconds, self._waited + waited

    def take(self) -> Mapping[str, float]:
        """Means over the rows of all workers since the last call; every worker must call it."""
        names = sorted(self._sums)
        sums = torch.cat([self._by_level.flatten(), *(self._sums[name][None] for name in names)])
        if dist.get_world_size() > 1:
            dist.all_reduce(sums)
        losses, counts, rest = sums[:_QUARTERS], sums[_QUARTERS : 2 * _QUARTERS], sums[2 * _QUARTERS :]
        total = counts.sum()
        figures = {"loss": losses.sum() / total}
        figures |= {name: value / total for name, value in zip(names, rest, strict=True)}
        figures |= {f"loss_level_{i}": losses[i] / counts[i].clamp(min=1) for i in range(_QUARTERS)}
        figures["grad_norm"] = self._norm / self._steps
        plain = {name: float(value) for name, value in figures.items()}
        plain["samples_per_second"] = float(total) / self._seconds
        plain["data_wait"] = self._waited / self._seconds
        self._clear()
        return plain

    def _clear(self) -> None:
        self._by_level = torch.zeros(2, _QUARTERS, dtype=torch.float64, device=self._device)
        self._norm = torch.zeros((), dtype=torch.float64, device=self._device)
        self._sums = {}
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
