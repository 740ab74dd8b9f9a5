"""`raverse` with a stage table of its own: real command line, real Ray, stages of seconds.

Usage: python toy_job.py KIND raverse-arguments. KIND says what the last stage does.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from workflows.cli import app as cli
from workflows.cli import command, job
from workflows.config.schema import RunConfig
from workflows.job.pipeline import Stage
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress

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

    marker = folder / "sleeping"

    @ray.remote
    def work() -> None:
        marker.touch()
        time.sleep(600)

    ray.get([work.remote() for _ in range(2)])
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

    run_config = TrainRunConfig(name="toy", storage_path=str(folder))
    DataParallelTrainer(loop, scaling_config=ScalingConfig(num_workers=2), run_config=run_config).fit()
    return {}


def main() -> None:
    kind = sys.argv.pop(1)
    last = globals()[kind]
    job.STAGES = command.STAGES = (
        Stage("first", "First.", lambda: first, lambda config: {"seed": config.data.seed}),
        Stage("last", "Last.", lambda: last, lambda config: {"kind": kind}, ("first",)),
    )
    cli.main()


if __name__ == "__main__":
    main()
