"""The stage on the real digits with an untrained model: everything is drawn, judged, measured and shown."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_core.errors import NonFinite
from workflows.config.load import load_config
from workflows.config.schema import EvaluateConfig, RunConfig
from workflows.data.dataset import Dataset
from workflows.evaluate.jobs import all_jobs, compared_scales
from workflows.evaluate.measure import Drawn
from workflows.evaluate.prompts import ask
from workflows.evaluate.sampling import SampleJob, draw, sample_jobs
from workflows.evaluate.stage import evaluate
from workflows.model.model import ModelPackage
from workflows.options.guidance import Guidance
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress

SMALL = [
    "evaluate.num_prompts=40",
    "evaluate.num_prompts_per_scale=20",
    "evaluate.num_prompts_per_gradient=10",
    "evaluate.num_steps=3",
    "evaluate.batch_size=8",
    "evaluate.scales=[0, 1, 1.5, 2]",
]


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_config("digits", SMALL)


@pytest.fixture(scope="module")
def dataset(tiny_artifacts: dict[str, Artifact]) -> Dataset:
    return Dataset.open(tiny_artifacts["data"].folder)


@pytest.fixture(scope="module")
def evaluated(
    ray_session: None, config: RunConfig, tiny_artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("evaluate")
    return folder, evaluate(config, tiny_artifacts, folder, Progress.silent())


def test_jobs_share_prompts_and_seeds(config: RunConfig, dataset: Dataset) -> None:
    jobs = all_jobs(config.evaluate, ask(dataset, 40, seed=0))
    sizes = {name: len(job.prompts) for name, job in jobs.items()}
    assert sizes == {
        "classifier_free": 40,
        "clip": 10,
        "classifier_label": 10,
        "classifier_prompt": 10,
        "direct": 20,
        "none": 20,
        "scale_1.5": 20,
    }
    headline = set(zip(jobs["classifier_free"].prompts.texts, jobs["classifier_free"].prompts.seeds, strict=True))
    for job in jobs.values():
        assert set(zip(job.prompts.texts, job.prompts.seeds, strict=True)) <= headline
        assert job.prompts.seeds[:10] == jobs["direct"].prompts.seeds[:10]


def test_a_scale_of_the_headline_is_not_drawn_again(dataset: Dataset) -> None:
    jobs = all_jobs(EvaluateConfig(scales=(0.0, 1.0, 2.0), guidance_scale=2.0), ask(dataset, 40, seed=0))
    assert not [name for name in jobs if name.startswith("scale_")]


def test_figures_are_complete_and_shares(evaluated: tuple[Path, dict]) -> None:
    _, figures = evaluated
    assert set(figures["accuracy_at_scale"]) == set(figures["diversity_at_scale"]) == {"0", "1", "1.5", "2"}
    assert "accuracy_unseen" not in figures, "digits has no unseen combinations"
    assert sum(figures["unconditional_shares"].values()) == pytest.approx(1.0)
    assert figures["unconditional_largest_share"] == max(figures["unconditional_shares"].values())
    assert figures["judge_accuracy"]["all"] >= 0.98
    shares = [figures[name] for name in figures if name.endswith("accuracy") and name != "judge_accuracy"]
    assert len(shares) == 5
    assert all(0.0 <= share <= 1.0 for share in shares)
    assert np.isfinite([figures["clip_score"], figures["clip_score_real"], figures["diversity_real"]]).all()
    assert figures["accuracy"] < 0.5, "an untrained model draws nothing as asked"


def test_files_are_written(evaluated: tuple[Path, dict]) -> None:
    folder, figures = evaluated
    assert json.loads((folder / "metrics.json").read_text()) == figures
    assert Image.open(folder / "samples.png").size == (220 + 106 * 6, 46 + 106 * 10 + 20)
    assert Image.open(folder / "curves.png").size == (1300, 380)
    assert ModelPackage.load(folder / "package").defaults.num_steps == 3


def test_the_same_evaluation_twice_gives_the_same_figures(
    evaluated: tuple[Path, dict], config: RunConfig, tiny_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    assert evaluate(config, tiny_artifacts, tmp_path, Progress.silent()) == evaluated[1]


def test_workers_draw_what_one_process_draws(
    ray_session: None, evaluated: tuple[Path, dict], config: RunConfig, dataset: Dataset
) -> None:
    package = evaluated[0] / "package"
    jobs = list(all_jobs(config.evaluate, ask(dataset, 20, seed=1)).values())
    together = sample_jobs(package, jobs, 8, Progress.silent())
    for job, images in zip(jobs, together, strict=True):
        alone = [draw(str(package), job.part(start, start + 8)) for start in range(0, len(job.prompts), 8)]
        assert np.array_equal(images, np.concatenate(alone))
    other = draw(str(package), SampleJob(ask(dataset, 20, seed=2), Guidance.of("direct"), num_steps=3))
    assert not np.array_equal(together[4][:20], other), "another seed must draw other pictures"


def test_scale_0_is_unconditional_and_scale_1_direct(
    ray_session: None, evaluated: tuple[Path, dict], config: RunConfig, dataset: Dataset
) -> None:
    package = str(evaluated[0] / "package")
    jobs = all_jobs(config.evaluate, ask(dataset, 40, seed=0))
    drawn = {}
    for name, job in jobs.items():
        images = draw(package, job)
        drawn[name] = Drawn(job, images, np.zeros((len(images), 1), np.int64))
    scales = compared_scales(config.evaluate, drawn)
    prompts = jobs["direct"].prompts
    assert Counter(prompts.combinations.tolist()) == dict.fromkeys(range(10), 2)
    for scale, found in scales.items():
        wanted = draw(package, SampleJob(prompts, Guidance.of("classifier_free", guidance_scale=scale), num_steps=3))
        assert np.abs(found.images.astype(int) - wanted).max() <= 1, f"scale {scale}"
        assert found.job.prompts.seeds == prompts.seeds


@pytest.mark.parametrize(
    ("further", "elsewhere"),
    [({}, ()), ({"cfg_plus_plus": True}, (1.0,)), ({"guidance_interval": [0.5, 5.0]}, (0.0,))],
)
def test_the_pictures_at_a_scale_are_drawn_with_all_other_settings(
    dataset: Dataset, tiny_package: Path, further: dict[str, Any], elsewhere: tuple[float, ...]
) -> None:
    """Plain guidance at 0 and 1 is another kind, which is drawn anyway; with CFG++ or an interval it is not."""
    asked = EvaluateConfig(scales=(0.0, 0.5, 1.0), guidance_scale=0.5, num_steps=3, num_prompts_per_scale=20, **further)
    jobs = all_jobs(asked, ask(dataset, 20, seed=0))
    assert {name for name in jobs if name.startswith("scale_")} == ({"scale_0", "scale_1"} if further else set())
    images = {name: draw(str(tiny_package), job) for name, job in jobs.items() if not job.guidance.gradient}
    drawn = {name: Drawn(jobs[name], found, np.zeros((20, 1), np.int64)) for name, found in images.items()}
    for scale, found in compared_scales(asked, drawn).items():
        guidance = Guidance.of("classifier_free", guidance_scale=scale, **further)
        right = draw(str(tiny_package), SampleJob(found.job.prompts, guidance, num_steps=3))
        assert difference(found.images, right) <= 1, f"scale {scale}"
        if scale in elsewhere:
            assert difference(images["direct" if scale else "none"], right) > 1, "the other kind shows something else"


def difference(images: np.ndarray, others: np.ndarray) -> int:
    """The largest difference between two pixels."""
    return int(np.abs(images.astype(int) - others).max())


def test_a_model_that_gives_no_number_is_named(
    ray_session: None, config: RunConfig, dataset: Dataset, tmp_path: Path, write_package
) -> None:
    package = write_package(tmp_path, spread=float("nan"))
    job = all_jobs(config.evaluate, ask(dataset, 20, seed=0))["direct"]
    with pytest.raises(NonFinite, match="no finite picture"):
        sample_jobs(package, [job], 8, Progress.silent())
