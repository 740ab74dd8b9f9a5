"""Sends a training stage to the job's one MLflow run while it goes on; the driver alone does.

A thread reads what the workers write (`losses.csv`, `grids/`) and sends what is new, a batch per call. Training
does not depend on it: where the store stops answering, the curves are sent by `register` at the end.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, final

from workflows.config.schema import RunConfig
from workflows.errors import TrackingUnreachable
from workflows.runtime.git import git_commit
from workflows.runtime.progress import Progress
from workflows.tracking.run import MORE_FOLLOWS, TrackedRun, config_key, job_run_file, tracked_run
from workflows.train.loop.grids import GRIDS
from workflows.train.losslog import LOSSES_FILE, read_losses

_SECONDS: Final = 5.0
_SYSTEM_SECONDS: Final = 10.0


@contextmanager
def tracked_training(
    config: RunConfig, stage: str, tags: Mapping[str, str], folder: Path, progress: Progress
) -> Iterator[None]:
    """Follows a stage for the length of the block, if `storage.track_training` says so.

    Args:
        config: the job.
        stage: its curves and pictures bear this name.
        tags: hashes of what it reads.
        folder: of the stage.
        progress: told when the store refuses.
    """
    if not config.storage.track_training:
        yield
        return
    follower = _Follower(config, stage, tags, folder)
    thread = threading.Thread(target=follower.run, name="tracking", daemon=True)
    thread.start()
    try:
        yield
        follower.ending = MORE_FOLLOWS
    except KeyboardInterrupt:
        follower.ending = "KILLED"
        raise
    finally:
        follower.ended.set()
        thread.join()
        if follower.refused is not None:
            progress.log(f"not tracked while it trained: {follower.refused}")


@final
class _Follower:
    def __init__(self, config: RunConfig, stage: str, tags: Mapping[str, str], folder: Path) -> None:
        self._config, self._stage, self._tags, self._folder = config, stage, tags, folder
        self._sent_pictures: set[str] = set()
        self.ended = threading.Event()
        self.ending = "FAILED"
        self.refused: TrackingUnreachable | None = None

    def run(self) -> None:
        try:
            self._follow()
        except TrackingUnreachable as error:
            self.refused = error

    def _follow(self) -> None:
        config, losses = self._config, self._folder / LOSSES_FILE
        with tracked_run(config, job_run_file(config), config_key(config)) as run, _system_metrics(run):
            run.log_params(config.model_dump(mode="json", by_alias=True))
            run.set_tags({**self._tags, "git_commit": git_commit()})
            after = run.last_step(f"{self._stage}.loss")
            while True:
                ended = self.ended.wait(_SECONDS)
                rows = read_losses(losses)
                if rows and rows[-1]["step"] > after:
                    run.log_curves(self._stage, losses, after)
                    after = int(rows[-1]["step"])
                self._send_pictures(run)
                if ended:
                    break
            run.ending = self.ending

    def _send_pictures(self, run: TrackedRun) -> None:
        for path in sorted((self._folder / GRIDS).glob("*.png")):
            if path.name not in self._sent_pictures:
                run.log_file(path, f"{self._stage}/{GRIDS}")
                self._sent_pictures.add(path.name)


@contextmanager
def _system_metrics(run: TrackedRun) -> Iterator[None]:
    """The driver's processor, memory, disk, network and GPUs, as MLflow samples them."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(
        run.run_id, sampling_interval=_SYSTEM_SECONDS, resume_logging=True, tracking_uri=run.uri
    )
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
