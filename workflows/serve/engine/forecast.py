"""The time after which a full queue has room again, where all rows take turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias, final


@final
@dataclass(frozen=True, order=True)
class Work:
    """Rows that go through the same number of steps.

    Attributes:
        steps: steps that each of its rows has left.
        rows: their number.
        cost: network evaluations of one step of one row.
    """

    steps: float
    rows: int
    cost: float

    @property
    def evaluations(self) -> float:
        """Network evaluations that are left."""
        return self.steps * self.rows * self.cost


Cycle: TypeAlias = Callable[[int, float], float]
"""Seconds in which each of so many rows makes a step, by their number and the evaluations of one step of them all."""


def releases(queue: Iterable[Work], cycle: Cycle) -> Iterator[tuple[float, int]]:
    """Foretells when rows end, if none joins: every row makes one step per cycle, and cycles get shorter on the way.

    It holds one number per entry of the queue.

    Args:
        queue: everything that is unfinished.
        cycle: see there.

    Yields:
        Seconds from now, and the rows that have ended by then.
    """
    waiting = sorted(queue)
    rows = sum(work.rows for work in waiting)
    evaluations = sum(work.rows * work.cost for work in waiting)
    seconds, made, ended = 0.0, 0.0, 0
    for work in waiting:
        seconds += max(0.0, work.steps - made) * cycle(rows, evaluations)
        made = max(made, work.steps)
        rows, evaluations, ended = rows - work.rows, evaluations - work.rows * work.cost, ended + work.rows
        yield seconds, ended


def seconds_until(num_rows: int, forecast: Iterable[tuple[float, int]]) -> float:
    """Seconds until `num_rows` rows have ended, by a forecast of `releases`; until all have if there are fewer."""
    last = 0.0
    for seconds, ended in forecast:
        last = seconds
        if ended >= num_rows:
            break
    return last
