"""Distributed checkpoints of a Ray Train run: written beside training, committed before they count, swept after.

A checkpoint counts once Ray's controller has recorded it. `Checkpoints` copies the state at `save`, writes it
while training goes on, hands it to Ray at the next `poll`, and waits at the next `save` or at `settle` until it is
recorded: so at most one checkpoint is on its way, and Ray gives an older one up only for a recorded one.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, final

from ray import train
from ray.train import Checkpoint, CheckpointConsistencyMode, CheckpointUploadMode

from diffusion_core.errors import NonFinite
from workflows.train.loop.trainer import Trainer

_RECORD: Final = "checkpoint_manager_snapshot.json"
_PREFIX: Final = "step-"


@final
class Checkpoints:
    """The checkpoints of one worker; every worker calls every method at the same steps.

    Args:
        trainer: whose state is saved.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._writing: tuple[Future[Any], str, int] | None = None
        self._reported: int | None = None
        self._recorded: int | None = None
        self._folder = _scratch(trainer.share.rank)

    def resume(self) -> None:
        """Goes on from the last recorded checkpoint, if there is one."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        found = train.get_checkpoint()
        if found is None:
            return
        with found.as_directory() as folder:
            self._trainer.load(Path(folder))
        self._recorded = self._trainer.steps_done

    def save(self) -> None:
        """Takes a copy of the state; a checkpoint before this one is recorded when it returns."""
        self.settle()
        folder, step = tempfile.mkdtemp(dir=self._folder), self._trainer.steps_done
        if self._trainer.config.checkpoint_async:
            self._writing = (self._trainer.save_async(Path(folder)), folder, step)
            return
        self._trainer.save(Path(folder))
        self._report(folder, step, CheckpointUploadMode.SYNC)
        shutil.rmtree(folder, ignore_errors=True)
        self.settle()

    def poll(self) -> None:
        """Hands a checkpoint that is being written to Ray: some steps later it waits for nothing."""
        if self._writing is not None:
            future, folder, step = self._writing
            self._writing = None
            future.result()
            self._report(folder, step, CheckpointUploadMode.ASYNC)

    def settle(self) -> None:
        """Returns when a worker that dies can no longer take a checkpoint along."""
        self.poll()
        if self._reported is not None:
            train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
            self._recorded, self._reported = self._reported, None

    def close(self) -> None:
        """As `settle`, after the last step."""
        self.settle()
        shutil.rmtree(self._folder, ignore_errors=True)

    def pointing_at_last(self, error: NonFinite) -> NonFinite:
        """The error, with the name of the last recorded checkpoint."""
        self.settle()
        if self._recorded is None:
            return NonFinite(f"{error}; there is no checkpoint before it", error.rows)
        path = f"{_run_folder()}/{checkpoint_name(self._recorded)}"
        return NonFinite(f"{error}; the last good checkpoint is {path}", error.rows)

    def _report(self, folder: str, step: int, mode: CheckpointUploadMode) -> None:
        checkpoint, name = Checkpoint.from_directory(folder), checkpoint_name(step)
        train.report({"step": step}, checkpoint, checkpoint_dir_name=name, checkpoint_upload_mode=mode)
        self._reported = step


def _run_folder() -> str:
    return str(train.get_context().get_storage().experiment_fs_path)


def _scratch(rank: int) -> Path:
    """Where a worker writes before it uploads: the same after a restart, which clears what a killed one left."""
    run = hashlib.sha256(_run_folder().encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"raverse-{run}-{rank}"


def checkpoint_name(step: int) -> str:
    """Name of a checkpoint's folder."""
    return f"{_PREFIX}{step:08d}"


def sweep_orphans(run_folder: Path) -> list[str]:
    """Removes checkpoints that no process recorded before it died, and returns their names."""
    try:
        record = (run_folder / _RECORD).read_text()
    except FileNotFoundError:
        record = ""
    known = set(re.findall(rf"{_PREFIX}\d+", record))
    orphans = sorted(path for path in run_folder.glob(f"{_PREFIX}*") if path.name not in known)
    for path in orphans:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in orphans]
