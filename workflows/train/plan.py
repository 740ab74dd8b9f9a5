"""Which sample, caption, level, noise and caption drop come at which step.

Everything is a pure function of the seed and of a row's number, the count of rows that training saw before it. So the
global batches are the same at any number of workers, and resuming needs one integer. Memory does not depend on the
number of samples: it is that of 2,048 drawn rows, and of one window of `Order`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_core import noise
from workflows.errors import InvalidData
from workflows.train.order import Order

_GOLDEN: Final = 0.6180339887498949
_UNIFORM: Final = 0.02
"""Share of rows whose level is uniform, whatever the density."""
_WORDING_STREAM: Final = 16
"""Stream of a row's wording; the core's own streams end below."""
_ROWS_AHEAD: Final = 2048


@final
@dataclass(frozen=True, eq=False)
class PlannedRows:
    """Rows of a batch, before any of them is read.

    Attributes:
        numbers: of each row, `(b,)` int64: the index of its noise.
        samples: position in the training split, `(b,)` int64.
        wordings: non-negative draws that choose a caption, `(b,)` int64.
        level_draws: in [0, 1), `(b,)` float64.
        dropped: whether the condition is hidden, `(b,)` bool.
    """

    numbers: Tensor
    samples: Tensor
    wordings: Tensor
    level_draws: Tensor
    dropped: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self, index: slice) -> PlannedRows:
        """Some of the rows."""
        return PlannedRows(
            self.numbers[index],
            self.samples[index],
            self.wordings[index],
            self.level_draws[index],
            self.dropped[index],
        )


@final
@dataclass(frozen=True)
class Plan:
    """The order of training.

    Each epoch visits every sample once, in an order of its own (`Order`); a batch may lie in two epochs. Levels follow
    a golden-ratio sequence u from a random start, so that any stretch of rows covers the levels evenly: the
    loss varies less from batch to batch than with independent draws. A level's place is

        shift u / (1 + (shift - 1) u)

    which is uniform at shift 1, has its median at shift / (1 + shift), and so trains more on noise above 1, on
    clean pictures below it. With the density `logit_normal`, u becomes the logistic function of a standard normal
    first, except in one row of fifty: that density hardly ever visits the last levels, where sampling starts.

    Args:
        seed: of all draws.
        num_samples: in the training split.
        batch_size: rows per step, over all workers.
        condition_dropout: share of rows whose condition is hidden.
        level_shift: of the levels.
        shard_rows: samples of a shard.
        shuffle_rows: samples that are mixed with each other, about.
        level_density: `uniform` or `logit_normal`.

    Raises:
        InvalidData: there are no samples.

    References:
        Esser et al., Scaling Rectified Flow Transformers (2024), eq. 23, for the shift; eq. 19, for the density.
    """

    seed: int
    num_samples: int
    batch_size: int
    condition_dropout: float = 0.0
    level_shift: float = 1.0
    shard_rows: int = 1 << 62
    shuffle_rows: int = 1 << 16
    level_density: str = "uniform"

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise InvalidData("the training split is empty: nothing to train on")

    @property
    def order(self) -> Order:
        """The order of the samples."""
        return Order(self.seed, self.num_samples, self.shard_rows, self.shuffle_rows)

    def batch(self, samples_seen: int) -> PlannedRows:
        """The global batch that follows after this many rows."""
        length = max(1, _ROWS_AHEAD // self.batch_size) * self.batch_size
        block, place = divmod(samples_seen, length)
        if place + self.batch_size > length:
            return self.rows(samples_seen, self.batch_size)
        return _drawn(self, block * length, length).rows(slice(place, place + self.batch_size))

    def rows(self, first: int, count: int) -> PlannedRows:
        """Any stretch of rows."""
        numbers = torch.arange(first, first + count)
        wordings = noise.uniform(self.seed, _WORDING_STREAM, numbers, ())
        drops = noise.uniform(self.seed, noise.TRAIN_DROP, numbers, ())
        even = (float(noise.uniform(self.seed, noise.TRAIN_LEVEL, 0, ())) + numbers.double() * _GOLDEN) % 1.0
        return PlannedRows(
            numbers,
            torch.from_numpy(self._samples(first, count)),
            (wordings * (1 << 24)).long(),
            self._places(even),
            drops < self.condition_dropout,
        )

    def _places(self, even: Tensor) -> Tensor:
        """Places of levels in [0, 1), from evenly spread numbers in [0, 1)."""
        if self.level_density == "logit_normal":
            middle = torch.special.ndtri((even - _UNIFORM).clamp(min=1e-9) / (1.0 - _UNIFORM)).sigmoid()
            even = torch.where(even < _UNIFORM, even / _UNIFORM, middle.clamp(max=1.0 - 1e-9))
        return self.level_shift * even / (1.0 + (self.level_shift - 1.0) * even)

    def _samples(self, first: int, count: int) -> NDArray[np.int64]:
        parts, number, end = [], first, first + count
        while number < end:
            epoch, place = divmod(number, self.num_samples)
            part = self.order.stretch(epoch, place, end - number)
            parts.append(part)
            number += len(part)
        return np.concatenate(parts)


@lru_cache(maxsize=1)
def _drawn(plan: Plan, first: int, count: int) -> PlannedRows:
    """The rows of many steps in one draw, which costs little more than those of one."""
    return plan.rows(first, count)
