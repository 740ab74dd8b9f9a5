"""The cost of denoising."""

from __future__ import annotations

import pytest

from diffusion_core.condition import Condition
from workflows.serve.engine.costs import StepTimes, evaluations


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 1),
        ({"guidance_scale": 1.0}, 1),
        ({"guidance_scale": 2.0}, 2),
        ({"guidance_scale": 0.0}, 1),
        ({"guidance_scale": 0.0, "cfg_plus_plus": 1.0}, 2),
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


def test_slow_steps_do_not_change_the_time_until_they_are_most_of_them() -> None:
    times = StepTimes((1,))
    for seconds in [0.1] * 20 + [1.1] * 7:
        times.learn(1, seconds)
    assert times.step(1) == 0.1
    times.learn(1, 1.1)
    assert times.step(1) == 1.1


def test_without_padding_a_step_takes_its_share_of_the_bucket() -> None:
    times = StepTimes((32, 64), padded=False)
    times.learn(40, 0.4)
    assert [times.step(count) for count in (40, 64)] == pytest.approx([0.4, 0.64])
    assert times.pace == pytest.approx(0.01)
    padded = StepTimes((32, 64))
    padded.learn(40, 0.4)
    assert [padded.step(count) for count in (40, 64)] == [0.4, 0.4]


def test_a_queue_takes_its_evaluations_at_the_speed_of_its_bucket() -> None:
    times = StepTimes((1, 2, 4, 8))
    times.learn(8, 0.5)
    assert times.drain(80, 8) == pytest.approx(5.0)
