"""The names of the service's Prometheus metrics; the dashboard in deploy/ shows each of them and no other."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, final


@final
class MetricName(StrEnum):
    """One metric, as a scrape of Ray's exporter shows it after the prefix `ray_`."""

    ROWS = "raverse_rows"
    QUEUED_SECONDS = "raverse_queued_seconds"
    QUEUE_WAIT_SECONDS = "raverse_queue_wait_seconds"
    STEP_SECONDS = "raverse_step_seconds"
    STEP_ROWS = "raverse_step_rows"
    PICTURES = "raverse_pictures_total"
    LOADED_VERSION = "raverse_loaded_version"
    REQUESTS = "raverse_requests_total"
    FIRST_PARTIAL_SECONDS = "raverse_first_partial_seconds"
    REQUEST_SECONDS = "raverse_request_seconds"
    HANDOVERS = "raverse_handovers_total"


WAIT_BOUNDS: Final = [0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0]
"""Histogram bounds, in seconds, of everything that a client waits for."""
