"""A stage that was stopped goes on with other workers and another sharding, on a real Ray and from the real table."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.workflows.train.conftest import CLIP
from tests.workflows.train.loop.test_trainer import difference, effective
from tests.workflows.train.ranks import Job, Ranks
from tests.workflows.train.troubles import Troubled
from workflows.config.schema import RunConfig, TrainConfig
from workflows.data.dataset import Dataset
from workflows.embed.cache import EmbeddingCache
from workflows.errors import StageFailed
from workflows.job.pipeline import Planned, plan_job, run_one
from workflows.job.stages import STAGES
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.train.clip.stage import loop_config
from workflows.train.loop.checkpoints import checkpoint_name
from workflows.train.loop.fit import read_weights
from workflows.train.loop.worker import Settings
from workflows.train.losslog import LOSSES_FILE, read_losses
from workflows.train.objectives import Objective

pytestmark = pytest.mark.usefixtures("ray_session")

STOP = {"max_failures": 0, "checkpoint_async": False, "log_every": 2}
"""A lost worker ends the run, and each checkpoint counts before the next step."""
AFTER = 9
SHARED = {"num_workers": 1, "sharding": "ddp", "activation_checkpointing": True}


@dataclass(frozen=True)
class Try:
    """What a stage said, and where it worked."""

    told: str
    folder: Path
    stopped: bool

    @property
    def losses(self) -> list[dict[str, float]]:
        return read_losses(next(self.folder.rglob(LOSSES_FILE)))


@pytest.fixture(autouse=True)
def by_value() -> Iterator[None]:
    """Workers do not import the tests, so what is sent to them carries its code."""
    module = sys.modules[Troubled.__module__]
    ray.cloudpickle.register_pickle_by_value(module)
    yield
    ray.cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture
def job(config: RunConfig, tmp_path: Path) -> RunConfig:
    """Two workers, with `fully_shard` (the CLIP: DDP)."""
    return changed(changed(config, "storage", root=str(tmp_path), track_training=False), "clip", **CLIP.model_dump())


def changed(config: RunConfig, section: str, **values: Any) -> RunConfig:
    """The configuration with other values in a section, such as `denoiser.train`."""
    dump = config.model_dump(by_alias=True)
    part = dump
    for name in section.split("."):
        part = part[name]
    part.update(values)
    return RunConfig.model_validate(dump)


def attempt(config: RunConfig, stage: str, digits: Dataset, cache: EmbeddingCache) -> Try:
    """Runs one stage of the table on finished artifacts of those before it."""
    plan = {planned.stage.name: planned for planned in plan_job(config, STAGES)}
    for name, folder in (("data", digits.folder), ("embed", cache.folder)):
        provide(plan[name], folder)
    if stage != "clip":
        provide(plan["clip"], digits.folder)
    log, stopped = io.StringIO(), False
    try:
        run_one(config, Progress(None, log), plan_job(config, STAGES), stage, lambda _: contextlib.nullcontext())
    except StageFailed:
        stopped = True
    return Try(log.getvalue(), plan[stage].folder, stopped)


def provide(planned: Planned, folder: Path) -> None:
    shutil.copytree(folder, planned.folder, dirs_exist_ok=True)
    Artifact(planned.stage.name, planned.key, planned.folder).commit()


@pytest.fixture
def loses_a_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Says at which step the next try loses a worker."""

    def after(steps: int) -> None:
        def troubled(objective: Objective, *rest: Any) -> Settings:
            return Settings(Troubled(objective, steps, tmp_path / f"lost-after-{steps}"), *rest)

        monkeypatch.setattr("workflows.train.loop.fit.Settings", troubled)

    return after


@pytest.mark.parametrize(
    ("stage", "section", "sharing"),
    [
        ("denoiser", "denoiser.train", SHARED),
        pytest.param("classifier", "classifier.train", SHARED, marks=pytest.mark.slow),
        pytest.param("clip", "clip", {"num_workers": 1, "sharding": "fsdp"}, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_stage_goes_on_unless_something_that_it_learns_from_is_another(
    stage: str,
    section: str,
    sharing: dict[str, Any],
    request: pytest.FixtureRequest,
    job: RunConfig,
    ranks: Ranks,
    digits: Dataset,
    cache: EmbeddingCache,
    loses_a_worker: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopping(*arguments: Any) -> TrainConfig:
        return loop_config(*arguments).model_copy(update=STOP)

    monkeypatch.setattr("workflows.train.clip.stage.loop_config", stopping)
    job = job if stage == "clip" else changed(job, section, **STOP)
    loses_a_worker(AFTER)
    first = attempt(job, stage, digits, cache)
    assert first.stopped
    assert "starts at step 0" in first.told
    rows = first.losses
    assert [row["step"] for row in rows] == [2, 4, 6, 8]

    loses_a_worker(1)
    control = attempt(changed(job, section, learning_rate=0.002), stage, digits, cache)
    assert control.stopped
    assert control.folder != first.folder
    assert "starts at step 0" in control.told
    assert f"does not go on from the unfinished try in {first.folder}: config." in control.told
    assert "learning_rate was 0.001 and is 0.002\n" in control.told

    second = attempt(changed(job, section, **sharing), stage, digits, cache)
    assert not second.stopped
    assert second.folder == first.folder
    assert "goes on from the checkpoint of step 8" in second.told
    assert second.losses[:4] == rows, "not one of those steps was made again"

    objective: Objective = request.getfixturevalue(stage)
    train = request.getfixturevalue("clip_loop") if stage == "clip" else getattr(job, stage).train
    source = digits.folder if stage == "clip" else cache.folder
    whole = ranks.run(2, Job(objective, train, source, train.steps))[0]
    (last,) = second.folder.rglob(checkpoint_name(train.steps))
    weights, average = read_weights(objective, last)
    assert difference(effective(whole.weights), effective(weights)) <= 1e-5
    averages = {name: average[name] for name in whole.ema}
    assert difference(effective(whole.ema), effective(averages)) <= 1e-5
