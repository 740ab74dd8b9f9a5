"""The admission of requests: a bound on rows, a bound on seconds of denoising, and the request's own deadline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from workflows.errors import Overloaded
from workflows.serve.engine.costs import StepTimes
from workflows.serve.engine.load import EngineLoad
from workflows.serve.engine.queued_request import UNBOUNDED, QueuedRequest


@final
@dataclass(frozen=True)
class Admission:
    """Bounds on the queue of an engine; an engine that holds no rows accepts a request of any size.

    Attributes:
        max_waiting_rows: rows of all accepted requests together.
        max_waiting_seconds: seconds of denoising that may wait.
        max_rows: rows of one step of the engine.
    """

    max_waiting_rows: int
    max_waiting_seconds: float = UNBOUNDED
    max_rows: int = 32

    def check(self, request: QueuedRequest, load: EngineLoad, step_evaluations: float, times: StepTimes) -> None:
        """Checks that a request fits into the queue and can meet its deadline.

        Args:
            request: the request that arrives.
            load: the engine before it.
            step_evaluations: network evaluations of one step before it.
            times: measured durations of steps.

        Raises:
            Overloaded: it does not; `retry_after` is the time until it probably will.
        """
        rows, waiting = request.unfinished, load.queued_seconds
        evaluations = step_evaluations + request.row_cost * min(len(rows), self.max_rows)
        own_seconds = times.drain(request.row_cost * sum(row.remaining for row in rows), evaluations)
        if load.rows and load.rows + len(rows) > self.max_waiting_rows:
            raise _overloaded(f"{load.rows} pictures wait, of at most {self.max_waiting_rows}", waiting)
        if load.rows and waiting + own_seconds > self.max_waiting_seconds:
            excess = waiting + own_seconds - self.max_waiting_seconds
            raise _overloaded(f"{waiting:.1f} s of denoising wait", excess)
        turns = max(1.0, (load.rows + len(rows)) / self.max_rows)
        estimate = turns * max(row.remaining for row in rows) * times.step(evaluations / turns)
        if estimate > request.deadline_seconds:
            raise _overloaded(f"this would take about {estimate:.1f} s, later than `deadline_seconds`", waiting)


def _overloaded(reason: str, retry_after: float) -> Overloaded:
    return Overloaded(f"{reason}: try again in {max(1, round(retry_after))} s", retry_after)
