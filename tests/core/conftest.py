"""Tests of the core check its annotations as well (jaxtyping and beartype), and treat warnings as errors.

Only while a test of the core runs: whatever else this process tests is neither checked nor slowed. A test that hands in
another type on purpose, or that makes millions of calls, asks for the fixture `unchecked`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import jaxtyping
import pytest
import torch

if TYPE_CHECKING:
    from diffusion_core.oracle import OracleDenoiser

# Examples are the same in every run, and none fails for being slow on a busy machine.
hypothesis.settings.register_profile("core", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("core")

# What the peers that we compare with do is not ours to mend.
WARNINGS = (
    "error",
    "ignore:__array__ implementation:DeprecationWarning",
    "ignore:`torch.distributed.reduce_op` is deprecated:FutureWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(*WARNINGS))


@pytest.fixture
def unchecked() -> None:
    """Annotations are not checked in this test."""


@pytest.fixture(autouse=True)
def check_annotations(request: pytest.FixtureRequest) -> Iterator[None]:
    """Annotations are checked in all others."""
    jaxtyping.config.update("jaxtyping_disable", "unchecked" in request.fixturenames)
    yield
    jaxtyping.config.update("jaxtyping_disable", True)


@pytest.fixture(scope="session")
def oracle() -> OracleDenoiser:
    """The exact denoiser of four components in three classes, in 12 dimensions."""
    # Not above: what is imported before the tests are collected has no checked annotations.
    from diffusion_core.oracle import GaussianMixture, OracleDenoiser
    from diffusion_core.schedule import NoiseSchedule

    mixture = GaussianMixture(
        weights=torch.tensor([0.2, 0.3, 0.1, 0.4], dtype=torch.float64),
        means=torch.randn(4, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        deviations=torch.tensor([0.3, 0.2, 0.4, 0.25], dtype=torch.float64),
        classes=torch.tensor([0, 0, 1, 2]),
    )
    return OracleDenoiser(mixture, NoiseSchedule.cosine())
