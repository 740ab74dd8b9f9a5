"""The cost of denoising: network evaluations, and the measured time of each batch size.

Classifier-free guidance evaluates the network twice per row; a gradient makes a forward and a backward pass of its own
network. Admission, deadlines, `Retry-After` and autoscaling use these numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Final, final

from diffusion_core.condition import Condition
from workflows.options.guidance import extra_evaluations

_REMEMBERED: Final = 15


def evaluations(condition: Condition) -> float:
    """Network evaluations of one step of a row; a gradient counts as the evaluations that take as long.

    Args:
        condition: one row.
    """
    return 1.0 + extra_evaluations(lambda name, default: float(condition.setting(name, default)[0]))


@final
class StepTimes:
    """The duration of a step, measured per bucket of network evaluations.

    A bucket's duration is the median of its last 15 measurements. So a few steps that were disturbed do not change it.

    Args:
        buckets: sizes of a step, in network evaluations, ascending.
        padded: whether a step takes as long as a full bucket; otherwise it takes its share of it.
    """

    def __init__(self, buckets: Sequence[int], *, padded: bool = True) -> None:
        self._buckets, self._padded = tuple(buckets), padded
        self._seconds: dict[int, deque[float]] = {}

    def bucket(self, count: float) -> int:
        """The bucket of a step of `count` evaluations."""
        return next((bucket for bucket in self._buckets if bucket >= count), self._buckets[-1])

    def learn(self, count: float, seconds: float) -> int:
        """Records the duration of a step of `count` evaluations, and returns its bucket."""
        bucket = self.bucket(count)
        known = self._seconds.setdefault(bucket, deque(maxlen=_REMEMBERED))
        known.append(seconds if self._padded else seconds * bucket / max(1.0, count))
        return bucket

    def step(self, count: float) -> float:
        """Seconds of a step of `count` evaluations, by the nearest measured bucket; 0.0 before any measurement."""
        if not self._seconds:
            return 0.0
        bucket = self.bucket(count)
        nearest = min(self._seconds, key=lambda one: (abs(one - bucket), one))
        seconds = median(self._seconds[nearest])
        if bucket == nearest and not self._padded:
            return seconds * count / bucket
        # A larger batch costs at most in proportion; a smaller one hardly less than the measured one.
        return seconds * max(1.0, bucket / nearest)

    @property
    def pace(self) -> float:
        """Seconds per evaluation of the largest step that was measured; 0.0 before any measurement."""
        largest = max(self._seconds, default=0)
        return self.step(largest) / largest if largest else 0.0

    def drain(self, total: float, at_once: float) -> float:
        """Seconds that `total` evaluations take, `at_once` of them per step."""
        return 0.0 if total <= 0.0 or at_once <= 0.0 else total / at_once * self.step(at_once)
