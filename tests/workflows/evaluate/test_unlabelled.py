"""Without labels there is no judge and no accuracy: captions are asked for, and CLIP says how well pictures fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from workflows.config.schema import EvaluateConfig
from workflows.data.dataset import DataInfo, Dataset, Split, SplitName, write_split
from workflows.evaluate.captions import ask_captions
from workflows.evaluate.jobs import all_jobs
from workflows.evaluate.stage import evaluate_pictures
from workflows.runtime.progress import Progress
from workflows.serve.check import requests_for
from workflows.towers.clip import Clip, load_clip
from workflows.towers.zero_shot import zero_shot

CAPTIONS = tuple(f"caption number {number}" for number in range(6))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """12 + 6 gray pictures with captions and no labels; four captions are candidates."""
    rng, parts = np.random.default_rng(0), {}
    counts: dict[SplitName, int] = {"train": 12, "held_out": 6}
    for name, count in counts.items():
        images = rng.integers(0, 256, (count, 1, 8, 8), np.uint8)
        texts = tuple((CAPTIONS[row % 6],) for row in range(count))
        none = np.full(count, -1, np.int64)
        split = Split(np.arange(count), images, texts, none, ((),) * count, np.zeros(count, np.bool_))
        parts[name] = write_split(split, tmp_path, name)
    DataInfo("folder", (1, 8, 8), (), {}, 12, 6, "0" * 64, CAPTIONS[:4], (), parts=parts).save(tmp_path)
    return Dataset.open(tmp_path)


def test_prompts_are_held_out_captions_each_at_least_twice(dataset: Dataset) -> None:
    prompts = ask_captions(dataset, 8, seed=0)
    assert len(prompts) == 8
    assert set(prompts.texts) <= set(CAPTIONS)
    assert sorted(np.unique(prompts.combinations, return_counts=True)[1].tolist()) == [2, 2, 2, 2]
    assert len(set(prompts.seeds)) == 8
    assert ask_captions(dataset, 8, seed=0).texts == prompts.texts
    jobs = all_jobs(EvaluateConfig(), prompts, labelled=False)
    assert "classifier_prompt" in jobs and not any(job.by_label for job in jobs.values())
    assert all_jobs(EvaluateConfig(), prompts)["classifier_label"].by_label


def test_a_caption_that_is_no_candidate_has_no_meaning(dataset: Dataset) -> None:
    assert dataset.combinations(dataset.read("held_out")).tolist() == [0, 1, 2, 3, -1, -1]


def test_zero_shot_counts_captions_that_are_candidates(dataset: Dataset, tiny_package: Path) -> None:
    clip: Clip = load_clip(tiny_package / "clip")
    share = zero_shot(clip, dataset, torch.device("cpu"))["zero_shot"]
    assert share * 4 == pytest.approx(round(share * 4)), "a share of four"


def test_the_service_is_asked_for_no_class_where_there_is_none() -> None:
    card = {"example_prompts": ["x"], "classes": [], "max_steps": 9, "guidance": ["none", "classifier"]}
    names = requests_for(card)
    assert not any("by-class" in name for name in names)
    assert any("by-class" in name for name in requests_for(card | {"classes": ["a"]}))


@pytest.mark.usefixtures("ray_session")
def test_figures_say_that_nothing_was_judged(dataset: Dataset, tiny_package: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_package, tmp_path / "out/package")
    asked = EvaluateConfig(num_prompts=8, num_prompts_per_scale=4, num_prompts_per_gradient=2, num_steps=2)
    figures = evaluate_pictures(asked, dataset, tiny_package / "clip", tmp_path / "out", Progress.silent())
    assert figures["judged"] is False
    assert not any("accuracy" in name for name in figures)
    assert set(figures["clip_score_at_scale"]) == {"0", "1", "2"}
    assert 0 <= figures["retrieval"] <= 1
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == figures
    assert (tmp_path / "out/samples.png").stat().st_size > 1000
