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
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final, final

from torch import Tensor

from diffusion_core.engine import Outcome, StepEngine
from diffusion_core.row import Trajectory
from workflows.errors import DeadlineExceeded, Overloaded
from workflows.serve.replica.costs import StepTimes
from workflows.serve.replica.jobs import UNBOUNDED, Job, Limits, Load, News, Report, StepTaken
from workflows.serve.request.errors import EngineStopped

_STEPS_REMEMBERED: Final = 2048


@final
class EngineThread:
    """Denoises the rows of many requests together.

    Args:
        engine: used by no one else from now on.
        limits: beyond which a request is refused, unless it is alone.
        max_rows: rows per step of the engine.
        buckets: sizes of a step by which its time is learnt.
    """

    def __init__(self, engine: StepEngine, limits: Limits, max_rows: int = 32, buckets: Sequence[int] = (64,)) -> None:
        self._engine, self._limits, self._max_rows = engine, limits, max_rows
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._jobs: dict[int, Job] = {}
        self._times = StepTimes(buckets)
        self._steps: deque[StepTaken] = deque(maxlen=_STEPS_REMEMBERED)
        self._waits: deque[float] = deque(maxlen=_STEPS_REMEMBERED)
        self._load = Load()
        self._busy = 0.0
        self._counts = {"finished": 0, "failed": 0, "cancelled": 0, "refused": 0}
        self._running = True
        self._closed = False
        self._door = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="step-engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> Load:
        """As of the last step."""
        return self._load

    def take_steps(self) -> list[StepTaken]:
        """The steps since the last call, at most some thousands."""
        return [self._steps.popleft() for _ in range(len(self._steps))]

    def take_waits(self) -> list[float]:
        """Seconds that requests waited for their first step, since the last call."""
        return [self._waits.popleft() for _ in range(len(self._waits))]

    async def sample(self, rows: Sequence[Trajectory], deadline_seconds: float = UNBOUNDED) -> list[Tensor]:
        """Denoises rows to their ends; if the caller is cancelled, they leave within one step.

        Raises:
            Overloaded: too much waits already, or the deadline cannot be met.
            DeadlineExceeded: it was not met.
            EngineStopped: the thread has ended.
            RaverseError: one of the rows cannot be denoised; the others of this call leave.
        """
        told = [news async for news in self.follow(rows, Report(), deadline_seconds)]
        return [state for state in told[-1].states if isinstance(state, Tensor)]

    async def follow(
        self,
        rows: Sequence[Trajectory],
        report: Report,
        deadline_seconds: float = UNBOUNDED,
        name: str | None = None,
    ) -> AsyncGenerator[News, None]:
        """Denoises rows and tells where they are, as `report` says; the last news are their samples.

        Args:
            rows: of one request, of one cost.
            report: when to tell.
            deadline_seconds: until the last news.
            name: by which `leave` knows the request.

        Raises:
            Overloaded, DeadlineExceeded, EngineStopped, RaverseError: see `sample`.
        """
        job = Job.of(rows, report, deadline_seconds, name)
        self._tell(lambda: self._admit(job, rows, deadline_seconds))
        try:
            while True:
                news = await job.told.get()
                if isinstance(news, BaseException):
                    raise news
                yield news
                if news.done:
                    return
        finally:
            if not job.ended:
                with contextlib.suppress(EngineStopped):
                    self._tell(lambda: self._cancel(job))

    def leave(self, name: str) -> None:
        """Takes the rows of this request out, if they are here: its client has left, whatever else went wrong."""
        with contextlib.suppress(EngineStopped):
            self._tell(lambda: self._leave(name))

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
        rows = min(len(self._engine), self._max_rows)
        if rows == 0:
            return
        started, count = time.perf_counter(), self._at_once()
        outcomes = self._engine.tick()
        seconds = time.perf_counter() - started
        self._busy += seconds
        self._steps.append(StepTaken(self._times.learn(count, seconds), rows, seconds))
        ended = [(self._jobs.get(outcome.row_id), self._take_out(outcome)) for outcome in outcomes]
        self._book()
        for job, result in ended:
            if job is not None and result is not None:
                job.settle(result)
        self._report(time.monotonic())

    def _report(self, now: float) -> None:
        """Tells the jobs that want to hear of their rows now, and ends those that are late."""
        for job in dict.fromkeys(self._jobs.values()):
            if not job.started:
                job.started = True
                self._waits.append(now - job.arrived)
            if now > job.deadline:
                self._cancel(job)
                job.tell(DeadlineExceeded("the picture was not done by `deadline_seconds`: ask for fewer steps"))
            elif job.marks or now >= job.next_report:
                self._report_to(job, now)

    def _report_to(self, job: Job, now: float) -> None:
        states = [self._engine.state(row_id) or state for row_id, state in job.rows.items()]
        slowest = max(state.remaining for state in states if isinstance(state, Trajectory))
        passed = [mark for mark in job.marks if slowest <= mark]
        if passed or now >= job.next_report:
            job.marks = job.marks[len(passed) :]
            job.next_report = now + job.report.every_seconds
            job.tell(News(states, marked=bool(passed)))

    def _admit(self, job: Job, rows: Sequence[Trajectory], deadline_seconds: float) -> None:
        fault = None
        try:
            self._check_room(job, rows, deadline_seconds)
            for row in rows:
                row_id = self._engine.submit(row)
                job.rows[row_id] = row
                self._jobs[row_id] = job
        # Whatever is wrong with a request is that request's answer; the thread goes on.
        except Exception as error:  # noqa: BLE001
            self._drop(job)
            fault = error
        self._book()
        if fault is not None:
            job.settle(fault)

    def _check_room(self, job: Job, rows: Sequence[Trajectory], deadline_seconds: float) -> None:
        if not self._running:
            raise _stopped()
        held, wait = len(self._engine), self._load.seconds
        at_once = self._at_once() + job.cost * min(len(rows), self._max_rows)
        own = self._times.drain(job.cost * sum(row.remaining for row in rows), at_once)
        if held and held + len(rows) > self._limits.rows:
            raise self._refuse(f"{held} pictures wait, of at most {self._limits.rows}", wait)
        if held and wait + own > self._limits.seconds:
            raise self._refuse(f"{wait:.1f} s of denoising wait", wait + own - self._limits.seconds)
        turns = max(1.0, (held + len(rows)) / self._max_rows)
        took = turns * max(row.remaining for row in rows) * self._times.step(at_once / turns)
        if took > deadline_seconds:
            raise self._refuse(f"this would take about {took:.1f} s, later than `deadline_seconds`", wait)

    def _refuse(self, reason: str, wait: float) -> Overloaded:
        self._counts["refused"] += 1
        return Overloaded(f"{reason}: try again in {max(1, round(wait))} s", wait)

    def _at_once(self) -> float:
        """Evaluations of a step, of all rows that may run together."""
        total = sum(job.cost for job in self._jobs.values())
        return total * min(1.0, self._max_rows / max(1, len(self._jobs)))

    def _take_out(self, outcome: Outcome) -> News | Exception | None:
        """What the row's request is told now: its samples, its error, or nothing yet."""
        job = self._jobs.pop(outcome.row_id, None)
        if job is None:
            return None
        if outcome.error is not None:
            self._counts["failed"] += 1
            self._drop(job)
            return outcome.error
        self._counts["finished"] += 1
        assert outcome.x0 is not None
        job.rows[outcome.row_id] = outcome.x0
        states = list(job.rows.values())
        return News(states, done=True) if all(isinstance(state, Tensor) for state in states) else None

    def _cancel(self, job: Job) -> None:
        self._counts["cancelled"] += self._drop(job)
        job.ended = True
        self._book()

    def _leave(self, name: str) -> None:
        for job in [job for job in dict.fromkeys(self._jobs.values()) if job.name == name]:
            self._cancel(job)
            job.tell(asyncio.CancelledError())

    def _drop(self, job: Job) -> int:
        """Takes the job's remaining rows out of the engine and says how many they were."""
        held = [row_id for row_id in job.rows if self._jobs.pop(row_id, None) is not None]
        return sum(self._engine.cancel(row_id) for row_id in held)

    def _book(self) -> None:
        steps, total = 0, 0.0
        for row_id, job in self._jobs.items():
            state = self._engine.state(row_id)
            if state is not None:
                steps += state.remaining
                total += job.cost * state.remaining
        seconds = self._times.drain(total, self._at_once())
        self._load = Load(len(self._engine), steps, seconds, self._busy, **self._counts)

    def _stop(self) -> None:
        self._running = False


def _stopped() -> EngineStopped:
    return EngineStopped("the engine of this replica has stopped, before the picture was made: send the request again")
