"""The training stages on a real Ray, at a tiny size."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion_core.bundle import ModelBundle
from workflows.artifact import Artifact
from workflows.config import RunConfig
from workflows.data.dataset import Dataset
from workflows.embed.cache import EmbeddingCache
from workflows.progress import Progress
from workflows.train.losslog import read_losses
from workflows.train.stage import train_classifier, train_denoiser

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def inputs(digits: Dataset, cache: EmbeddingCache) -> dict[str, Artifact]:
    folders = {"data": digits.folder, "embed": cache.folder}
    return {stage: Artifact(stage, stage, folder, {}, {}, 0.0) for stage, folder in folders.items()}


def test_the_denoiser_stage(config: RunConfig, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    metrics = train_denoiser(config, inputs, tmp_path, Progress.silent())
    bundle = ModelBundle.load(tmp_path / "bundle")
    assert bundle.hash == metrics["bundle_hash"]
    rows = read_losses(tmp_path / "losses.csv")
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    print(metrics)


def test_the_classifier_stage(config: RunConfig, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    metrics = train_classifier(config, inputs, tmp_path, Progress.silent())
    print(metrics)
