"""The number of replicas follows the seconds of denoising that wait."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from workflows.serve.replica.autoscaling import QUEUED_SECONDS, QueuedSecondsPolicy, desired_replicas


@pytest.mark.parametrize(
    ("queued", "open_requests", "desired"),
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
    queued: list[float], open_requests: float, desired: int
) -> None:
    assert desired_replicas(queued, open_requests, target_seconds=10.0) == desired


def test_the_policy_reads_what_the_replicas_report() -> None:
    context: Any = SimpleNamespace(aggregated_metrics={QUEUED_SECONDS: {"a": 12.0, "b": 9.0}}, total_num_requests=2.0)
    assert QueuedSecondsPolicy(10.0)(context) == (3, {})
    empty: Any = SimpleNamespace(aggregated_metrics=None, total_num_requests=0.0)
    assert QueuedSecondsPolicy(10.0)(empty) == (0, {})
