"""The rows of one request in an engine: what it is told of them, and what an engine says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias, final

from torch import Tensor

from diffusion_core.row import Trajectory
from workflows.serve.replica.costs import evaluations

UNBOUNDED: Final = float("inf")

RowState: TypeAlias = Trajectory | Tensor
"""A row on its way, or its sample."""


@final
@dataclass(frozen=True)
class Limits:
    """What an engine accepts.

    Attributes:
        rows: pictures of accepted requests.
        seconds: of denoising that may wait.
    """

    rows: int
    seconds: float = UNBOUNDED


@final
@dataclass(frozen=True)
class Report:
    """When a request wants to hear of its rows before they are done.

    Attributes:
        remaining: numbers of remaining steps at which to tell, descending.
        every_seconds: tell at least this often.
    """

    remaining: tuple[int, ...] = ()
    every_seconds: float = UNBOUNDED


@final
@dataclass(frozen=True)
class Load:
    """What an engine has before it and behind it.

    Attributes:
        rows: in the engine.
        steps: that these rows still have to make, together.
        seconds: estimate of the time that takes.
        busy: seconds that the steps so far took.
        finished: rows that ended with a sample.
        failed: rows that ended with an error.
        cancelled: rows whose client left.
        refused: requests turned away.
    """

    rows: int = 0
    steps: int = 0
    seconds: float = 0.0
    busy: float = 0.0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    refused: int = 0


@final
@dataclass(frozen=True)
class StepTaken:
    """One step of the engine, for the metrics: its bucket, rows and time."""

    bucket: int
    rows: int
    seconds: float


@final
@dataclass(frozen=True)
class News:
    """Where the rows of a request are; `marked`: one of the report's numbers was reached; `done`: all are samples."""

    states: list[RowState]
    marked: bool = False
    done: bool = False


@final
@dataclass(eq=False)
class Job:
    """The rows of one request, and who waits for them."""

    loop: asyncio.AbstractEventLoop
    told: asyncio.Queue[News | BaseException]
    name: str | None
    arrived: float
    report: Report
    cost: float
    deadline: float
    rows: dict[int, RowState] = field(default_factory=dict)
    marks: list[int] = field(default_factory=list)
    next_report: float = UNBOUNDED
    started: bool = False
    ended: bool = False

    @classmethod
    def of(cls, rows: Sequence[Trajectory], report: Report, deadline_seconds: float, name: str | None) -> Job:
        """A request that arrives now, in the running event loop."""
        now, longest = time.monotonic(), max(row.remaining for row in rows)
        return cls(
            loop=asyncio.get_running_loop(),
            told=asyncio.Queue(),
            name=name,
            arrived=now,
            report=report,
            cost=evaluations(rows[0].condition),
            deadline=now + deadline_seconds,
            # A row that another replica began has passed some of them already.
            marks=[mark for mark in report.remaining if mark < longest],
            next_report=now + report.every_seconds,
        )

    def tell(self, news: News | BaseException) -> None:
        """Wakes the waiting request, from another thread than its own."""
        with contextlib.suppress(RuntimeError):  # its event loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self.told.put_nowait, news)

    def settle(self, result: News | BaseException) -> None:
        """Tells it the last news."""
        if not self.ended:
            self.ended = True
            self.tell(result)
