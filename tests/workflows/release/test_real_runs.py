"""Real jobs of three lengths of training: half the training is refused, more of it passes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from workflows.config.load import load_config
from workflows.config.schema import RunConfig
from workflows.job.pipeline import plan_job, run_job
from workflows.job.stages import STAGES
from workflows.package.reference import find_version
from workflows.release.promote import CHALLENGER
from workflows.runtime.progress import Progress
from workflows.tracking.store import tracking_uri

SMALL = [
    "denoiser.network.width=64",
    "denoiser.network.depth=2",
    "classifier.network.width=32",
    "classifier.network.depth=1",
    "classifier.train.steps=20",
    "clip.steps=150",
    "evaluate.num_prompts=20",
    "evaluate.num_prompts_per_scale=20",
    "evaluate.num_prompts_per_gradient=10",
    "evaluate.num_steps=10",
]


def register(root: Path, steps: int) -> tuple[RunConfig, dict]:
    """Runs the job up to `register`."""
    config = load_config("digits", [f"storage.root={root}", *SMALL, f"denoiser.train.steps={steps}"])
    plan = plan_job(config, STAGES)
    last = [planned.stage.name for planned in plan].index("register")
    result = run_job(config, Progress.silent(), plan[: last + 1], lambda _: contextlib.nullcontext())
    return config, result.outcomes[-1].artifact.metrics


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_half_the_training_is_refused_and_more_passes(ray_session: None, tmp_path: Path) -> None:
    config, first = register(tmp_path, 400)
    assert (first["promoted"], first["alias"]) == (True, "champion")

    _, half = register(tmp_path, 200)
    assert (half["promoted"], half["alias"]) == (False, CHALLENGER)
    uri = tracking_uri(config)
    assert find_version(uri, "raverse-digits@champion").version == first["version"]
    assert find_version(uri, f"raverse-digits@{CHALLENGER}").version == half["version"]

    _, more = register(tmp_path, 1200)
    assert (more["promoted"], more["promoted_because"]) == (True, "gate")
    found = find_version(uri, "raverse-digits@champion")
    assert (found.version, found.tags["promoted_over"]) == (more["version"], first["version"])
    assert register(tmp_path, 1200)[1] == more, "a second run of the job skips the stage"
