"""The metrics of one replica, which Ray's exporter shows to Prometheus.

The engine's thread keeps plain numbers; a task of the replica records them once a second, so that no step waits for a
metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, final

from ray.serve import metrics

from workflows.serve.metric_names import WAIT_BOUNDS, MetricName

if TYPE_CHECKING:
    from workflows.serve.engine.load import EngineLoad
    from workflows.serve.replica.versions import LoadedVersion

_STEP_BOUNDS: Final = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0]
_ENDS: Final = ("finished", "failed", "cancelled", "refused")


@final
class ReplicaMetrics:
    """Records the load and the steps of a replica's engines.

    Args:
        model: name of the model that the replica serves.
    """

    def __init__(self, model: str) -> None:
        self._model = {"model": model}
        keys = ("model",)
        self._rows = metrics.Gauge(MetricName.ROWS, "Pictures in the engine.", keys)
        self._queued = metrics.Gauge(MetricName.QUEUED_SECONDS, "Seconds of denoising that wait.", keys)
        self._wait = metrics.Histogram(
            MetricName.QUEUE_WAIT_SECONDS, "Seconds until the first step of a request.", WAIT_BOUNDS, keys
        )
        self._step = metrics.Histogram(MetricName.STEP_SECONDS, "Seconds of a step.", _STEP_BOUNDS, ("model", "bucket"))
        self._step_rows = metrics.Histogram(MetricName.STEP_ROWS, "Rows of a step.", [1, 2, 4, 8, 16, 32, 64], keys)
        self._pictures = metrics.Counter(MetricName.PICTURES, "Pictures by their end.", ("model", "end"))
        self._version = metrics.Gauge(MetricName.LOADED_VERSION, "1 while in memory.", ("model", "version"))
        self._recorded: dict[str, EngineLoad] = {}

    def record(self, loaded: Sequence[LoadedVersion]) -> None:
        """Records the changes since the last call.

        Args:
            loaded: the versions in memory.
        """
        loads = {version.capabilities.version: version.engine.load for version in loaded}
        self._rows.set(sum(load.rows for load in loads.values()), self._model)
        self._queued.set(sum(load.queued_seconds for load in loads.values()), self._model)
        for number, load in loads.items():
            self._count_ends(load, self._recorded.get(number))
            self._version.set(1, self._model | {"version": number})
        for number in self._recorded.keys() - loads.keys():
            self._version.set(0, self._model | {"version": number})
        self._recorded = loads
        for version in loaded:
            for seconds in version.engine.take_waits():
                self._wait.observe(seconds, self._model)
            for step in version.engine.take_steps():
                self._step.observe(step.seconds, self._model | {"bucket": str(step.bucket)})
                self._step_rows.observe(step.rows, self._model)

    def _count_ends(self, load: EngineLoad, before: EngineLoad | None) -> None:
        for end in _ENDS:
            more = getattr(load, end) - (0 if before is None else getattr(before, end))
            if more > 0:
                self._pictures.inc(more, self._model | {"end": end})
