from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from tests.workflows.embed.conftest import TINY
from workflows.artifact import Artifact
from workflows.config import RunConfig
from workflows.data.dataset import Dataset
from workflows.embed.clip import load_clip
from workflows.embed.clip_stage import train_clip
from workflows.embed.identity import ClipIdentity
from workflows.embed.zero_shot import zero_shot
from workflows.errors import InvalidClip
from workflows.progress import Progress

pytestmark = pytest.mark.usefixtures("ray_session")


def with_clip(config: RunConfig, **changes: object) -> RunConfig:
    return config.model_copy(update={"clip": TINY.model_copy(update=changes)})


def test_towers_are_trained_and_judged(config: RunConfig, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    log = io.StringIO()
    metrics = train_clip(with_clip(config, steps=25), inputs, tmp_path, Progress(None, log))
    identity = ClipIdentity.load(tmp_path)
    assert (identity.source, identity.model) == ("train", "raverse-digits")
    assert metrics["weights_sha256"] == identity.weights_sha256
    clip = load_clip(tmp_path)
    again = zero_shot(clip, Dataset.open(inputs["data"].folder), torch.device("cpu"))
    assert metrics["zero_shot"] == pytest.approx(again["zero_shot"], abs=0.01)
    assert metrics["loss"] > 0
    assert "25/25 steps" in log.getvalue()


def test_towers_are_taken_from_a_folder(
    config: RunConfig, inputs: dict[str, Artifact], tiny_folder: Path, tmp_path: Path
) -> None:
    metrics = train_clip(with_clip(config, source=f"local-dir:{tiny_folder}"), inputs, tmp_path, Progress.silent())
    assert metrics["weights_sha256"] == ClipIdentity.load(tiny_folder).weights_sha256
    assert "loss" not in metrics
    assert 0 <= metrics["zero_shot"] <= 1


def test_towers_that_do_not_load_are_named(config: RunConfig, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(InvalidClip, match="local-dir:/no/such"):
        train_clip(with_clip(config, source="local-dir:/no/such"), inputs, tmp_path, Progress.silent())
