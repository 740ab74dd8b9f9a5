"""The metrics of one ingress replica, which Ray's exporter shows to Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from ray.serve import metrics

from workflows.serve.metric_names import WAIT_BOUNDS, MetricName


@final
class IngressMetrics:
    """Counts the requests of each model, and times their answers.

    Args:
        models: names of the served models.
    """

    def __init__(self, models: Iterable[str]) -> None:
        keys = ("model",)
        self._requests = metrics.Counter(MetricName.REQUESTS, "Requests by status.", ("model", "status"))
        self._partial = metrics.Histogram(
            MetricName.FIRST_PARTIAL_SECONDS, "Seconds until the first preview.", WAIT_BOUNDS, keys
        )
        self._seconds = metrics.Histogram(MetricName.REQUEST_SECONDS, "Seconds until the answer.", WAIT_BOUNDS, keys)
        # Ray exports no counter before its first count, so `rate` would miss the only count that matters. A gauge
        # begins at 0; it is set with every request, since Ray forgets a gauge that nobody sets.
        self._handovers = metrics.Gauge(MetricName.HANDOVERS, "Requests sent to another replica.", keys)
        self._num_handovers = dict.fromkeys(models, 0)

    def request_ended(self, model: str, status: int, seconds: float) -> None:
        """Records a request that was answered, or whose client has left."""
        self._handovers.set(self._num_handovers[model], {"model": model})
        self._requests.inc(1, {"model": model, "status": str(status)})
        if status < 400:
            self._seconds.observe(seconds, {"model": model})

    def request_refused(self, status: int) -> None:
        """Records a request that was refused before it reached a model, for its key, its size or its fields."""
        self._requests.inc(1, {"model": "", "status": str(status)})

    def first_partial(self, model: str, seconds: float) -> None:
        """Records the first picture, or preview, of a streamed answer."""
        self._partial.observe(seconds, {"model": model})

    def handed_over(self, model: str) -> None:
        """Records a request that lost its replica and goes on at another one."""
        self._num_handovers[model] += 1
