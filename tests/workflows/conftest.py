"""A model package of the real parts at a tiny size, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion_core.bundle import ModelBundle
from diffusion_core.networks import DiT, DiTConfig, NoisyClassifier, NoisyClassifierConfig
from diffusion_core.schedule import NoiseSchedule
from tests.workflows.storage.bucket import Bucket, serve_bucket, serve_refusals
from workflows.config.load import load_config
from workflows.config.schema import ClipConfig
from workflows.data.stage import build_data
from workflows.package.files import Defaults, PackageCard, assemble
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.towers.clip_files import save_clip
from workflows.towers.clip_model import build_model, model_config
from workflows.tracking.store import open_client

SHAPE = (1, 8, 8)
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TINY_CLIP = ClipConfig(
    embed_dim=16, text_width=16, text_layers=1, context_length=12, vision_width=16, vision_layers=1, patch_size=4
)


def write_tiny_clip(folder: Path, image_size: int = SHAPE[-1]) -> Path:
    """Untrained towers, as the clip stage writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        model, tokenizer = build_model(TINY_CLIP, image_size)
    model_cfg = model_config(TINY_CLIP, image_size)
    save_clip(folder, model, tokenizer, name="tiny", source="train", model_cfg=model_cfg)
    return folder


def write_tiny_denoiser(folder: Path, *, seed: int = 0, num_levels: int = 100, spread: float = 0.1) -> ModelBundle:
    """A DiT of random weights of that spread; unlike a fresh one it does not answer zero."""
    config = DiTConfig(SHAPE, patch=4, width=16, depth=1, num_heads=2, token_dim=16, pooled_dim=16)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = {name: torch.randn_like(value) * spread for name, value in DiT(config).state_dict().items()}
    return ModelBundle.save(
        folder, config, weights, schedule=NoiseSchedule.cosine(num_levels), parameterization="v", clip={"model": "tiny"}
    )


def write_tiny_classifier(folder: Path, *, seed: int = 0, num_levels: int = 100) -> ModelBundle:
    """A noisy classifier of random weights, with a label and a text head."""
    config = NoisyClassifierConfig(SHAPE, patch=4, width=16, depth=1, num_heads=2, num_classes=10, embed_dim=16)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = NoisyClassifier(config).state_dict()
    return ModelBundle.save(folder, config, weights, schedule=NoiseSchedule.cosine(num_levels), clip={"model": "tiny"})


def tiny_card() -> PackageCard:
    """Describes the tiny package, without its parts."""
    return PackageCard(
        source="digits",
        shape=SHAPE,
        class_names=WORDS,
        candidate_captions=tuple(f"a handwritten {word}" for word in WORDS),
        data_hash="0" * 64,
        defaults=Defaults(num_steps=4),
    )


def write_tiny_package(folder: Path, *, seed: int = 0, spread: float = 0.1) -> Path:
    """A package whose weights depend on the seed."""
    parts = folder / "parts"
    clip = write_tiny_clip(parts / "clip")
    write_tiny_denoiser(parts / "denoiser", seed=seed, spread=spread)
    write_tiny_classifier(parts / "classifier", seed=seed)
    assemble(
        folder / "package",
        tiny_card(),
        denoiser=parts / "denoiser",
        classifier=parts / "classifier",
        clip=clip,
    )
    return folder / "package"


@pytest.fixture(scope="session")
def tiny_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole package with random weights: 8x8 gray pictures, ten classes. Do not write to it."""
    return write_tiny_package(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The real digits, and untrained parts as the stages before `evaluate` write them. Do not write to them."""
    root = tmp_path_factory.mktemp("artifacts")
    artifacts: dict[str, Artifact] = {}
    for name in ("data", "clip", "embed", "denoiser", "classifier"):
        (root / name).mkdir()
        artifacts[name] = Artifact(
            name, f"{name:0>64}", root / name, metrics={"loss": 0.5, "note": "text"}, seconds=1.0
        )
    build_data(load_config("digits"), {}, root / "data", Progress.silent())
    write_tiny_clip(root / "clip")
    write_tiny_denoiser(root / "denoiser" / "bundle")
    write_tiny_classifier(root / "classifier" / "bundle")
    for name in ("clip/training", "denoiser", "classifier"):
        (root / name).mkdir(exist_ok=True)
        (root / name / "losses.csv").write_text("step,loss,rate\n1,2.0,0.1\n2,1.5,\n")
        Image.new("L", (8, 8)).save(root / name / "losses.png")
    return artifacts


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without a run, to be copied under a storage folder as `mlflow.db`: making one takes seconds."""
    root = tmp_path_factory.mktemp("store")
    open_client(f"sqlite:///{root / 'mlflow.db'}").search_experiments()
    return root / "mlflow.db"


@pytest.fixture(scope="session")
def bucket() -> Iterator[Bucket]:
    """An empty bucket of an S3 server that lives as long as the tests."""
    with serve_bucket() as found:
        yield found


@pytest.fixture(scope="session")
def refusing() -> Iterator[str]:
    """Address of an S3 server that lets nobody in."""
    with serve_refusals() as address:
        yield address


@pytest.fixture(scope="session")
def write_package() -> Callable[..., Path]:
    """See `write_tiny_package`."""
    return write_tiny_package


@pytest.fixture(scope="session")
def write_classifier() -> Callable[..., ModelBundle]:
    """See `write_tiny_classifier`."""
    return write_tiny_classifier
