"""The CLIP stage on a real Ray, at a tiny size."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file

from tests.workflows.train.conftest import CLIP, tiny_config
from tests.workflows.train.troubles import Troubled
from workflows.config.schema import RunConfig, TrainConfig
from workflows.data.dataset import Dataset
from workflows.errors import InvalidClip
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.towers.clip import load_clip
from workflows.towers.clip_files import WEIGHTS_FILE
from workflows.towers.identity import ClipIdentity
from workflows.towers.zero_shot import zero_shot
from workflows.tracking.run import job_run_file
from workflows.tracking.store import open_client, tracking_uri
from workflows.train.clip.objective import ClipObjective
from workflows.train.clip.stage import TRAINING, train_clip
from workflows.train.loop.fit import fit
from workflows.train.losslog import read_losses

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return tiny_config(tmp_path_factory.mktemp("clip-runs")).model_copy(update={"clip": CLIP})


@pytest.fixture(scope="module")
def inputs(digits: Dataset) -> dict[str, Artifact]:
    return {"data": Artifact("data", digits.info.data_hash, digits.folder)}


@pytest.fixture(scope="module")
def by_value() -> Any:
    """Workers do not import the tests, so what is sent to them carries its code."""
    module = sys.modules[Troubled.__module__]
    ray.cloudpickle.register_pickle_by_value(module)
    yield
    ray.cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture(scope="module")
def trained(
    ray_session: None, job: RunConfig, inputs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], str]:
    """An undisturbed CLIP stage of two workers, and what it said."""
    folder, log = tmp_path_factory.mktemp("towers"), io.StringIO()
    return folder, train_clip(job, inputs, folder, Progress(None, log)), log.getvalue()


def test_towers_are_trained_and_judged(trained: tuple[Path, dict[str, Any], str], inputs: dict[str, Artifact]) -> None:
    folder, metrics, told = trained
    identity = ClipIdentity.load(folder)
    assert (identity.source, identity.model) == ("train", "raverse-digits")
    assert metrics["weights_sha256"] == identity.weights_sha256
    again = zero_shot(load_clip(folder), Dataset.open(inputs["data"].folder), torch.device("cpu"))
    assert metrics["zero_shot"] == pytest.approx(again["zero_shot"], abs=0.01)
    assert metrics["steps"] == 20
    assert "20/20 steps" in told


def test_training_leaves_curves_and_checkpoints_beside_the_towers(
    trained: tuple[Path, dict[str, Any], str], job: RunConfig
) -> None:
    folder, metrics, _ = trained
    rows = read_losses(folder / TRAINING / "losses.csv")
    assert rows[-1]["loss"] == metrics["loss"]
    assert all(0 < row["mfu"] < 1.5 for row in rows)
    assert (folder / TRAINING / "losses.png").is_file()
    kept = {path.name for path in (folder / TRAINING).glob("checkpoints/*/step-*")}
    assert kept == {"step-00000016", "step-00000020"}
    client = open_client(tracking_uri(job))
    run = client.get_run(json.loads(job_run_file(job).read_text())["run_id"])
    assert run.data.metrics["clip.loss"] == pytest.approx(metrics["loss"])


@pytest.mark.slow
def test_a_killed_worker_does_not_change_the_towers(
    trained: tuple[Path, dict[str, Any], str],
    by_value: None,
    clip: ClipObjective,
    clip_loop: TrainConfig,
    inputs: dict[str, Artifact],
    tmp_path: Path,
) -> None:
    marker = tmp_path / "killed"
    killed = fit(Troubled(clip, 11, marker), clip_loop, inputs["data"], tmp_path, Progress.silent())
    assert marker.exists()
    found, wanted = clip.whole(killed.weights)[0].state_dict(), load_file(trained[0] / WEIGHTS_FILE)
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def test_towers_are_taken_from_a_folder(
    trained: tuple[Path, dict[str, Any], str], job: RunConfig, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    loaded = job.model_copy(update={"clip": CLIP.model_copy(update={"source": f"local-dir:{trained[0]}"})})
    metrics = train_clip(loaded, inputs, tmp_path, Progress.silent())
    assert metrics["weights_sha256"] == ClipIdentity.load(trained[0]).weights_sha256
    assert "loss" not in metrics
    assert 0 <= metrics["zero_shot"] <= 1
    assert not (tmp_path / TRAINING).exists()


def test_towers_that_do_not_load_are_named(job: RunConfig, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    lost = job.model_copy(update={"clip": CLIP.model_copy(update={"source": "local-dir:/no/such"})})
    with pytest.raises(InvalidClip, match="local-dir:/no/such"):
        train_clip(lost, inputs, tmp_path, Progress.silent())
