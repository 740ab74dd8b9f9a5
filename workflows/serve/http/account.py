"""The work that was let in and is not answered yet, so that the front refuses at once what would wait too long.

The rows of all open requests take turns. So each of them makes as many steps as any other in a given time, and one
number says how far they have come: `_progress`, in steps. A request ends when the number has grown by its steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import count
from typing import Any, Final, final

from workflows.errors import InvalidRequest
from workflows.options.guidance import DEFAULT_GUIDANCE, Guidance, extra_evaluations
from workflows.serve.engine.admission import overloaded
from workflows.serve.engine.forecast import Work, releases, seconds_until

_UNKNOWN_SECONDS: Final = 1.0
_LARGEST: Final = 1e6
_LONGEST_NAME: Final = 200


@final
@dataclass(frozen=True)
class Capacity:
    """The room of one model's samplers together.

    Attributes:
        rows: pictures that they accept.
        seconds: seconds of denoising that they accept.
        pace: seconds per network evaluation of one sampler; 0.0 while unknown.
        samplers: number of them.
        steps: steps of a request that names none.
    """

    rows: int
    seconds: float
    pace: float = 0.0
    samplers: int = 1
    steps: int = 50

    def with_samplers(self, samplers: int, pace: float) -> Capacity:
        """The same room per sampler, for another number of them."""
        per, number = max(1, self.samplers), max(1, samplers)
        return replace(
            self,
            rows=self.rows * number // per,
            seconds=self.seconds * number / per,
            pace=pace or self.pace,
            samplers=number,
        )

    def plain(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return asdict(self)


@final
class WorkAccount:
    """The open requests of one model.

    It holds three numbers per open request.

    Args:
        capacity: the room of the samplers; it may be set again while requests are open.
    """

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._open: dict[int, Work] = {}
        self._numbers = count()
        self._progress, self._since = 0.0, time.monotonic()
        self._rows, self._evaluations = 0, 0.0
        self._forecast: list[tuple[float, int]] | None = None

    def __len__(self) -> int:
        return len(self._open)

    @property
    def capacity(self) -> Capacity:
        """The room of the samplers."""
        return self._capacity

    @capacity.setter
    def capacity(self, capacity: Capacity) -> None:
        self._advance(time.monotonic())
        self._capacity, self._forecast = capacity, None

    @contextmanager
    def entered(self, work: Work) -> Iterator[None]:
        """Counts the work of a request for the length of the block; an empty account lets every request in.

        Raises:
            Overloaded: there is no room; `retry_after` is the time until there probably is.
        """
        self._advance(time.monotonic())
        self._check(work)
        number = next(self._numbers)
        self._open[number] = replace(work, steps=self._progress + work.steps)
        self._change(work.rows, work.cost)
        try:
            yield
        finally:
            self._advance(time.monotonic())
            del self._open[number]
            self._change(-work.rows, work.cost)

    def _check(self, work: Work) -> None:
        room = self._capacity
        if (excess := self._rows + work.rows - room.rows) > 0 and self._rows:
            wait = self._wait(excess)
            raise overloaded(f"{self._rows} pictures wait, of at most {room.rows}", wait)
        waiting = self._waiting()
        if waiting and (late := waiting + work.evaluations * room.pace / room.samplers - room.seconds) > 0:
            raise overloaded(f"{waiting:.1f} s of denoising wait", min(late, waiting))

    def _wait(self, num_rows: int) -> float:
        """Seconds until so many rows have ended. Refusals change nothing, so a burst of them shares one forecast."""
        if not self._capacity.pace:
            return _UNKNOWN_SECONDS
        now = time.monotonic()
        if self._forecast is None:
            self._forecast = [(now + seconds, ended) for seconds, ended in releases(self._left(), self._cycle)]
        return max(0.0, seconds_until(num_rows, self._forecast) - now)

    def _waiting(self) -> float:
        """Seconds of denoising that are left."""
        room = self._capacity
        return sum(work.evaluations for work in self._left()) * room.pace / room.samplers if room.pace else 0.0

    def _left(self) -> Iterator[Work]:
        for work in self._open.values():
            yield replace(work, steps=max(0.0, work.steps - self._progress))

    def _cycle(self, _: int, evaluations: float) -> float:
        return evaluations * self._capacity.pace / self._capacity.samplers

    def _advance(self, now: float) -> None:
        cycle = self._cycle(self._rows, self._evaluations)
        if cycle > 0.0:
            self._progress += (now - self._since) / cycle
        self._since = now

    def _change(self, rows: int, cost: float) -> None:
        self._rows, self._evaluations = self._rows + rows, self._evaluations + rows * cost
        if not self._open:
            self._rows, self._evaluations, self._progress = 0, 0.0, 0.0
        self._forecast = None


def work_of(fields: Mapping[str, Any], capacity: Capacity) -> Work:
    """The work that a request's fields ask for.

    Args:
        fields: of the request, checked or not: where a field is no sensible value, its default counts.
        capacity: knows the default number of steps.
    """
    steps = _number(fields.get("num_inference_steps"), capacity.steps)
    share = _number(fields.get("strength"), 1.0)
    return Work(max(1.0, steps * min(1.0, share)), int(_number(fields.get("n"), 1)), _cost_of(fields))


def _cost_of(fields: Mapping[str, Any]) -> float:
    scale = fields.get("guidance_scale")
    name = str(fields.get("guidance") or DEFAULT_GUIDANCE.name)[:_LONGEST_NAME]
    return _cost(name, float(scale) if isinstance(scale, int | float) and 0 <= scale < _LARGEST else None)


# A burst of equal requests asks for the same cost again and again.
@lru_cache(maxsize=256)
def _cost(name: str, scale: float | None) -> float:
    """Network evaluations of one step of one row."""
    try:
        guidance = Guidance.of(name).over({})
        if scale is not None:
            guidance = guidance.at(scale)
    except InvalidRequest:
        # The request will be refused for this.
        return 1.0
    core = guidance.core_settings()
    return 1.0 + extra_evaluations(core.get)


def _number(value: Any, default: float) -> float:
    return float(value) if isinstance(value, int | float) and 0 < value < _LARGEST else default
