"""The foretold ends of rows, against rows that take turns one by one."""

from __future__ import annotations

import random

import pytest

from diffusion_core.engine import RoundRobin
from workflows.serve.engine.forecast import Work, releases, seconds_until


def ends_of(steps: list[int], at_once: int) -> list[int]:
    """After how many engine steps each row of these lengths ends, in order of the ends."""
    turns, left, ends = RoundRobin(at_once), dict(enumerate(steps)), []
    for row in left:
        turns.admit(row)
    for made in range(1, sum(steps) + 1):
        for row in turns.turn():
            left[row] -= 1
            if left[row] == 0:
                turns.remove(row)
                ends.append(made)
    return ends


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_rows_end_when_a_real_queue_ends_them(seed: int, at_once: int) -> None:
    steps = random.Random(seed).choices(range(20, 60), k=40)
    found = list(releases([Work(count, 1, 1.0) for count in steps], lambda rows, _: max(1.0, rows / at_once)))
    wanted = ends_of(steps, at_once)
    assert [ended for _, ended in found] == list(range(1, 41))
    # A cycle of rows that take turns is foretold as a fraction of steps: one turn of all rows is the resolution.
    assert [seconds for seconds, _ in found] == pytest.approx(wanted, abs=40 / at_once + 1)


def test_equal_rows_end_together() -> None:
    queue = [Work(50, 1, 2.0)] * 256
    forecast = list(releases(queue, lambda _, evaluations: 0.001 * evaluations))
    assert seconds_until(1, forecast) == pytest.approx(50 * 512 * 0.001)
    assert seconds_until(256, forecast) == pytest.approx(50 * 512 * 0.001)


def test_room_comes_with_the_rows_that_end_first() -> None:
    queue = [Work(100, 4, 1.0), Work(10, 2, 1.0)]
    forecast = list(releases(queue, lambda rows, _: float(rows)))
    assert (seconds_until(2, forecast), seconds_until(3, forecast)) == (60.0, 60.0 + 90 * 4)


def test_an_empty_queue_has_room_now() -> None:
    assert seconds_until(1, releases([], lambda *_: 1.0)) == 0.0
