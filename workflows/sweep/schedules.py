"""Noise schedules to compare: each is a job of its own, up to the package that is measured."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from workflows.config.schema import RunConfig
from workflows.evaluate.packaging import assemble_package
from workflows.job.pipeline import plan_job, run_job
from workflows.job.stages import STAGES
from workflows.runtime.progress import Progress

_LAST: Final = "classifier"


def train_schedules(config: RunConfig, folder: Path, progress: Progress) -> dict[str, Path]:
    """Trains what is not trained yet, on the present Ray session.

    Args:
        config: its `sweep.schedules` are tried, all else stays.
        folder: for a package per schedule.
        progress: of the stages.

    Returns:
        The folder of a package, by schedule.
    """
    return {kind: _train(config, kind, folder / kind, progress) for kind in config.sweep.schedules}


def _train(config: RunConfig, kind: str, folder: Path, progress: Progress) -> Path:
    values = config.model_dump(by_alias=True)
    values["denoiser"]["schedule"]["kind"] = kind
    changed = RunConfig.model_validate(values)
    plan = plan_job(changed, STAGES)
    last = [planned.stage.name for planned in plan].index(_LAST)
    result = run_job(changed, progress, plan[: last + 1], lambda _: contextlib.nullcontext())
    inputs = {outcome.artifact.stage: outcome.artifact for outcome in result.outcomes}
    assemble_package(changed, inputs, folder)
    return folder
