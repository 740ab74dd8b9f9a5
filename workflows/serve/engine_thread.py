"""A `StepEngine` on a thread of its own, with an asyncio front.

The thread sleeps while there is nothing to do and never polls: a request, a cancellation or the order to
stop is a function in its inbox. Between two steps it empties the inbox; so rows join at the next step, and
those of a client who left are gone within one.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, final

from torch import Tensor

from diffusion_core.engine import Outcome, StepEngine
from diffusion_core.trajectory import Trajectory
from workflows.errors import Overloaded
from workflows.serve.errors import EngineStopped

_SMOOTHING: Final = 0.1


@final
@dataclass(frozen=True)
class Load:
    """What an engine has before it and behind it.

    Attributes:
        rows: in the engine.
        steps: that these rows still have to make, together.
        seconds: estimate of the time that takes.
        finished: rows that ended with a sample.
        failed: rows that ended with an error.
        cancelled: rows whose client left.
    """

    rows: int = 0
    steps: int = 0
    seconds: float = 0.0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0


@final
@dataclass(eq=False)
class _Job:
    """The rows of one request, and who waits for them."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[list[Tensor]]
    samples: dict[int, Tensor | None] = field(default_factory=dict)

    def settle(self, result: list[Tensor] | BaseException) -> None:
        """Wakes the waiting request, from another thread than its own."""
        self.loop.call_soon_threadsafe(self._set, result)

    def _set(self, result: list[Tensor] | BaseException) -> None:
        if self.future.done():
            return
        if isinstance(result, BaseException):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


@final
class EngineThread:
    """Denoises the rows of many requests together.

    Args:
        engine: used by no one else from now on.
        max_rows: rows of accepted requests; a request that goes beyond is refused, unless it is alone.
    """

    def __init__(self, engine: StepEngine, max_rows: int) -> None:
        self._engine, self._max_rows = engine, max_rows
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._jobs: dict[int, _Job] = {}
        self._load = Load()
        self._seconds_per_step = 0.0
        self._counts = {"finished": 0, "failed": 0, "cancelled": 0}
        self._running = True
        self._closed = False
        self._door = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="step-engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> Load:
        """As of the last step."""
        return self._load

    async def sample(self, rows: Sequence[Trajectory]) -> list[Tensor]:
        """Denoises rows to their ends; if the caller is cancelled, they leave within one step.

        Raises:
            Overloaded: too many rows wait already.
            EngineStopped: the thread has ended.
            RaverseError: one of the rows cannot be denoised; the others of this call leave.
        """
        loop = asyncio.get_running_loop()
        job = _Job(loop, loop.create_future())
        self._tell(lambda: self._admit(job, rows))
        try:
            return await job.future
        except asyncio.CancelledError:
            with contextlib.suppress(EngineStopped):
                self._tell(lambda: self._cancel(job))
            raise

    def check(self) -> None:
        """Fails when the thread has ended, so that the replica is replaced.

        Raises:
            EngineStopped: it has.
        """
        if self._closed:
            raise _stopped()

    def stop(self) -> None:
        """Ends the thread after the present step; rows still held fail."""
        with contextlib.suppress(EngineStopped):
            self._tell(self._stop)
        self._thread.join()

    def _tell(self, order: Callable[[], None]) -> None:
        """The thread carries out every order that got in, or the caller learns that it is too late."""
        with self._door:
            self.check()
            self._inbox.put(order)

    def _run(self) -> None:
        try:
            while self._running:
                self._empty_inbox()
                self._step()
        finally:
            self._close()

    def _close(self) -> None:
        with self._door:
            self._closed = True
        self._running = False
        while not self._inbox.empty():
            self._inbox.get()()
        for job in set(self._jobs.values()):
            job.settle(_stopped())

    def _empty_inbox(self) -> None:
        if not self._jobs:
            self._inbox.get()()
        while True:
            try:
                order = self._inbox.get_nowait()
            except queue.Empty:
                return
            order()

    def _step(self) -> None:
        started = time.perf_counter()
        before = self._load.steps
        outcomes = self._engine.tick()
        seconds = time.perf_counter() - started
        ended = [(self._jobs.get(outcome.row_id), self._take_out(outcome)) for outcome in outcomes]
        self._book()
        made = before - self._load.steps
        if made > 0:
            self._learn(seconds / made)
        for job, result in ended:
            if job is not None and result is not None:
                job.settle(result)

    def _admit(self, job: _Job, rows: Sequence[Trajectory]) -> None:
        fault = None
        try:
            self._check_room(len(rows))
            for row in rows:
                row_id = self._engine.submit(row)
                job.samples[row_id] = None
                self._jobs[row_id] = job
        # Whatever is wrong with a request is that request's answer; the thread goes on.
        except Exception as error:  # noqa: BLE001
            self._drop(job)
            fault = error
        self._book()
        if fault is not None:
            job.settle(fault)

    def _check_room(self, num_rows: int) -> None:
        if not self._running:
            raise _stopped()
        held, wait = len(self._engine), self._load.seconds
        if held and held + num_rows > self._max_rows:
            raise Overloaded(
                f"{held} pictures wait, of at most {self._max_rows}: try again in {max(1, round(wait))} s", wait
            )

    def _take_out(self, outcome: Outcome) -> list[Tensor] | Exception | None:
        """What the row's request is told now: its samples, its error, or nothing yet."""
        job = self._jobs.pop(outcome.row_id, None)
        if job is None:
            return None
        if outcome.error is not None:
            self._counts["failed"] += 1
            self._drop(job)
            return outcome.error
        self._counts["finished"] += 1
        job.samples[outcome.row_id] = outcome.x0
        samples = [sample for sample in job.samples.values() if sample is not None]
        return samples if len(samples) == len(job.samples) else None

    def _cancel(self, job: _Job) -> None:
        self._counts["cancelled"] += self._drop(job)
        self._book()

    def _drop(self, job: _Job) -> int:
        """Takes the job's remaining rows out of the engine and says how many they were."""
        held = [row_id for row_id in job.samples if self._jobs.pop(row_id, None) is not None]
        return sum(self._engine.cancel(row_id) for row_id in held)

    def _book(self) -> None:
        states = (self._engine.state(row_id) for row_id in self._jobs)
        steps = sum(state.remaining for state in states if state is not None)
        self._load = Load(len(self._engine), steps, steps * self._seconds_per_step, **self._counts)

    def _learn(self, seconds: float) -> None:
        known = self._seconds_per_step
        self._seconds_per_step = seconds if known == 0.0 else known + _SMOOTHING * (seconds - known)

    def _stop(self) -> None:
        self._running = False


def _stopped() -> EngineStopped:
    return EngineStopped("the engine of this replica has stopped, before the picture was made: send the request again")
