"""What denoising costs: network evaluations, and the measured time of each batch size.

A row of classifier-free guidance asks the network twice, a gradient asks its own network forward and back.
Admission, deadlines, `Retry-After` and autoscaling are all reckoned from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

from diffusion_core.condition import Condition

_SMOOTHING: Final = 0.1
# A forward and a backward pass of the judge: small for the noisy classifier, all of CLIP's towers for clean CLIP.
_CLASSIFIER: Final = 1.0
_CLIP: Final = 2.0


def evaluations(condition: Condition) -> float:
    """Network evaluations that one step of this row costs; gradients count as as many as they take time.

    Args:
        condition: one row.
    """
    doubled = 1.0 if float(condition.setting("guidance_scale", 1.0)[0]) != 1.0 else 0.0
    classifier = _CLASSIFIER if float(condition.setting("classifier_scale", 0.0)[0]) != 0.0 else 0.0
    clip = _CLIP if float(condition.setting("clip_scale", 0.0)[0]) != 0.0 else 0.0
    return 1.0 + doubled + classifier + clip


@final
class StepTimes:
    """How long a step takes, learnt per bucket of evaluations.

    Args:
        buckets: sizes of a step, ascending.
    """

    def __init__(self, buckets: Sequence[int]) -> None:
        self._buckets = tuple(buckets)
        self._seconds: dict[int, float] = {}

    def bucket(self, count: float) -> int:
        """The bucket of a step of so many evaluations."""
        return next((bucket for bucket in self._buckets if bucket >= count), self._buckets[-1])

    def learn(self, count: float, seconds: float) -> int:
        """Takes note of a step of `count` evaluations; returns its bucket."""
        bucket = self.bucket(count)
        known = self._seconds.get(bucket)
        self._seconds[bucket] = seconds if known is None else known + _SMOOTHING * (seconds - known)
        return bucket

    def step(self, count: float) -> float:
        """Seconds of a step of `count` evaluations; from the nearest bucket known, 0.0 if none is."""
        if not self._seconds:
            return 0.0
        bucket = self.bucket(count)
        nearest = min(self._seconds, key=lambda one: (abs(one - bucket), one))
        # Larger batches cost at most in proportion; smaller ones hardly less than what was measured.
        return self._seconds[nearest] * max(1.0, bucket / nearest)

    def drain(self, total: float, at_once: float) -> float:
        """Seconds that `total` evaluations take, `at_once` of them per step."""
        return 0.0 if total <= 0.0 or at_once <= 0.0 else total / at_once * self.step(at_once)
