"""A request while an engine denoises its rows, and the progress that the engine reports to it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias, final

from torch import Tensor

from diffusion_core.row import Trajectory
from workflows.serve.engine.costs import evaluations

UNBOUNDED: Final = float("inf")

RowState: TypeAlias = Trajectory | Tensor
"""A row: a trajectory while it is denoised, and its sample afterwards."""


@final
@dataclass(frozen=True)
class Update:
    """The rows of one request after a step.

    Attributes:
        rows: in the order of the request.
        preview_due: the slowest row has reached one of the request's preview points.
        done: every row is a sample; no more progress follows.
    """

    rows: list[RowState]
    preview_due: bool = False
    done: bool = False


@final
@dataclass(eq=False)
class QueuedRequest:
    """A request in the hands of an engine, and the queue on which its caller receives progress.

    Attributes:
        rows: in the order of the request; each trajectory is replaced by its sample when it ends.
        row_cost: network evaluations of one step of one row; all rows of a request cost the same.
        request_id: the name by which the request can be cancelled.
        preview_points: numbers of remaining steps at which a preview is still due, descending.
        checkpoint_seconds: longest time between two reports of progress.
        deadline_seconds: longest time until the samples.
        positions: position in `rows` by the engine's number of the row.
        arrived: time of arrival, on the clock of `time.monotonic`.
        next_checkpoint: time of the next report of progress, on the same clock.
        started: the request has made its first step.
        ended: the last update has been sent.
        updates: progress, or the error that ended the request; at most one entry per step.
        loop: the event loop of the caller.
    """

    rows: list[RowState]
    row_cost: float
    request_id: str | None
    preview_points: list[int]
    checkpoint_seconds: float
    deadline_seconds: float
    positions: dict[int, int] = field(default_factory=dict)
    arrived: float = field(default_factory=time.monotonic)
    next_checkpoint: float = UNBOUNDED
    started: bool = False
    ended: bool = False
    updates: asyncio.Queue[Update | BaseException] = field(default_factory=asyncio.Queue)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    @classmethod
    def of(
        cls,
        rows: Sequence[RowState],
        request_id: str | None,
        preview_points: Sequence[int],
        checkpoint_seconds: float,
        deadline_seconds: float,
    ) -> QueuedRequest:
        """Makes the entry of a request that arrives now, in the running event loop.

        Args:
            rows: at least one of them unfinished.
            request_id: see the class, as for the other arguments.
            preview_points: points that the rows have passed already are left out.
            checkpoint_seconds: in seconds.
            deadline_seconds: in seconds.
        """
        unfinished = [row for row in rows if isinstance(row, Trajectory)]
        num_left = max(row.remaining for row in unfinished)
        points = [point for point in preview_points if point < num_left]
        cost = evaluations(unfinished[0].condition)
        request = cls(list(rows), cost, request_id, points, checkpoint_seconds, deadline_seconds)
        request.next_checkpoint = request.arrived + checkpoint_seconds
        return request

    @property
    def unfinished(self) -> list[Trajectory]:
        """The rows that have steps left."""
        return [row for row in self.rows if isinstance(row, Trajectory)]

    def take_preview_points(self) -> bool:
        """Drops the preview points that the slowest row has reached, and returns whether there were any."""
        slowest = max(row.remaining for row in self.unfinished)
        num_points = len(self.preview_points)
        self.preview_points = [point for point in self.preview_points if point < slowest]
        return len(self.preview_points) < num_points

    def send(self, update: Update | BaseException) -> None:
        """Wakes the caller, from another thread than its own."""
        with contextlib.suppress(RuntimeError):  # Its event loop is closed, so nobody waits any more.
            self.loop.call_soon_threadsafe(self.updates.put_nowait, update)

    def finish(self, last: Update | BaseException) -> None:
        """Sends the last update, unless it has been sent already."""
        if not self.ended:
            self.ended = True
            self.send(last)
