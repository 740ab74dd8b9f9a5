"""What is logged about a stretch of steps: sums on each worker, added up over the workers when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from workflows.train.objectives import RowLosses


@final
class Figures:
    """Sums since the last `take`.

    Args:
        device: of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        self._clear()

    def add(self, losses: RowLosses) -> None:
        """Counts a worker's rows; a row whose figure is NaN has none."""
        for name, values in {"loss": losses.loss, **losses.figures}.items():
            found = values.detach().double()
            sums = torch.stack([found.nansum(), (~found.isnan()).double().sum()])
            self._sums[name] = self._sums.get(name, torch.zeros_like(sums)) + sums

    def step(self, norm: Tensor, seconds: float, waited: float) -> None:
        """Counts a step: its gradient norm, its length and how much of it went into reading rows."""
        self._norm += norm.detach().double()
        self._steps, self._seconds, self._waited = self._steps + 1, self._seconds + seconds, self._waited + waited

    def take(self) -> Mapping[str, float]:
        """Means over the rows of all workers since the last call; every worker must call it."""
        names = ["loss", *sorted(self._sums.keys() - {"loss"})]
        sums = torch.stack([self._sums[name] for name in names])
        if dist.get_world_size() > 1:
            dist.all_reduce(sums)
        means = sums[:, 0] / sums[:, 1].clamp(min=1)
        plain = {name: float(mean) for name, mean in zip(names, means, strict=True)}
        plain["grad_norm"] = float(self._norm / self._steps)
        plain["samples_per_second"] = float(sums[0, 1]) / self._seconds
        plain["data_wait"] = self._waited / self._seconds
        self._clear()
        return plain

    def _clear(self) -> None:
        self._norm = torch.zeros((), dtype=torch.float64, device=self._device)
        self._sums = {}
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
