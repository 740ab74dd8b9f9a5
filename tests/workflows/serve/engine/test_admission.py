"""Who is let in, and what the others are told."""

from __future__ import annotations

import asyncio

import pytest

from diffusion_core.condition import Condition
from diffusion_core.row import Trajectory
from diffusion_core.sampler import ddim
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.spacing import trailing
from workflows.errors import InvalidRequest, Overloaded
from workflows.serve.engine.admission import Admission
from workflows.serve.engine.costs import StepTimes
from workflows.serve.engine.forecast import Work
from workflows.serve.engine.queued_request import UNBOUNDED, QueuedRequest

SCHEDULE = NoiseSchedule.cosine(1000)
ADMISSION = Admission(max_waiting_rows=16, max_waiting_seconds=100.0, max_rows=8)


def request(num_steps: int, count: int = 1, deadline: float = UNBOUNDED) -> QueuedRequest:
    plan = ddim(SCHEDULE, trailing(SCHEDULE, num_steps))
    rows = [Trajectory.start(plan, Condition.of(label=[0]), seed=seed, shape=(2,)) for seed in range(count)]

    async def make() -> QueuedRequest:
        return QueuedRequest.of(rows, None, (), UNBOUNDED, deadline)

    return asyncio.run(make())


def times() -> StepTimes:
    """A second for a step of eight rows."""
    known = StepTimes((1, 2, 4, 8), padded=False)
    for bucket in (1, 2, 4, 8):
        known.learn(bucket, bucket / 8)
    return known


def test_the_wait_for_a_place_is_the_time_until_as_many_rows_have_ended() -> None:
    queue = [Work(10, 1, 1.0)] * 4 + [Work(60, 1, 1.0)] * 12
    with pytest.raises(Overloaded) as caught:
        ADMISSION.check(request(5, count=2), queue, times())
    # 16 rows of which 8 run at once: ten cycles of two steps, one second each.
    assert caught.value.retry_after == pytest.approx(20.0)
    assert "try again in 20 s" in str(caught.value)


def test_the_wait_for_seconds_is_what_is_too_much() -> None:
    queue = [Work(95, 1, 1.0)] * 8
    ADMISSION.check(request(30), queue, times())
    with pytest.raises(Overloaded, match=r"95\.0 s of denoising wait") as caught:
        ADMISSION.check(request(80), queue, times())
    assert caught.value.retry_after == pytest.approx(95 + 10 - 100)


def test_a_deadline_that_an_idle_service_misses_is_the_request_s_fault() -> None:
    with pytest.raises(InvalidRequest, match=r"an idle service takes about 125\.0 s") as caught:
        ADMISSION.check(request(1000, deadline=1.0), [], times())
    assert caught.value.param == "deadline_seconds"
    ADMISSION.check(request(1000, deadline=130.0), [], times())


def test_a_deadline_that_only_the_crowd_stops_may_be_met_later() -> None:
    queue = [Work(50, 1, 1.0)] * 15
    ADMISSION.check(request(8, deadline=2.0), [], times())
    with pytest.raises(Overloaded, match="later than `deadline_seconds`") as caught:
        ADMISSION.check(request(8, deadline=2.0), queue, times())
    assert caught.value.retry_after == pytest.approx(16 - 2)
