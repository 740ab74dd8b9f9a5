"""The training stages on a real Ray, at a tiny size."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusion_core.bundle import ModelBundle
from diffusion_core.condition import Condition
from diffusion_core.errors import NonFinite
from tests.workflows.train.conftest import TOKENS, WIDTH, tiny_config
from tests.workflows.train.troubles import Troubled
from workflows.config.schema import RunConfig
from workflows.data.dataset import Dataset
from workflows.embed.cache import EmbeddingCache
from workflows.errors import MissingArtifact, StageFailed
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.tracking.run import MORE_FOLLOWS, job_run_file
from workflows.tracking.store import open_client, tracking_uri
from workflows.train.length import Length
from workflows.train.loop.fit import Trained, fit
from workflows.train.loop.snapshots import list_snapshots, reconstruct
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
    assert bundle.clip == {"model": "random", "context_length": TOKENS, "width": WIDTH, "embed_dim": WIDTH}
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
    assert all(0 < row["mfu"] < 1.5 for row in rows)
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


def test_the_run_of_a_trained_stage_holds_curves_pictures_and_hashes(
    trained: tuple[Path, dict[str, Any]], config: RunConfig, cache: EmbeddingCache
) -> None:
    folder, _ = trained
    client = open_client(tracking_uri(config))
    run = client.get_run(json.loads(job_run_file(config).read_text())["run_id"])
    assert run.info.status == MORE_FOLLOWS
    assert {name: run.data.tags[name] for name in ("cache_key", "data_hash")} == {
        "cache_key": cache.key,
        "data_hash": cache.manifest.data_hash,
    }
    assert run.data.tags["git_commit"]
    assert run.data.params["denoiser.train.steps"] == str(config.denoiser.train.steps)
    for name in ("loss", "loss_level_0", "grad_norm", "samples_per_second", "data_wait", "mfu"):
        points = client.get_metric_history(run.info.run_id, f"denoiser.{name}")
        assert [point.step for point in points] == [2, 4, 6, 8, 10, 12], name
    assert "system/cpu_utilization_percentage" in run.data.metrics
    stored = {file.path for file in client.list_artifacts(run.info.run_id, "denoiser/grids")}
    assert stored == {"denoiser/grids/step-00000006.png", "denoiser/grids/step-00000012.png"}
    with Image.open(folder / "grids" / "step-00000012.png") as picture:
        assert picture.width > 100


def test_snapshots_give_an_average_of_another_width(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    assert [(one.update, one.width) for one in list_snapshots(folder)] == [
        (update, width) for update in (4, 8, 12) for width in (0.05, 0.2)
    ]
    bundle = ModelBundle.load(folder / "bundle")
    average = reconstruct(folder, 0.1)
    parameters = dict(bundle.network(ema=False).named_parameters())
    assert average.keys() == parameters.keys()
    last = load_file(list_snapshots(folder)[-2].path)
    same_width = reconstruct(folder, 0.05)
    assert max(float((same_width[name] - last[name]).abs().max()) for name in last) < 1e-5
    assert max(float((average[name] - last[name]).abs().max()) for name in last) > 1e-4
    with pytest.raises(MissingArtifact, match="ema_widths"):
        reconstruct(folder / "bundle", 0.1)


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
    train = config.denoiser.train.model_copy(update={"num_workers": 1})
    planned = Plan(train.seed, cache.num_samples("train"), train.batch_size).batch(5 * train.batch_size)
    culprit = int(cache.batch("train", planned.samples).sample_ids[3])
    told = (
        rf"step 6: the loss of samples \[{culprit}\] is not finite.*last good checkpoint is {tmp_path}.*step-00000004$"
    )
    with pytest.raises(NonFinite, match=told) as caught:
        fit(Troubled(denoiser, 5, spoil=3), train, cache, tmp_path, Progress.silent())
    assert caught.value.rows == (culprit,)
    assert [row["step"] for row in read_losses(tmp_path / "losses.csv")] == [2, 4]


@pytest.mark.slow
def test_an_elastic_run_takes_the_workers_that_there_is_room_for(
    config: RunConfig, denoiser: DenoiserObjective, cache: EmbeddingCache, tmp_path: Path
) -> None:
    """Three are wanted at most, two fit."""
    train = config.denoiser.train.model_copy(update={"num_workers": (1, 3), "steps": 4, "checkpoint_async": False})
    elastic = fit(denoiser, train, cache, tmp_path, Progress.silent())
    assert elastic.metrics["steps"] == 4
    assert {path.name for path in tmp_path.glob("checkpoints/*/step-*")} == {"step-00000004"}


@pytest.mark.slow
def test_workers_lost_too_often_end_in_one_sentence(
    by_value: None, config: RunConfig, denoiser: DenoiserObjective, cache: EmbeddingCache, tmp_path: Path
) -> None:
    train = config.denoiser.train.model_copy(update={"max_failures": 0})
    with pytest.raises(StageFailed, match="stopped after 0 restarts"):
        fit(Troubled(denoiser, 1, tmp_path / "killed"), train, cache, tmp_path, Progress.silent())


def test_the_classifier_stage_measures_both_heads(
    config: RunConfig, inputs: dict[str, Artifact], cache: EmbeddingCache, digits: Dataset, tmp_path: Path
) -> None:
    alone = tiny_config(config.root_folder, "classifier.train.num_workers=1")
    metrics = train_classifier(alone, inputs, tmp_path, Progress.silent())
    network = ModelBundle.load(tmp_path / "bundle").network()
    wanted = cache.captions.pooled(cache.caption_positions(digits.info.candidate_captions))
    assert torch.equal(network.candidates, wanted)
    rows = read_losses(tmp_path / "losses.csv")
    assert all(row["loss"] == pytest.approx(row["label_loss"] + row["text_loss"], rel=1e-4) for row in rows)
    assert 0.0 <= metrics["label_accuracy"] <= 1.0
    assert 0.0 <= metrics["calibration_error"] <= 1.0
    assert sum(name.startswith("accuracy_at_") for name in metrics) == 9
    with Image.open(tmp_path / "accuracy_by_level.png") as picture:
        assert picture.width > 300


def same(trained: Trained, bundle: ModelBundle) -> bool:
    kinds = ((trained.weights, False), (trained.ema, True))
    pairs = [(tensors, bundle.network(ema=ema).state_dict()) for tensors, ema in kinds]
    return all(torch.equal(tensors[name], value) for tensors, found in pairs for name, value in found.items())


def test_steps_by_auto_are_decided_once(config: RunConfig, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    """A later try of the stage makes as many steps as the first one decided, and ends as with that number."""

    def run(folder: Path, *items: str) -> dict[str, Any]:
        folder.mkdir(exist_ok=True)
        return train_denoiser(tiny_config(config.root_folder, *items), inputs, folder, Progress.silent())

    auto = ("denoiser.train.steps=auto", "denoiser.train.minutes=0.01")
    first = run(tmp_path / "auto", *auto)
    decided = Length.load(tmp_path / "auto")
    assert decided is not None
    assert first["steps"] == decided.steps == max(1, int(0.6 / decided.step_seconds))
    assert decided.rows == EmbeddingCache.open(inputs["embed"].folder).num_samples("train")
    assert not (tmp_path / "auto" / "probe").exists()
    other = tmp_path / "other"
    other.mkdir()
    Length(7, decided.rows, decided.batch_size, 9.0).save(other)
    again = run(other, *auto)
    assert again["steps"] == 7
    by_number = run(tmp_path / "number", "denoiser.train.steps=7", "denoiser.train.warmup_steps=1")
    assert again["bundle_hash"] == by_number["bundle_hash"]
