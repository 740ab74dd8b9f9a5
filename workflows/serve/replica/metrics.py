"""What Prometheus learns of the service, through Ray's own exporter.

The engine's thread keeps plain numbers; a task tells them once a second, so that no step waits for a metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, final

from ray.serve import metrics

if TYPE_CHECKING:
    from workflows.serve.replica.jobs import Load
    from workflows.serve.replica.versions import Served

_STEP_BOUNDS: Final = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0]
_WAIT_BOUNDS: Final = [0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0]
_COUNTED: Final = ("finished", "failed", "cancelled", "refused")

NAMES: Final = (
    "raverse_rows",
    "raverse_queued_seconds",
    "raverse_queue_wait_seconds",
    "raverse_step_seconds",
    "raverse_step_rows",
    "raverse_pictures_total",
    "raverse_loaded_version",
    "raverse_requests_total",
    "raverse_first_partial_seconds",
    "raverse_request_seconds",
    "raverse_handovers_total",
)
"""All names; the dashboard in deploy/ uses no other."""


@final
class SamplerMetrics:
    """Of one sampler replica."""

    def __init__(self, model: str) -> None:
        self._model = {"model": model}
        keys = ("model",)
        self._rows = metrics.Gauge("raverse_rows", "Pictures in the engine.", keys)
        self._queued = metrics.Gauge("raverse_queued_seconds", "Denoising that waits, in seconds.", keys)
        self._wait = metrics.Histogram("raverse_queue_wait_seconds", "Until the first step.", _WAIT_BOUNDS, keys)
        self._step = metrics.Histogram("raverse_step_seconds", "Time of a step.", _STEP_BOUNDS, ("model", "bucket"))
        self._step_rows = metrics.Histogram("raverse_step_rows", "Rows of a step.", [1, 2, 4, 8, 16, 32, 64], keys)
        self._pictures = metrics.Counter("raverse_pictures_total", "Pictures by their end.", ("model", "end"))
        self._version = metrics.Gauge("raverse_loaded_version", "1: in memory.", ("model", "version"))
        self._told: dict[str, Load] = {}

    def tell(self, held: Sequence[Served]) -> None:
        """Tells what happened since the last call.

        Args:
            held: the versions in memory.
        """
        loads = {served.menu.version: served.engine.load for served in held}
        self._rows.set(sum(load.rows for load in loads.values()), self._model)
        self._queued.set(sum(load.seconds for load in loads.values()), self._model)
        for version, load in loads.items():
            self._count(load, self._told.get(version))
            self._version.set(1, self._model | {"version": version})
        for version in self._told.keys() - loads.keys():
            self._version.set(0, self._model | {"version": version})
        self._told = loads
        for served in held:
            for seconds in served.engine.take_waits():
                self._wait.observe(seconds, self._model)
            for step in served.engine.take_steps():
                self._step.observe(step.seconds, self._model | {"bucket": str(step.bucket)})
                self._step_rows.observe(step.rows, self._model)

    def _count(self, load: Load, before: Load | None) -> None:
        for end in _COUNTED:
            more = getattr(load, end) - (0 if before is None else getattr(before, end))
            if more > 0:
                self._pictures.inc(more, self._model | {"end": end})


@final
class IngressMetrics:
    """Of one ingress replica.

    Args:
        models: their names.
    """

    def __init__(self, models: Iterable[str]) -> None:
        keys = ("model",)
        self._requests = metrics.Counter("raverse_requests_total", "Requests by status.", ("model", "status"))
        self._partial = metrics.Histogram("raverse_first_partial_seconds", "Until a preview.", _WAIT_BOUNDS, keys)
        self._seconds = metrics.Histogram("raverse_request_seconds", "Until the pictures.", _WAIT_BOUNDS, keys)
        # Ray exports no counter before its first count, so `rate` would miss the one that matters: this begins at 0,
        # and is told with every request, since Ray forgets a gauge that nobody sets.
        self._handovers = metrics.Gauge("raverse_handovers_total", "Requests sent to another replica.", keys)
        self._handed_over = dict.fromkeys(models, 0)

    def ended(self, model: str, status: int, seconds: float) -> None:
        """A request has its answer."""
        self._handovers.set(self._handed_over[model], {"model": model})
        self._requests.inc(1, {"model": model, "status": str(status)})
        if status < 400:
            self._seconds.observe(seconds, {"model": model})

    def first_partial(self, model: str, seconds: float) -> None:
        """A client saw something."""
        self._partial.observe(seconds, {"model": model})

    def handed_over(self, model: str) -> None:
        """A replica was lost, another goes on."""
        self._handed_over[model] += 1
