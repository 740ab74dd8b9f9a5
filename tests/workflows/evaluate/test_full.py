"""Every figure and every sweep, of an untrained model on the real digits."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workflows.config.load import load_config
from workflows.config.schema import RunConfig
from workflows.data.dataset import Dataset
from workflows.data.stage import build_data
from workflows.errors import InvalidData, TrackingUnreachable
from workflows.evaluate import full
from workflows.evaluate.full import evaluate_model
from workflows.evaluate.prompts import ask
from workflows.evaluate.sampling import SampleJob, sample_jobs
from workflows.options.guidance import Guidance
from workflows.package.source import ModelSource, find_model
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.sweep.run import plan_prompts, plan_tables, run_sweep

SMALL = [
    "evaluate.num_prompts=30",
    "evaluate.num_steps=2",
    "evaluate.bits_rows=4",
    "evaluate.bits_levels=5",
    "sweep.num_pictures=20",
    "sweep.steps=[1, 2]",
    "sweep.etas=[0, 1]",
    "sweep.guidance_scales=[0, 1, 2]",
    "sweep.classifier_scales=[0, 1]",
    "sweep.clip_scales=[0, 1]",
    "sweep.gradient_eta=0",
    "sweep.num_steps=2",
    "sweep.samplers=[ddim]",
]


@pytest.fixture(scope="module")
def dataset(tiny_artifacts: dict[str, Artifact]) -> Dataset:
    return Dataset.open(tiny_artifacts["data"].folder)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return load_config("digits", [f"storage.root={tmp_path_factory.mktemp('root')}", *SMALL])


@pytest.fixture
def source(config: RunConfig, tiny_package: Path) -> ModelSource:
    return find_model(config, str(tiny_package))


def test_figures_are_complete_and_the_same_twice(
    ray_session: None, config: RunConfig, source: ModelSource, dataset: Dataset
) -> None:
    first, second = (evaluate_model(config, source, dataset, Progress.silent()) for _ in range(2))
    assert set(first.figures) == {
        "clip_fd", "clip_kd", "mind", "precision", "recall", "density", "coverage", "clip_fd_real", "clip_score",
        "clip_score_real", "diversity", "diversity_matcher", "matcher_fd", "matcher_score", "matcher_score_real",
        "retrieval", "retrieval_top5", "retrieval_clip", "retrieval_top5_clip", "retrieval_real", "retrieval_real_clip",
        "retrieval_chance", "held_out_loss", "loss_by_level", "share_of_copies", "nearest", "intervals", "judges",
        "compared", "not_measured", "accuracy", "judge_accuracy", "bits_per_dim", "images_per_second",
    }  # fmt: skip
    assert first.figures["clip_fd"] > first.figures["clip_fd_real"]
    assert first.figures["bits_per_dim"]["mean"] > 0
    assert first.figures.pop("images_per_second") > 0
    second.figures.pop("images_per_second")
    assert first.figures == second.figures
    assert {"metrics.json", "samples.png", "neighbours.png"} <= {file.name for file in first.folder.iterdir()}
    assert "clip_fd" in first.text()


def test_a_model_is_drawn_as_the_configuration_says_whatever_its_own_settings_are(
    config: RunConfig, source: ModelSource, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose own guidance is CFG++ could not be drawn at the configuration's scale of 2 otherwise."""
    asked: list[SampleJob] = []

    def stop(_folder: Path, jobs: list[SampleJob], *_: object) -> None:
        asked.extend(jobs)
        raise InterruptedError

    monkeypatch.setattr(full, "sample_jobs", stop)
    for changes in ([], ["evaluate.guidance_rescale=0.5"]):
        changed = load_config("digits", [f"storage.root={config.root_folder}", *SMALL, *changes])
        with pytest.raises(InterruptedError):
            evaluate_model(changed, source, dataset, Progress.silent())
    own = {"guidance_scale": 0.5, "cfg_plus_plus": True}
    plain, rescaled = (job.guidance.over(own).core_settings() for job in asked)
    assert plain == {"guidance_scale": 2.0}
    assert rescaled == {"guidance_scale": 2.0, "guidance_rescale": 0.5}


def test_one_worker_and_two_draw_the_same(
    ray_session: None, config: RunConfig, source: ModelSource, dataset: Dataset
) -> None:
    jobs = [
        SampleJob(ask(dataset, 40, seed), Guidance.of("classifier_free", guidance_scale=2.0), num_steps=2)
        for seed in (0, 1)
    ]
    one, two = (sample_jobs(source.folder, jobs, 8, Progress.silent(), workers) for workers in (1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(*one)


def test_a_sweep_writes_tables_and_plots(
    ray_session: None, config: RunConfig, source: ModelSource, dataset: Dataset
) -> None:
    folder = run_sweep(config, source, dataset, Progress.silent())
    sizes = {"steps_eta": 4, "guidance": 2 + 3 + 2 + 2, "spacings": 4}
    for name, rows in sizes.items():
        with (folder / f"{name}.csv").open() as file:
            found = list(csv.DictReader(file))
        assert len(found) == rows
        assert all(float(row["clip_fd"]) > 0 for row in found)
        assert Image.open(folder / f"{name}.png").size[1] == 400
    guidance = {(row["guidance"], float(row["scale"])): row for row in csv.DictReader((folder / "guidance.csv").open())}
    for figure in ("clip_fd", "accuracy"):
        assert float(guidance["classifier_free", 1.0][figure]) == pytest.approx(
            float(guidance["direct", 1.0][figure]), rel=1e-3
        )
        assert float(guidance["classifier", 0.0][figure]) == pytest.approx(
            float(guidance["none", 0.0][figure]), rel=1e-3
        )
    assert set(json.loads((folder / "summary.json").read_text())["clip_fd_of_eta_1_over_0"]) == {"1", "2"}


def test_all_points_share_prompts_and_seeds(config: RunConfig, dataset: Dataset) -> None:
    prompts = ask(dataset, 20, 2)
    tables = plan_tables(config.sweep, prompts)
    assert all(point.job.prompts is prompts for table in tables.values() for point in table)


def test_a_sweep_asks_for_each_combination_again(config: RunConfig, dataset: Dataset, tmp_path: Path) -> None:
    """Of many combinations some, of few all: without a second picture of a prompt there is no diversity within it."""
    build_data(load_config("shapes", ["data.num_samples=600"]), {}, tmp_path, Progress.silent())
    shapes = Dataset.open(tmp_path)
    counts = np.bincount(plan_prompts(config.sweep, shapes).combinations)
    assert set(counts[counts > 0]) == {2}
    assert len(np.unique(ask(shapes, 20, 2).combinations)) == 20, "the plain list asks for each once"
    assert len(set(plan_prompts(config.sweep, dataset).combinations)) == 10


def test_an_unreachable_store_keeps_the_results(
    ray_session: None, source: ModelSource, dataset: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "mlflow.db").write_text("no database" * 100)
    config = load_config("digits", [f"storage.root={tmp_path}", *SMALL])
    with pytest.raises(TrackingUnreachable, match="not a database"):
        evaluate_model(config, source, dataset, Progress.silent())
    found = json.loads((tmp_path / "digits" / "evaluations" / "package" / "metrics.json").read_text())
    assert "clip_fd" in found


def test_data_of_another_shape_is_refused(config: RunConfig, source: ModelSource, dataset: Dataset) -> None:
    from dataclasses import replace

    other = Dataset(dataset.folder, replace(dataset.info, shape=(3, 32, 32)))
    with pytest.raises(InvalidData, match="give the --config"):
        evaluate_model(config, source, other, Progress.silent())
