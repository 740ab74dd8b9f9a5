"""Distances against closed forms and against sets whose distance is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from workflows.evaluate.metrics.fidelity import clip_fd, clip_kd, fidelity, frechet, moments, precision_recall
from workflows.evaluate.metrics.neighbours import nearest


def vectors(count: int, seed: int, shift: float = 0.0, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, width, generator=generator) + shift, dim=1)


def test_frechet_of_gaussians_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.0, 1.0, (200_000, 2)), rng.normal(1.0, 2.0, (200_000, 2))
    assert frechet(a, b) == pytest.approx(2 * 1.0 + 2 * (2.0 - 1.0) ** 2, rel=0.02)


def test_the_bootstrap_uses_the_same_distance_as_torchmetrics() -> None:
    a, b = vectors(300, 0), vectors(250, 1, shift=0.3)
    assert frechet(moments(a), moments(b)) == pytest.approx(clip_fd(a, b), rel=1e-6)


def test_distances_grow_with_the_shift() -> None:
    real = vectors(300, 0)
    found = [fidelity(real, vectors(300, 1, shift)) for shift in (0.0, 0.3, 1.0)]
    for name in ("clip_fd", "clip_kd"):
        assert found[0][name] < found[1][name] < found[2][name]
    assert abs(found[0]["clip_kd"]) < 0.01
    assert found[2]["recall"] < 0.5 < found[0]["recall"]


def test_the_same_call_twice_is_the_same_number_and_leaves_the_generator_alone() -> None:
    a, b = vectors(300, 0), vectors(300, 1)
    before = torch.random.get_rng_state()
    assert clip_kd(a, b) == clip_kd(a, b)
    assert torch.equal(before, torch.random.get_rng_state())


def test_precision_and_recall_tell_wrong_from_repeated() -> None:
    real = vectors(200, 0)
    repeated = real[:4].repeat(50, 1)
    assert precision_recall(real, repeated)["precision"] == 1.0
    assert precision_recall(real, repeated)["recall"] < 0.1
    wrong = torch.cat([real[:100], -real[:100] * 3])
    found = precision_recall(real, wrong)
    assert found["precision"] == pytest.approx(0.5, abs=0.05)
    assert precision_recall(real, real) == {"precision": 1.0, "recall": 1.0}


def test_nearest_finds_copies() -> None:
    rng = np.random.default_rng(0)
    train, held_out = (rng.integers(0, 256, (50, 1, 8, 8), np.uint8) for _ in range(2))
    images = np.concatenate([train[[7, 3]], rng.integers(0, 256, (2, 1, 8, 8), np.uint8)])
    found = nearest(images, train, held_out)
    assert found.index[:2].tolist() == [7, 3]
    assert found.distance[:2].max() < 1e-3
    assert found.distance[2:].min() > 0.1
    assert found.share_of_copies >= 0.5
    assert nearest(held_out, train, held_out).share_of_copies == pytest.approx(0.02)
    far = math.sqrt(((images[2] / 255.0 - train[found.index[2]] / 255.0) ** 2).mean())
    assert found.distance[2] == pytest.approx(far, rel=1e-4)
