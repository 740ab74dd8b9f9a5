"""`raverse` with a stage table of its own: real command line, real Ray, stages of seconds.

Usage: python toy_job.py KIND raverse-arguments. KIND says what the last stage does.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from workflows import cli
from workflows.artifact import Artifact
from workflows.config import RunConfig
from workflows.errors import InvalidData
from workflows.pipeline import Stage
from workflows.progress import Progress

Inputs = dict[str, Artifact]


def first(config: RunConfig, inputs: Inputs, folder: Path, progress: Progress) -> dict[str, Any]:
    (folder / "out").write_text("done")
    progress.start(2, "rows")
    progress.advance(2, loss=0.5)
    return {"rows": 2}


def finish(config: RunConfig, inputs: Inputs, folder: Path, progress: Progress) -> dict[str, Any]:
    """Computes in a Ray worker that also chatters."""
    import ray

    @ray.remote
    def work() -> int:
        print("chatter of a worker")
        return 42

    return {"answer": ray.get(work.remote())}


def sleep(config: RunConfig, inputs: Inputs, folder: Path, progress: Progress) -> dict[str, Any]:
    """Waits in two Ray workers for an interrupt."""
    import ray

    @ray.remote
    def work() -> None:
        time.sleep(600)

    tasks = [work.remote() for _ in range(2)]
    progress.log("waiting")
    ray.get(tasks)
    return {}


def train(config: RunConfig, inputs: Inputs, folder: Path, progress: Progress) -> dict[str, Any]:
    """Waits inside Ray Train, which has a handler of its own for Ctrl-C."""
    from ray.train import RunConfig as TrainRunConfig
    from ray.train import ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    marker = folder / "training"

    def loop() -> None:
        marker.touch()
        time.sleep(600)

    progress.log("waiting")
    run_config = TrainRunConfig(name="toy", storage_path=str(folder))
    DataParallelTrainer(loop, scaling_config=ScalingConfig(num_workers=2), run_config=run_config).fit()
    return {}


def fill_disk(config: RunConfig, inputs: Inputs, folder: Path, progress: Progress) -> dict[str, Any]:
    """Writes to a full device in a Ray worker."""
    import ray

    @ray.remote
    def work() -> None:
        Path("/dev/full").write_text("x" * 100_000)

    ray.get(work.remote())
    return {}


def refuse(config: RunConfig, inputs: Inputs, folder: Path, progress: Progress) -> dict[str, Any]:
    """Raises an error of ours in a Ray worker."""
    import ray

    @ray.remote
    def work() -> None:
        raise InvalidData("row 3 of photos.csv has no caption: give it one, or drop the row")

    ray.get(work.remote())
    return {}


def crash(config: RunConfig, inputs: Inputs, folder: Path, progress: Progress) -> dict[str, Any]:
    raise ZeroDivisionError("a bug")


def main() -> None:
    kind = sys.argv.pop(1)
    last = globals()[kind]
    cli.STAGES = (
        Stage("first", "First.", lambda: first, lambda config: {"seed": config.data.seed}),
        Stage("last", "Last.", lambda: last, lambda config: {"kind": kind}, ("first",)),
    )
    cli.main()


if __name__ == "__main__":
    main()
