"""Judges are right about held-out real pictures, and say so of nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from workflows.config.load import load_config
from workflows.data.dataset import Dataset
from workflows.data.stage import build_data
from workflows.evaluate.metrics.judge import ConvJudge, PixelJudge, judge_accuracy, train_judge, truth
from workflows.runtime.progress import Progress


def build(folder: Path, name: str, *overrides: str) -> Dataset:
    build_data(load_config(name, list(overrides)), {}, folder, Progress.silent())
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build(tmp_path_factory.mktemp("digits"), "digits")


@pytest.fixture(scope="module")
def few_shapes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build(tmp_path_factory.mktemp("shapes"), "shapes", "data.num_samples=2400")


def test_digits_judge_reaches_98_percent(digits: Dataset) -> None:
    judge = train_judge(digits)
    assert isinstance(judge, PixelJudge)
    found = judge_accuracy(judge, digits)
    assert found["all"] == found["digit"] >= 0.98


@pytest.mark.slow
def test_shapes_judge_reaches_99_percent_on_each_attribute(tmp_path: Path) -> None:
    shapes = build(tmp_path, "shapes")
    judge = train_judge(shapes)
    assert isinstance(judge, ConvJudge)
    found = judge_accuracy(judge, shapes)
    assert all(found[name] >= 0.99 for name in ("shape", "color", "size", "position", "all"))
    held_out = shapes.read("held_out")
    right = judge(held_out.images) == truth(shapes.info, held_out.attributes)
    assert right.all(axis=1)[held_out.unseen].mean() >= 0.98


def test_a_fifth_of_the_shapes_is_nearly_enough(few_shapes: Dataset) -> None:
    found = judge_accuracy(train_judge(few_shapes), few_shapes)
    assert min(found["color"], found["size"], found["position"]) >= 0.95
    assert found["shape"] >= 0.7
    assert found["all"] <= min(found["color"], found["size"], found["position"], found["shape"])


def test_the_same_seed_gives_the_same_judge_and_leaves_the_caller_alone(few_shapes: Dataset) -> None:
    split = few_shapes.read("train", 256)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one, again, other = (ConvJudge(split, few_shapes.info, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    states = [judge._network.state_dict()["0.weight"] for judge in (one, again, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_noise_is_judged_at_chance(digits: Dataset) -> None:
    judge = train_judge(digits)
    noise = np.random.default_rng(0).integers(0, 256, (2000, 1, 8, 8)).astype(np.uint8)
    targets = np.random.default_rng(1).integers(0, 10, 2000)
    assert abs((judge(noise)[:, 0] == targets).mean() - 0.1) < 0.03


def test_truth_is_in_the_order_of_the_attributes(few_shapes: Dataset) -> None:
    info = few_shapes.info
    values = tuple(names[1] for names in info.attributes.values())
    assert truth(info, (values,)).tolist() == [[1, 1, 1, 1]]
    assert truth(info, ()).shape == (0, 4)
