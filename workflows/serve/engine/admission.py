"""The admission of requests: a bound on rows, a bound on seconds of denoising, and the request's own deadline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

from workflows.errors import InvalidRequest, Overloaded
from workflows.serve.engine.costs import StepTimes
from workflows.serve.engine.forecast import Cycle, Work, releases, seconds_until
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

    def check(self, request: QueuedRequest, queue: Sequence[Work], times: StepTimes) -> None:
        """Checks that a request fits into the queue and can meet its deadline.

        Args:
            request: the request that arrives.
            queue: the rows of the engine before it.
            times: measured durations of steps.

        Raises:
            InvalidRequest: even an idle engine could not meet the deadline.
            Overloaded: there is no room now; `retry_after` is the time until there probably is.
        """
        own = Work(max(row.remaining for row in request.unfinished), len(request.unfinished), request.row_cost)
        cycle = partial(self._cycle, times)
        forecast = list(releases(queue, cycle))
        waiting = forecast[-1][0] if forecast else 0.0
        rows = sum(work.rows for work in queue)
        if rows and (excess := rows + own.rows - self.max_waiting_rows) > 0:
            raise overloaded(
                f"{rows} pictures wait, of at most {self.max_waiting_rows}", seconds_until(excess, forecast)
            )
        own_seconds = own.steps * cycle(own.rows, own.rows * own.cost)
        if rows and (late := waiting + own_seconds - self.max_waiting_seconds) > 0:
            raise overloaded(f"{waiting:.1f} s of denoising wait", min(late, waiting))
        self._check_deadline(request.deadline_seconds, own, own_seconds, queue, cycle)

    def _check_deadline(
        self, deadline: float, own: Work, own_seconds: float, queue: Sequence[Work], cycle: Cycle
    ) -> None:
        if own_seconds > deadline:
            raise InvalidRequest(
                f"deadline_seconds: an idle service takes about {own_seconds:.1f} s for this: allow more time than "
                f"{deadline:g} s, or ask for fewer steps or pictures",
                "deadline_seconds",
            )
        # Rows that are ahead take turns with it, so of each no more steps count than it makes itself.
        meanwhile = [Work(min(work.steps, own.steps), work.rows, work.cost) for work in queue]
        estimate = max((seconds for seconds, _ in releases([*meanwhile, own], cycle)), default=0.0)
        if estimate > deadline:
            raise overloaded(
                f"this would take about {estimate:.1f} s, later than `deadline_seconds`", estimate - deadline
            )

    def _cycle(self, times: StepTimes, rows: int, evaluations: float) -> float:
        """Seconds in which each of the rows makes one step, `max_rows` of them at once."""
        turns = max(1.0, rows / self.max_rows)
        return turns * times.step(evaluations / turns)


def overloaded(reason: str, retry_after: float) -> Overloaded:
    """The refusal of a request for which there is no room; it names the seconds after which there probably is."""
    return Overloaded(f"{reason}: try again in {max(1, math.ceil(retry_after))} s", retry_after)
