"""The autoscaling policy: the number of replicas follows the seconds of denoising that wait.

Ray calls the policy in its controller ten times a second, and applies its own bounds and delays to the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, final

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

QUEUED_SECONDS: Final = "queued_seconds"
"""The statistic that `Replica.record_autoscaling_stats` reports."""


def desired_replicas(queued_seconds: Sequence[float], open_requests: float, target_seconds: float) -> int:
    """The number of replicas that brings the wait down to the target.

    Args:
        queued_seconds: seconds of denoising that wait at each replica.
        open_requests: requests that run or wait, also at replicas that do not report yet.
        target_seconds: seconds of denoising that may wait at each replica.

    Returns:
        At least 1 while a request is open, and 0 without requests.
    """
    by_queue = math.ceil(sum(queued_seconds) / target_seconds)
    return max(by_queue, 1 if open_requests > 0 else 0)


@final
class QueuedSecondsPolicy:
    """The policy as Ray calls it.

    Args:
        target_seconds: seconds of denoising that may wait at each replica.
    """

    def __init__(self, target_seconds: float) -> None:
        self._target = target_seconds

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Returns the number of replicas, and an empty state."""
        by_replica = (context.aggregated_metrics or {}).get(QUEUED_SECONDS, {})
        return desired_replicas(list(by_replica.values()), context.total_num_requests, self._target), {}
