"""A `StepEngine` on a thread of its own, with an asyncio front.

The thread sleeps while there is nothing to do and never polls: a request, a cancellation and the command to stop are
functions in its inbox. It empties the inbox between two steps. So rows join at the next step, and the rows of a client
who left are gone within one step.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import final

from diffusion_core.engine import StepEngine
from diffusion_core.row import Trajectory
from workflows.errors import EngineStopped
from workflows.serve.engine.admission import Admission
from workflows.serve.engine.costs import StepTimes
from workflows.serve.engine.load import EngineLoad, StepRecord
from workflows.serve.engine.queued_request import UNBOUNDED, QueuedRequest, RowState, Update
from workflows.serve.engine.scheduler import RequestScheduler, engine_stopped


@final
class EngineThread:
    """Denoises the rows of many requests together.

    Args:
        engine: used by no one else from now on.
        admission: the bounds beyond which a request is refused.
        times: durations of steps, if some are known.
    """

    def __init__(self, engine: StepEngine, admission: Admission, times: StepTimes | None = None) -> None:
        self._scheduler = RequestScheduler(engine, admission, times or StepTimes((64,)))
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._inbox_lock = threading.Lock()
        self._running, self._closed = True, False
        self._thread = threading.Thread(target=self._run, name="step-engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> EngineLoad:
        """The engine's load as of the last step."""
        return self._scheduler.load

    def take_steps(self) -> list[StepRecord]:
        """Returns the steps since the last call, at most 2048."""
        steps = self._scheduler.steps
        return [steps.popleft() for _ in range(len(steps))]

    def take_waits(self) -> list[float]:
        """Returns the seconds that requests waited for their first step, since the last call; at most 2048."""
        waits = self._scheduler.waits
        return [waits.popleft() for _ in range(len(waits))]

    async def follow(
        self,
        rows: Sequence[RowState],
        *,
        request_id: str | None = None,
        preview_points: Sequence[int] = (),
        checkpoint_seconds: float = UNBOUNDED,
        deadline_seconds: float = UNBOUNDED,
    ) -> AsyncGenerator[Update, None]:
        """Denoises the rows of one request and yields its progress; the last progress holds the samples.

        If the caller is cancelled, the rows leave within one step.

        Args:
            rows: trajectories of one cost, and samples, which pass through.
            request_id: the name by which `cancel` finds the request.
            preview_points: numbers of remaining steps at which to yield, descending.
            checkpoint_seconds: the longest time between two yields, but for the duration of a step.
            deadline_seconds: the longest time until the samples.

        Raises:
            InvalidRequest: no engine could meet the deadline.
            Overloaded: too much waits already, also for the deadline.
            DeadlineExceeded: the deadline was not met.
            EngineStopped: the thread has ended.
            RaverseError: one of the rows cannot be denoised; the others of this request leave.
        """
        if not any(isinstance(row, Trajectory) for row in rows):
            yield Update(list(rows), done=True)
            return
        request = QueuedRequest.of(rows, request_id, preview_points, checkpoint_seconds, deadline_seconds)
        self._post(lambda: self._scheduler.admit(request))
        try:
            while True:
                update = await request.updates.get()
                if isinstance(update, BaseException):
                    raise update
                yield update
                if update.done:
                    return
        finally:
            if not request.ended:
                with contextlib.suppress(EngineStopped):
                    self._post(lambda: self._scheduler.cancel(request))

    def cancel(self, request_id: str) -> None:
        """Removes the rows of this request, if they are here, and ends its `follow` with `CancelledError`."""
        with contextlib.suppress(EngineStopped):
            self._post(lambda: self._scheduler.cancel_id(request_id))

    def check(self) -> None:
        """Fails once the thread has ended, so that Ray Serve replaces the replica.

        Raises:
            EngineStopped: the thread has ended.
        """
        if self._closed:
            raise engine_stopped()

    def stop(self) -> None:
        """Ends the thread after the present step; requests that are still here fail."""
        with contextlib.suppress(EngineStopped):
            self._post(self._end_loop)
        self._thread.join()

    def _post(self, command: Callable[[], None]) -> None:
        """Puts a command into the inbox; the thread runs every command that got in.

        Raises:
            EngineStopped: the thread has ended.
        """
        with self._inbox_lock:
            self.check()
            self._inbox.put(command)

    def _run(self) -> None:
        try:
            while self._running:
                self._run_commands()
                self._scheduler.step()
        finally:
            self._close()

    def _run_commands(self) -> None:
        if self._scheduler.idle:
            self._inbox.get()()
        while True:
            try:
                command = self._inbox.get_nowait()
            except queue.Empty:
                return
            command()

    def _end_loop(self) -> None:
        self._running = False

    def _close(self) -> None:
        with self._inbox_lock:
            self._closed = True
        self._scheduler.close()
        while not self._inbox.empty():
            self._inbox.get()()
