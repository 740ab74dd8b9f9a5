"""The numbers that an engine reports about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class EngineLoad:
    """The work that an engine has left, and the work that it has done.

    Attributes:
        rows: rows in the engine.
        steps: steps that these rows have left, together.
        queued_seconds: estimated time of these steps.
        busy_seconds: time that all steps took so far.
        finished: rows that ended with a sample.
        failed: rows that ended with an error.
        cancelled: rows whose client left, or whose deadline passed.
        refused: requests that were refused.
        pace: seconds per network evaluation of a large step; 0.0 before any was measured.
    """

    rows: int = 0
    steps: int = 0
    queued_seconds: float = 0.0
    busy_seconds: float = 0.0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    refused: int = 0
    pace: float = 0.0


@final
@dataclass(frozen=True)
class StepRecord:
    """One step of an engine.

    Attributes:
        bucket: its network evaluations, rounded up to a bucket of `StepTimes`.
        rows: rows that made it.
        seconds: its duration.
    """

    bucket: int
    rows: int
    seconds: float
