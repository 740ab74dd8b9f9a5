"""The work that is let in at the front, against rows that really take turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from workflows.errors import Overloaded
from workflows.serve.engine.forecast import Work
from workflows.serve.http import account as module
from workflows.serve.http.account import Capacity, WorkAccount, work_of


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


CAPACITY = Capacity(rows=16, seconds=100.0, pace=0.01)


def test_pictures_beyond_the_room_are_refused_and_told_when_there_is_some(clock: Clock, opened: ExitStack) -> None:
    account = WorkAccount(CAPACITY)
    for steps in (10, 10, 50, 50):
        opened.enter_context(account.entered(Work(steps, 4, 2.0)))
    with pytest.raises(Overloaded) as caught, account.entered(Work(10, 3, 2.0)):
        raise AssertionError
    # 16 rows of two evaluations, 0.01 s each: the short ones have made their ten steps after 3.2 s.
    assert caught.value.retry_after == pytest.approx(3.2)
    clock.now += 2.0
    with pytest.raises(Overloaded) as caught, account.entered(Work(10, 9, 2.0)):
        raise AssertionError
    # Nine places need a long one too: 40 more steps of the eight rows that are left.
    assert caught.value.retry_after == pytest.approx(3.2 + 40 * 0.16 - 2.0)


@pytest.mark.parametrize("samplers", [1, 3])
def test_whoever_comes_after_that_time_is_let_in(clock: Clock, samplers: int) -> None:
    account = WorkAccount(CAPACITY.with_samplers(samplers, 0.02))
    entries = [account.entered(Work(20, 4, 2.0)) for _ in range(4 * samplers)]
    for entry in entries:
        entry.__enter__()
    with pytest.raises(Overloaded) as caught, account.entered(Work(20, 1, 2.0)):
        raise AssertionError
    # The samplers share the work, and the first row ends with the last.
    assert caught.value.retry_after == pytest.approx(16 * 20 * 2 * 0.02)
    entries[0].__exit__(None, None, None)
    with account.entered(Work(20, 1, 2.0)):
        assert len(account) == 4 * samplers


def test_seconds_are_bounded_too(clock: Clock, opened: ExitStack) -> None:
    account = WorkAccount(CAPACITY)
    opened.enter_context(account.entered(Work(900, 5, 2.0)))
    with pytest.raises(Overloaded, match=r"90\.0 s of denoising wait") as caught, account.entered(Work(900, 1, 2.0)):
        raise AssertionError
    assert caught.value.retry_after == pytest.approx(8.0)
    clock.now += 8.1
    opened.enter_context(account.entered(Work(900, 1, 2.0)))


def test_an_idle_service_lets_any_request_in(clock: Clock) -> None:
    with WorkAccount(CAPACITY).entered(Work(1e6, 99, 3.0)):
        pass


def test_before_anything_is_measured_only_rows_are_bounded(clock: Clock, opened: ExitStack) -> None:
    account = WorkAccount(Capacity(rows=2, seconds=1e-9))
    opened.enter_context(account.entered(Work(50, 2, 2.0)))
    with pytest.raises(Overloaded) as caught, account.entered(Work(50, 1, 2.0)):
        raise AssertionError
    assert caught.value.retry_after == 1.0


def test_room_grows_with_the_samplers(clock: Clock) -> None:
    two = CAPACITY.with_samplers(2, 0.0)
    assert (two.rows, two.seconds, two.pace) == (32, 200.0, 0.01)
    assert two.with_samplers(0, 0.02) == Capacity(16, 100.0, 0.02, 1)


@pytest.mark.parametrize(
    ("fields", "work"),
    [
        ({}, Work(50, 1, 2.0)),
        ({"n": 3, "num_inference_steps": 20, "guidance": "none"}, Work(20, 3, 1.0)),
        ({"guidance_scale": 1.0}, Work(50, 1, 1.0)),
        ({"guidance": "clip", "strength": 0.5}, Work(25, 1, 3.0)),
        ({"guidance": "nonsense", "n": "many", "num_inference_steps": -4}, Work(50, 1, 1.0)),
        ({"n": float("nan"), "guidance_scale": "much"}, Work(50, 1, 2.0)),
        ({"n": 10**400, "guidance_scale": 10**400}, Work(50, 1, 2.0)),
    ],
)
def test_work_is_read_off_the_fields_whatever_they_hold(fields: dict[str, object], work: Work) -> None:
    assert work_of(fields, CAPACITY) == work
