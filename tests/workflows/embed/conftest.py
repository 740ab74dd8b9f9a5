"""Tiny towers with random weights, and a small data artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workflows.embed.shapes_job import ShapesJob
from workflows.config.load import load_config
from workflows.config.schema import ClipConfig, RunConfig
from workflows.data.stage import build_data
from workflows.embed.stage import embed
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.towers.clip_files import save_clip
from workflows.towers.clip_model import build_model, model_config

TINY = ClipConfig(
    embed_dim=8, text_width=16, text_layers=1, context_length=12, vision_width=16, vision_layers=1, patch_size=4
)


def build_tiny(image_size: int = 8) -> tuple[Any, Any]:
    with torch.random.fork_rng():
        return build_model(TINY, image_size)


def write_tiny(folder: Path, image_size: int = 8) -> Path:
    folder.mkdir(parents=True)
    model, tokenizer = build_tiny(image_size)
    save_clip(folder, model, tokenizer, name="tiny", source="train", model_cfg=model_config(TINY, image_size))
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Towers for 8x8 pictures. Do not write to it."""
    return write_tiny(tmp_path_factory.mktemp("towers") / "tiny")


@pytest.fixture(scope="session")
def config() -> RunConfig:
    return load_config("digits", ["data.held_out=0.8"])


@pytest.fixture(scope="session")
def inputs(config: RunConfig, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The digits, a fifth of them for training, and the tiny towers."""
    folder = tmp_path_factory.mktemp("data")
    build_data(config, {}, folder, Progress.silent())
    return {"data": Artifact("data", "0" * 64, folder), "clip": Artifact("clip", "1" * 64, tiny_folder)}


@pytest.fixture(scope="session")
def shapes_job(tmp_path_factory: pytest.TempPathFactory) -> ShapesJob:
    """A job that can be killed on the way."""
    root = tmp_path_factory.mktemp("shapes")
    data, clip = root / "data", write_tiny(root / "clip", image_size=32)
    data.mkdir()
    job = ShapesJob({"data": Artifact("data", "0" * 64, data), "clip": Artifact("clip", "1" * 64, clip)})
    build_data(job.config(), {}, data, Progress.silent())
    return job


@pytest.fixture(scope="session")
def whole(ray_session: None, shapes_job: ShapesJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of that job when nothing kills it. Do not write to it."""
    root = tmp_path_factory.mktemp("whole")
    folder = root / "whole"  # the captions of all runs lie in `cache` of the storage root
    folder.mkdir()
    embed(shapes_job.config(f"storage.root={root}"), shapes_job.inputs, folder, Progress.silent())
    return folder
