"""The requests of a `StepEngine`: admitted, stepped, reported on and removed, on one thread and without waiting."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from typing import Final, final

from diffusion_core.engine import Outcome, StepEngine
from diffusion_core.row import Trajectory
from workflows.errors import DeadlineExceeded, EngineStopped, Overloaded
from workflows.serve.engine.admission import Admission
from workflows.serve.engine.costs import StepTimes
from workflows.serve.engine.forecast import Work
from workflows.serve.engine.load import EngineLoad, StepRecord
from workflows.serve.engine.queued_request import QueuedRequest, Update

_STEPS_REMEMBERED: Final = 2048


@final
class RequestScheduler:
    """Runs the requests of one engine; only its thread may call the methods.

    It remembers the last 2048 steps and waits, until `EngineThread` takes them for the metrics.

    Args:
        engine: used by no one else.
        admission: the bounds on its queue.
        times: durations of steps; it learns from each step.

    Attributes:
        load: the engine's load as of the last change.
        steps: the steps that were made.
        waits: seconds from the arrival of each request to its first step.
    """

    def __init__(self, engine: StepEngine, admission: Admission, times: StepTimes) -> None:
        self._engine, self._admission, self._times = engine, admission, times
        self._requests: dict[int, QueuedRequest] = {}
        self._busy_seconds = 0.0
        self._counts = {"finished": 0, "failed": 0, "cancelled": 0, "refused": 0}
        self._closed = False
        self._last_end = 0.0
        self.load = EngineLoad(pace=times.pace)
        self.steps: deque[StepRecord] = deque(maxlen=_STEPS_REMEMBERED)
        self.waits: deque[float] = deque(maxlen=_STEPS_REMEMBERED)

    @property
    def idle(self) -> bool:
        """Whether there is no step to make."""
        return not self._requests

    def admit(self, request: QueuedRequest) -> None:
        """Adds the unfinished rows of a request to the engine, or ends the request with the error."""
        error = None
        try:
            self._check_room(request)
            self._submit(request)
        # A fault of one request is the answer to that request; the thread goes on.
        except Exception as fault:  # noqa: BLE001
            self._counts["refused"] += isinstance(fault, Overloaded)
            self._remove_rows(request)
            error = fault
        self._update_load()
        if error is not None:
            request.finish(error)

    def cancel(self, request: QueuedRequest) -> None:
        """Removes the rows of a request whose caller no longer waits."""
        self._counts["cancelled"] += self._remove_rows(request)
        request.ended = True
        self._update_load()

    def cancel_id(self, request_id: str) -> None:
        """Cancels the request of this name, if it is here, and wakes its caller."""
        for request in self._distinct_requests():
            if request.request_id == request_id:
                self.cancel(request)
                request.send(asyncio.CancelledError())

    def step(self) -> None:
        """Makes one step of the rows whose turn it is; ends and reports what that changed."""
        num_rows = min(len(self._engine), self._admission.max_rows)
        if num_rows == 0:
            return
        started, evaluations = time.perf_counter(), self._step_evaluations()
        outcomes = self._engine.tick()
        seconds = time.perf_counter() - started
        self._busy_seconds += seconds
        # Rows also wait while others are admitted between two steps. An idle engine's wait is no such time.
        taken = seconds + max(0.0, started - self._last_end) if self._last_end else seconds
        self.steps.append(StepRecord(self._times.learn(evaluations, taken), num_rows, seconds))
        results = [self._record_outcome(outcome) for outcome in outcomes]
        # The load is up to date when a caller learns that its rows have ended.
        self._update_load()
        for request, result in filter(None, results):
            request.finish(result)
        self._report_progress(time.monotonic())
        self._last_end = 0.0 if self.idle else time.perf_counter()

    def close(self) -> None:
        """Ends every request, and every one that still comes."""
        self._closed = True
        for request in self._distinct_requests():
            request.finish(engine_stopped())

    def _check_room(self, request: QueuedRequest) -> None:
        if self._closed:
            raise engine_stopped()
        self._admission.check(request, list(self._queue()), self._times)

    def _submit(self, request: QueuedRequest) -> None:
        for position, row in enumerate(request.rows):
            if isinstance(row, Trajectory):
                row_id = self._engine.submit(row)
                request.positions[row_id] = position
                self._requests[row_id] = request

    def _record_outcome(self, outcome: Outcome) -> tuple[QueuedRequest, Update | Exception] | None:
        """Takes over a row that ended; returns its request and the last update, once that is known."""
        request = self._requests.pop(outcome.row_id, None)
        if request is None:
            return None
        if outcome.error is not None:
            self._counts["failed"] += 1
            self._remove_rows(request)
            return request, outcome.error
        self._counts["finished"] += 1
        assert outcome.x0 is not None
        request.rows[request.positions[outcome.row_id]] = outcome.x0
        return None if request.unfinished else (request, Update(request.rows, done=True))

    def _report_progress(self, now: float) -> None:
        """Sends the progress that is due, and ends the requests whose deadline has passed."""
        for request in self._distinct_requests():
            if not request.started:
                request.started = True
                self.waits.append(now - request.arrived)
            if now > request.arrived + request.deadline_seconds:
                self.cancel(request)
                request.send(DeadlineExceeded("the picture was not done by `deadline_seconds`: ask for fewer steps"))
            elif request.preview_points or now >= request.next_checkpoint:
                self._report_to(request, now)

    def _report_to(self, request: QueuedRequest, now: float) -> None:
        for row_id, position in request.positions.items():
            row = self._engine.state(row_id)
            if row is not None:
                request.rows[position] = row
        preview_due = request.take_preview_points()
        if preview_due or now >= request.next_checkpoint:
            request.next_checkpoint = now + request.checkpoint_seconds
            request.send(Update(list(request.rows), preview_due))

    def _remove_rows(self, request: QueuedRequest) -> int:
        """Removes the remaining rows of a request from the engine, and returns their number."""
        row_ids = [row_id for row_id in request.positions if self._requests.pop(row_id, None) is not None]
        return sum(self._engine.cancel(row_id) for row_id in row_ids)

    def _distinct_requests(self) -> list[QueuedRequest]:
        return list(dict.fromkeys(self._requests.values()))

    def _step_evaluations(self) -> float:
        """Network evaluations of one step of all rows that can run together."""
        total = sum(request.row_cost for request in self._requests.values())
        return total * min(1.0, self._admission.max_rows / max(1, len(self._requests)))

    def _queue(self) -> Iterator[Work]:
        for row_id, request in self._requests.items():
            row = self._engine.state(row_id)
            if row is not None:
                yield Work(row.remaining, 1, request.row_cost)

    def _update_load(self) -> None:
        steps, evaluations = 0, 0.0
        for work in self._queue():
            steps += int(work.steps)
            evaluations += work.evaluations
        seconds = self._times.drain(evaluations, self._step_evaluations())
        pace = self._times.pace
        self.load = EngineLoad(len(self._engine), steps, seconds, self._busy_seconds, **self._counts, pace=pace)


def engine_stopped() -> EngineStopped:
    """Returns the error of a request that an engine cannot finish any more."""
    return EngineStopped("the engine of this replica has stopped, before the picture was made: send the request again")
