"""Step-level batching: rows join and leave at any step.

`StepEngine` is a plain synchronous state machine over `Trajectory`s. Which rows run next is decided without a
tensor, by `RoundRobin`; then one `advance` makes a step of each. It owns no thread, no clock and no global
state: whoever calls `tick` decides when.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core.condition import Condition
from diffusion_core.denoiser import Denoiser, check_settings
from diffusion_core.errors import InvalidPlan, InvalidShape, NonFinite
from diffusion_core.row import Batch, Trajectory, advance, advance_batch


@dataclass(frozen=True, eq=False)
class Outcome:
    """How a row ended: with a sample, or with the error that stopped it.

    Attributes:
        row_id: what `submit` returned.
        x0: the sample, of one row's shape; None after an error.
        error: what went wrong in this row; None after success.
    """

    row_id: int
    x0: Float[Tensor, "..."] | None
    error: Exception | None


@final
class RoundRobin:
    """Who runs next: the rows that have waited longest. A row of a thousand steps cannot hold up one of ten."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows, self._queue = max_rows, deque[int]()

    def __len__(self) -> int:
        return len(self._queue)

    def __contains__(self, row_id: int) -> bool:
        return row_id in self._queue

    def admit(self, row_id: int) -> None:
        """Lets a row take turns; its first comes before those of the rows that ran already."""
        self._queue.append(row_id)

    def remove(self, row_id: int) -> None:
        """A row that finished, failed or was cancelled takes no more turns."""
        self._queue.remove(row_id)

    def turn(self) -> tuple[int, ...]:
        """The rows of the next step, at most `max_rows`, by number; they go to the end of the queue."""
        chosen = [self._queue.popleft() for _ in range(min(self._max_rows, len(self._queue)))]
        self._queue.extend(chosen)
        return tuple(sorted(chosen))


@final
class StepEngine:
    """Denoises whatever rows it holds, one step of each per `tick`.

    Args:
        denoiser: guided or plain; give it `buckets` so that its network sees few batch sizes.
        shape: of one row.
        max_rows: rows per step. More may be submitted: they take turns.

    Raises:
        InvalidShape: `max_rows` below 1.
    """

    def __init__(self, denoiser: Denoiser, shape: tuple[int, ...], max_rows: int = 32) -> None:
        if max_rows < 1:
            raise InvalidShape(f"found max_rows={max_rows}, wanted at least 1")
        self.denoiser, self.shape = denoiser, tuple(shape)
        self._turns = RoundRobin(max_rows)
        self._rows: dict[int, Trajectory] = {}
        self._next_id = 0
        self._last: tuple[tuple[int, ...], Batch | None] = ((), None)

    def __len__(self) -> int:
        """Rows not finished yet."""
        return len(self._rows)

    def submit(self, trajectory: Trajectory) -> int:
        """Takes a row in; its first step is part of the next `tick` that has room.

        Returns:
            A number that names the row, never used again.

        Raises:
            InvalidShape: the row has another shape.
            InvalidPlan: it is finished already.
            InvalidGuidance: it asks for guidance that the denoiser does not offer.
            NonFinite: it holds NaN or infinity.
        """
        if tuple(trajectory.x.shape) != self.shape:
            raise InvalidShape(f"found a row of shape {tuple(trajectory.x.shape)}, this engine makes {self.shape}")
        if trajectory.finished:
            raise InvalidPlan("this row is finished: submit it before its last step")
        if not bool(torch.isfinite(trajectory.x).all()):
            raise NonFinite("the row to start from holds NaN or infinity", (0,))
        check_settings(self.denoiser, trajectory.condition)
        row_id, self._next_id = self._next_id, self._next_id + 1
        self._rows[row_id] = trajectory
        self._turns.admit(row_id)
        return row_id

    def cancel(self, row_id: int) -> bool:
        """Drops a row before its next step; False if it has ended already."""
        if row_id not in self._rows:
            return False
        self._drop(row_id)
        return True

    def state(self, row_id: int) -> Trajectory | None:
        """Where a row is: enough to preview it, or to go on in another process; None if it has ended."""
        return self._rows.get(row_id)

    def tick(self) -> list[Outcome]:
        """Makes one step of the rows whose turn it is, and returns those that ended.

        A row that turns non-finite, or whose step raises, ends with its own error; its neighbours go on.
        """
        turn = self._turns.turn()
        if not turn:
            return []
        outcomes = []
        for row_id, after in zip(turn, self._advance(turn), strict=True):
            if isinstance(after, Exception):
                outcomes.append(Outcome(row_id, None, after))
            elif after.finished:
                outcomes.append(Outcome(row_id, after.x, None))
            else:
                self._rows[row_id] = after
                continue
            self._drop(row_id)
        return outcomes

    def check(self) -> None:
        """Asserts the invariants: every row held takes turns, is unfinished, and has the engine's shape."""
        assert len(self._turns) == len(self._rows)
        assert all(row_id in self._turns for row_id in self._rows)
        assert all(row_id < self._next_id for row_id in self._rows)
        assert all(not row.finished and tuple(row.x.shape) == self.shape for row in self._rows.values())
        assert len(self._rows) > 0 or self._last[1] is None

    def _advance(self, turn: tuple[int, ...]) -> list[Trajectory | Exception]:
        rows = [self._rows[row_id] for row_id in turn]
        try:
            batch = advance_batch(self.denoiser, self._batch(turn, rows))
        except Exception as error:  # noqa: BLE001 - whatever it is, it becomes the outcome of the row at fault
            self._last = ((), None)
            if len(turn) == 1:
                return [error]
            return [self._advance_alone(row) for row in rows]
        self._last = (turn, batch)
        # The cheapest look at all of them: a sum is finite only if every part is.
        if math.isfinite(float(batch.x.sum())):
            return list(batch.rows)
        finite = torch.isfinite(batch.x).flatten(1).all(dim=1).tolist()
        return [row if ok else _non_finite(row) for row, ok in zip(batch.rows, finite, strict=True)]

    def _advance_alone(self, row: Trajectory) -> Trajectory | Exception:
        """Finds the culprit of a failed step, so that only it ends."""
        try:
            after = advance(self.denoiser, [row])[0]
        except Exception as error:  # noqa: BLE001 - see `_advance`
            return error
        return after if bool(torch.isfinite(after.x).all()) else _non_finite(after)

    def _batch(self, turn: tuple[int, ...], rows: list[Trajectory]) -> Batch:
        """The rows stacked; kept while the same rows run."""
        last, batch = self._last
        if last == turn and batch is not None:
            return batch
        return Batch.of(rows, Condition.cat([row.condition for row in rows]))

    def _drop(self, row_id: int) -> None:
        del self._rows[row_id]
        self._turns.remove(row_id)
        if not self._rows:
            self._last = ((), None)


def _non_finite(row: Trajectory) -> NonFinite:
    return NonFinite(
        f"the denoiser returned NaN or infinity at level {row.plan.levels[row.index - 1]}: lower the guidance scale, "
        "or check the model's weights",
        (0,),
    )
