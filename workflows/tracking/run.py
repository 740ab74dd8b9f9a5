"""The one MLflow run of a job.

The driver alone makes it, remembers its id in a file, and closes it. A stage that was interrupted goes on
in the same run; a finished run is never opened again.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from workflows.config.schema import RunConfig
from workflows.tracking.store import artifact_location, open_client, reaching, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

FINISHED: Final = "FINISHED"
MORE_FOLLOWS: Final = "SCHEDULED"
"""Status of a run between two stages of a job."""
_METRICS_PER_CALL: Final = 1000
_PARAMS_PER_CALL: Final = 100


@final
class TrackedRun:
    """An open run; each method is one call to the store, or few.

    Attributes:
        client: of the store.
        uri: of the store.
        run_id: of the run.
        ending: its status when the block that opened it ends without an error.
    """

    def __init__(self, client: MlflowClient, uri: str, run_id: str) -> None:
        self.client, self.uri, self.run_id, self.ending = client, uri, run_id, FINISHED

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags of the run in one call."""
        from mlflow.entities import RunTag

        with reaching(self.uri):
            self.client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def last_step(self, name: str) -> int:
        """The last step of a figure that is there already; -1: there is none."""
        with reaching(self.uri):
            return max((point.step for point in self.client.get_metric_history(self.run_id, name)), default=-1)

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Logs nested settings as `section.key`."""
        from mlflow.entities import Param

        params = [Param(name, str(value)) for name, value in flatten(values)]
        with reaching(self.uri):
            for start in range(0, len(params), _PARAMS_PER_CALL):
                self.client.log_batch(self.run_id, params=params[start : start + _PARAMS_PER_CALL])

    def log_metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        """Logs nested figures as `section.key`; what is no number is left out."""
        self._log_points([(name, value, step) for name, value in flatten(values) if _is_number(value)])

    def log_curves(self, prefix: str, path: Path, after: int = -1) -> None:
        """Logs the columns of a CSV file with a column `step`, one point per row and column, of later steps only.

        A last line that is still being written is left out.
        """
        text = path.read_text()
        complete = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        rows = [row for row in complete if float(row["step"]) > after]
        points = [
            (f"{prefix}.{name}", float(value), int(float(row["step"])))
            for row in rows
            for name, value in row.items()
            if name != "step" and value
        ]
        self._log_points(points)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Stores a file among the run's artifacts."""
        with reaching(self.uri):
            self.client.log_artifact(self.run_id, str(path), folder)

    def _log_points(self, points: list[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        if not points:
            return
        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value, step in points]
        with reaching(self.uri):
            for start in range(0, len(metrics), _METRICS_PER_CALL):
                self.client.log_batch(self.run_id, metrics=metrics[start : start + _METRICS_PER_CALL])


@contextlib.contextmanager
def tracked_run(config: RunConfig, run_file: Path, key: str | None = None) -> Iterator[TrackedRun]:
    """A run of the experiment named after the job, open for the length of the block.

    It ends as its `ending` says (FINISHED), as KILLED on Ctrl-C, else as FAILED.

    Args:
        config: names the job and its store.
        run_file: remembers the run's id, so that a retry continues the same run.
        key: only a run that was opened with the same key is continued.

    Raises:
        TrackingUnreachable: the store cannot be used.
    """
    uri = tracking_uri(config)
    client = open_client(uri)
    with reaching(uri):
        run_id = _continued(client, uri, run_file, key) or _created(client, config)
    run_file.parent.mkdir(parents=True, exist_ok=True)
    run_file.write_text(json.dumps({"tracking_uri": uri, "run_id": run_id} | ({"key": key} if key else {})))
    status, run = "FAILED", TrackedRun(client, uri, run_id)
    try:
        with _ambient(uri):
            yield run
        status = run.ending
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        # The store may be what failed: the error of the block is the one to tell.
        with contextlib.suppress(Exception) if status in ("FAILED", "KILLED") else reaching(uri):
            client.set_terminated(run_id, status)


@contextlib.contextmanager
def _ambient(uri: str) -> Iterator[None]:
    """Makes the store MLflow's own default: some of its functions ask a client that they make themselves."""
    import mlflow

    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names; names keep only what MLflow allows."""
    for key, value in values.items():
        name = "".join(c if c.isalnum() or c in "_-. /" else "_" for c in f"{prefix}{key}")
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


def job_run_file(config: RunConfig) -> Path:
    """Where a job remembers its one run."""
    return config.run_folder / "mlflow_run.json"


def config_key(config: RunConfig) -> str:
    """A configuration as a hash: another one gets another run."""
    return hashlib.sha256(config.model_dump_json(by_alias=True).encode()).hexdigest()[:16]


def _continued(client: MlflowClient, uri: str, run_file: Path, key: str | None = None) -> str | None:
    if not run_file.exists():
        return None
    remembered = json.loads(run_file.read_text())
    if remembered["tracking_uri"] != uri or remembered.get("key") != key:
        return None
    runs = client.get_run(remembered["run_id"]).info
    if runs.status == "FINISHED" or runs.lifecycle_stage != "active":
        return None
    client.update_run(runs.run_id, status="RUNNING")
    return str(runs.run_id)


def _created(client: MlflowClient, config: RunConfig) -> str:
    experiment = client.get_experiment_by_name(config.name)
    if experiment is None:
        identifier = client.create_experiment(config.name, artifact_location=artifact_location(config))
    else:
        identifier = experiment.experiment_id
    return str(client.create_run(identifier, run_name=f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}").info.run_id)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
