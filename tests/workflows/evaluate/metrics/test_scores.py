"""Figures against counts made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from workflows.data.dataset import DataInfo
from workflows.evaluate.metrics.scores import accuracy, clip_score, diversity, histogram

INFO = DataInfo(
    source="test",
    shape=(3, 8, 8),
    class_names=("circle", "square", "cross"),
    attributes={"shape": ("circle", "square", "cross"), "color": ("red", "blue")},
    num_train=1,
    num_held_out=1,
    data_hash="",
    candidate_captions=(),
    unseen_combinations=(),
)


def test_accuracy_of_all_and_of_each_attribute() -> None:
    judged = np.array([[0, 0], [1, 0], [2, 1], [0, 1]])
    targets = np.array([[0, 0], [1, 1], [2, 1], [1, 1]])
    assert accuracy(judged, targets, INFO) == {"all": 0.5, "shape": 0.75, "color": 0.75}


def test_histogram_counts_classes_that_never_occur() -> None:
    shares = histogram(np.array([[0, 0], [0, 1], [1, 0], [0, 0]]), INFO)
    assert shares == {"circle": 0.75, "square": 0.25, "cross": 0.0}


def test_diversity_is_the_mean_over_prompts_of_the_mean_over_pairs() -> None:
    angles = torch.tensor([0.0, 60.0, 90.0, 10.0, 10.0, 45.0]).deg2rad()
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    first = np.mean([1 - math.cos(math.radians(a)) for a in (60, 90, 30)])
    assert diversity(vectors, [0, 0, 0, 1, 1, 2]) == pytest.approx((first + 0.0) / 2, abs=1e-6)


def test_diversity_against_a_sum_over_pairs() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    distances = 1 - vectors @ vectors.T
    wanted = (distances.sum() - distances.trace()) / (40 * 39)
    assert diversity(vectors, [7] * 40) == pytest.approx(float(wanted), abs=1e-5)


def test_diversity_needs_two_pictures_of_a_prompt() -> None:
    assert math.isnan(diversity(torch.eye(3), [0, 1, 2]))


def test_clip_score_counts_opposites_as_nothing() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert clip_score(images, texts) == pytest.approx(100 / 3)
