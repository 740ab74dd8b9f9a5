"""When to draw a grid of pictures where `sample_every` is auto: rarely enough to cost under 2% of the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, final

import torch.distributed as dist

from workflows.train.loop.grids import draw_grid, drawable, steps_of_a_grid
from workflows.train.loop.trainer import Trainer

_SHARE: Final = 0.015
_LEAST_SECONDS: Final = 60.0
_GROWTH: Final = 0.1
_CAUTION: Final = 2.0
"""The first grid is expected to take so many times what its network calls do."""


@final
class GridClock:
    """Draws where the time since the last grid is long enough; all workers call it at the same steps.

    So long is a minute, a tenth of the time so far, and the time that makes the dearest grid 1.5% of it. The first
    worker decides, and the others follow. The clock of a resumed training begins anew.

    Args:
        trainer: whose average is drawn.
        now: seconds.
    """

    def __init__(self, trainer: Trainer, now: Callable[[], float] = time.perf_counter) -> None:
        self._trainer, self._now, self._first_step = trainer, now, trainer.steps_done
        self._begun = self._last = now()
        self._cost: float | None = None
        self._on = drawable(trainer.objective)

    def draw(self, folder: Path) -> None:
        """Draws a grid into the folder, if one is due; asks at the steps that are logged, and not at the last one."""
        trainer = self._trainer
        done = trainer.steps_done
        if not self._on or done % trainer.config.log_every or done >= trainer.config.num_steps or not self._agreed():
            return
        started = self._now()
        draw_grid(trainer, folder)
        self._last = self._now()
        self._cost = max(self._cost or 0.0, self._last - started)

    def _agreed(self) -> bool:
        answer = [self._due()]
        if self._trainer.share.size > 1:
            dist.broadcast_object_list(answer, src=0)
        return answer[0]

    def _due(self) -> bool:
        now = self._now()
        elapsed = now - self._begun
        if self._cost is None:
            step = elapsed / max(1, self._trainer.steps_done - self._first_step)
            cost = _CAUTION * step * steps_of_a_grid(self._trainer)
        else:
            cost = self._cost
        return now - self._last >= max(_LEAST_SECONDS, cost / _SHARE, _GROWTH * elapsed)
