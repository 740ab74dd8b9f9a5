"""Distances against closed forms and against sets whose distance is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from workflows.evaluate.metrics.fidelity import (
    clip_fd,
    clip_kd,
    fidelity,
    fidelity_estimates,
    frechet,
    mind,
    moments,
    neighbourhoods,
    precision_recall,
)


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


def test_density_and_coverage_count_neighbourhoods() -> None:
    real = vectors(200, 0)
    assert {name: values.mean() for name, values in neighbourhoods(real, real).items()}["coverage"] == 1.0
    collapsed = neighbourhoods(real, real[:1].repeat(200, 1))
    assert collapsed["coverage"].mean() < 0.1 < 1.0 <= collapsed["density"].mean()


def test_mind_of_a_shift_is_the_closed_form() -> None:
    """Two Gaussians that differ by a shift: each line sees its own part of it."""
    a, shift = vectors(4000, 0), 0.2
    b = a + shift / math.sqrt(a.shape[1])
    assert mind(a, b) == pytest.approx(shift**2, rel=0.35)
    assert mind(a, a) < 1e-6 < mind(a, vectors(4000, 1))


def test_intervals_hold_their_figure_and_shrink_with_more_pictures() -> None:
    real = vectors(400, 0)
    few, many = (fidelity_estimates(real, vectors(count, 1, 0.2)) for count in (50, 400))
    for name, found in many.items():
        assert found.low <= found.value <= found.high, name
    assert many["clip_fd"].high - many["clip_fd"].low < few["clip_fd"].high - few["clip_fd"].low


@pytest.mark.parametrize(("n", "m"), [(1, 30), (30, 1), (2, 2), (3, 30)])
def test_few_pictures_have_figures_or_none(n: int, m: int) -> None:
    found = fidelity(vectors(n, 0), vectors(m, 1))
    assert set(found) == (set() if min(n, m) < 2 else set(fidelity(vectors(9, 0), vectors(9, 1))))
    assert all(math.isfinite(value) for value in found.values())
