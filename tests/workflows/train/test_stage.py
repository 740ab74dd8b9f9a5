"""The training stages on a real Ray, at a tiny size."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from PIL import Image

from diffusion_core.bundle import ModelBundle
from diffusion_core.condition import Condition
from diffusion_core.errors import NonFinite
from tests.workflows.train.troubles import Troubled
from workflows.artifact import Artifact
from workflows.config import RunConfig
from workflows.data.dataset import Dataset
from workflows.embed.cache import EmbeddingCache
from workflows.errors import StageFailed
from workflows.progress import Progress
from workflows.train.fit import Trained, fit
from workflows.train.losslog import read_losses
from workflows.train.objectives import DenoiserObjective
from workflows.train.plan import Plan
from workflows.train.stage import train_classifier, train_denoiser

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def inputs(digits: Dataset, cache: EmbeddingCache) -> dict[str, Artifact]:
    folders = {"data": digits.folder, "embed": cache.folder}
    return {stage: Artifact(stage, stage, folder, {}, {}, 0.0) for stage, folder in folders.items()}


@pytest.fixture(scope="module")
def by_value() -> Any:
    """Workers do not import the tests, so what is sent to them carries its code."""
    module = sys.modules[Troubled.__module__]
    ray.cloudpickle.register_pickle_by_value(module)
    yield
    ray.cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture(scope="module")
def trained(
    ray_session: None, config: RunConfig, inputs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """An undisturbed denoiser stage."""
    folder = tmp_path_factory.mktemp("denoiser")
    return folder, train_denoiser(config, inputs, folder, Progress.silent())


def test_the_denoiser_stage_writes_a_bundle_and_curves(
    trained: tuple[Path, dict[str, Any]], config: RunConfig, denoiser: DenoiserObjective
) -> None:
    folder, metrics = trained
    bundle = ModelBundle.load(folder / "bundle")
    assert bundle.hash == metrics["bundle_hash"]
    assert bundle.clip == {"model": "random"}
    assert bundle.config == denoiser.config
    x = torch.randn(2, *bundle.shape)
    averaged, raw = (bundle.denoiser(ema=ema)(x, torch.tensor([5, 900]), Condition.null(2)) for ema in (True, False))
    assert not torch.equal(averaged.x0, raw.x0)
    rows = read_losses(folder / "losses.csv")
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert metrics["loss"] == rows[-1]["loss"]
    assert metrics["steps"] == config.denoiser.train.steps
    assert metrics["parameters"] == sum(p.numel() for p in denoiser.build().parameters())
    with (folder / "losses.csv").open() as file:
        assert {"step", "seconds", "loss", "grad_norm", "data_wait", "loss_level_3"} <= set(next(csv.reader(file)))
    with Image.open(folder / "losses.png") as picture:
        assert picture.width > 300
    kept = {path.name for path in folder.glob("checkpoints/*/step-*")}
    assert kept == {"step-00000008", "step-00000012"}


def test_a_finished_run_is_taken_up_without_workers(
    trained: tuple[Path, dict[str, Any]], config: RunConfig, denoiser: DenoiserObjective, cache: EmbeddingCache
) -> None:
    folder, metrics = trained
    before = (folder / "losses.csv").read_bytes()
    # More workers than there are processors: it would wait for them.
    again = fit(
        denoiser, config.denoiser.train.model_copy(update={"num_workers": 50}), cache, folder, Progress.silent()
    )
    assert (folder / "losses.csv").read_bytes() == before
    assert again.metrics["loss"] == metrics["loss"]
    assert same(again, ModelBundle.load(folder / "bundle"))


def test_a_killed_worker_does_not_change_the_result(
    trained: tuple[Path, dict[str, Any]],
    by_value: None,
    config: RunConfig,
    denoiser: DenoiserObjective,
    cache: EmbeddingCache,
    tmp_path: Path,
) -> None:
    folder, _ = trained
    marker = tmp_path / "killed"
    killed = fit(Troubled(denoiser, 9, marker), config.denoiser.train, cache, tmp_path, Progress.silent())
    assert marker.exists()
    assert same(killed, ModelBundle.load(folder / "bundle"))
    rows, whole = (read_losses(path / "losses.csv") for path in (tmp_path, folder))
    assert [(row["step"], row["loss"]) for row in rows] == [(row["step"], row["loss"]) for row in whole]


def test_a_loss_that_is_not_finite_names_step_and_sample_and_is_not_tried_again(
    by_value: None, config: RunConfig, denoiser: DenoiserObjective, cache: EmbeddingCache, tmp_path: Path
) -> None:
    train = config.denoiser.train
    planned = Plan(train.seed, cache.num_samples("train"), train.batch_size).batch(5 * train.batch_size)
    culprit = int(cache.batch("train", planned.samples).sample_ids[3])
    with pytest.raises(NonFinite, match=rf"step 6: the loss of samples \[{culprit}\] is not finite") as caught:
        fit(Troubled(denoiser, 5, spoil=3), train, cache, tmp_path, Progress.silent())
    assert caught.value.rows == (culprit,)
    assert [row["step"] for row in read_losses(tmp_path / "losses.csv")] == [2, 4]


def test_workers_lost_too_often_end_in_one_sentence(
    by_value: None, config: RunConfig, denoiser: DenoiserObjective, cache: EmbeddingCache, tmp_path: Path
) -> None:
    train = config.denoiser.train.model_copy(update={"max_failures": 0})
    with pytest.raises(StageFailed, match="stopped after 0 restarts"):
        fit(Troubled(denoiser, 1, tmp_path / "killed"), train, cache, tmp_path, Progress.silent())


def test_the_classifier_stage_measures_both_heads(
    config: RunConfig, inputs: dict[str, Artifact], cache: EmbeddingCache, digits: Dataset, tmp_path: Path
) -> None:
    metrics = train_classifier(config, inputs, tmp_path, Progress.silent())
    network = ModelBundle.load(tmp_path / "bundle").network()
    wanted = cache.captions.pooled[cache.caption_positions(digits.info.candidate_captions)]
    assert torch.equal(network.candidates, wanted)
    rows = read_losses(tmp_path / "losses.csv")
    assert all(row["loss"] == pytest.approx(row["label_loss"] + row["text_loss"], rel=1e-4) for row in rows)
    assert 0.0 <= metrics["label_accuracy"] <= 1.0
    assert sum(name.startswith("accuracy_at_") for name in metrics) == 9
    with Image.open(tmp_path / "accuracy_by_level.png") as picture:
        assert picture.width > 300


def same(trained: Trained, bundle: ModelBundle) -> bool:
    kinds = ((trained.weights, False), (trained.ema, True))
    pairs = [(tensors, bundle.network(ema=ema).state_dict()) for tensors, ema in kinds]
    return all(torch.equal(tensors[name], value) for tensors, found in pairs for name, value in found.items())
