"""What denoising costs, and how many replicas it wants."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from diffusion_core.condition import Condition
from workflows.serve.replica.autoscaling import QUEUED_SECONDS, QueuedSeconds, wanted_replicas
from workflows.serve.replica.costs import StepTimes, evaluations


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 1),
        ({"guidance_scale": 1.0}, 1),
        ({"guidance_scale": 2.0}, 2),
        ({"guidance_scale": 0.0}, 2),
        ({"classifier_scale": 3.0}, 2),
        ({"classifier_scale": 0.0, "clip_scale": 0.0}, 1),
        ({"clip_scale": 3.0}, 3),
        ({"guidance_scale": 2.0, "classifier_scale": 3.0}, 3),
    ],
)
def test_a_row_costs_the_evaluations_of_its_guidance(settings: dict[str, float], count: float) -> None:
    assert evaluations(Condition.of(label=[0]).with_settings(**settings)) == count


def test_nothing_is_claimed_before_anything_is_measured() -> None:
    times = StepTimes((1, 2, 4))
    assert (times.step(4), times.drain(100, 4)) == (0.0, 0.0)


def test_each_bucket_has_its_own_time_and_others_are_reckoned_from_the_nearest() -> None:
    times = StepTimes((1, 2, 4, 8, 16))
    assert times.learn(3, 0.4) == 4
    assert [times.step(count) for count in (1, 4, 5, 16)] == [0.4, 0.4, 0.8, 1.6]
    times.learn(1, 0.1)
    assert times.step(1) == 0.1
    assert times.step(2) == 0.2


def test_one_slow_step_does_not_change_the_time_much() -> None:
    times = StepTimes((1,))
    for seconds in [0.1] * 20 + [1.1]:
        times.learn(1, seconds)
    assert times.step(1) == pytest.approx(0.2)


def test_a_queue_takes_its_evaluations_at_the_speed_of_its_bucket() -> None:
    times = StepTimes((1, 2, 4, 8))
    times.learn(8, 0.5)
    assert times.drain(80, 8) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("queued", "open_requests", "wanted"),
    [
        ([], 0, 0),
        ([], 3, 1),
        ([0.0], 0, 0),
        ([0.0], 1, 1),
        ([9.9], 5, 1),
        ([10.1], 5, 2),
        ([30.0, 5.0], 5, 4),
        ([5.0, 5.0], 500, 1),
    ],
)
def test_replicas_follow_the_seconds_that_wait_and_not_the_number_of_requests(
    queued: list[float], open_requests: float, wanted: int
) -> None:
    assert wanted_replicas(queued, open_requests, target_seconds=10.0) == wanted


def test_the_policy_reads_what_the_replicas_report() -> None:
    context: Any = SimpleNamespace(aggregated_metrics={QUEUED_SECONDS: {"a": 12.0, "b": 9.0}}, total_num_requests=2.0)
    assert QueuedSeconds(10.0)(context) == (3, {})
    empty: Any = SimpleNamespace(aggregated_metrics=None, total_num_requests=0.0)
    assert QueuedSeconds(10.0)(empty) == (0, {})
