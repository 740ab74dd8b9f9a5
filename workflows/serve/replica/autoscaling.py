"""How many replicas: by the seconds of denoising that wait, not by the number of requests.

Ray asks in its controller ten times a second, and applies its own bounds and delays to the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, final

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

QUEUED_SECONDS: Final = "queued_seconds"
"""What `Sampler.record_autoscaling_stats` reports."""


def wanted_replicas(queued_seconds: Sequence[float], open_requests: float, target_seconds: float) -> int:
    """Replicas that bring the wait down to the target.

    Args:
        queued_seconds: of each replica.
        open_requests: running or waiting, also at replicas that do not report yet.
        target_seconds: of denoising that may wait at each.

    Returns:
        0 only when nobody asks.
    """
    by_queue = math.ceil(sum(queued_seconds) / target_seconds)
    return max(by_queue, 1 if open_requests > 0 else 0)


@final
class QueuedSeconds:
    """The policy that Ray calls.

    Args:
        target_seconds: of denoising that may wait per replica.
    """

    def __init__(self, target_seconds: float) -> None:
        self._target = target_seconds

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and no state."""
        told = (context.aggregated_metrics or {}).get(QUEUED_SECONDS, {})
        return wanted_replicas(list(told.values()), context.total_num_requests, self._target), {}
