"""A small embedding cache of real digits with random text features, written without Ray or CLIP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tests.workflows.train.ranks import Ranks
from workflows.config.load import load_config
from workflows.config.schema import ClipConfig, RunConfig, TrainConfig
from workflows.data.dataset import SPLITS, Dataset
from workflows.data.stage import build_data
from workflows.embed.cache import EmbeddingCache
from workflows.embed.caption_index import CaptionIndex, texts_of
from workflows.embed.captions import caption_table
from workflows.embed.images import image_table
from workflows.embed.manifest import Manifest
from workflows.runtime.progress import Progress
from workflows.storage.mapped import write_mapped
from workflows.storage.shards import Shard
from workflows.towers.clip_model import build_tokenizer
from workflows.towers.features import EncodedText
from workflows.train.clip.batches import Rows, meanings_of, vocabulary_of
from workflows.train.clip.objective import ClipObjective
from workflows.train.clip.stage import loop_config
from workflows.train.networks import classifier_network, denoiser_network, noise_schedule
from workflows.train.objectives import ClassifierObjective, DenoiserObjective

TOKENS, WIDTH = 4, 8
ENCODER = "random"
CLIP = ClipConfig(
    embed_dim=8,
    text_width=16,
    text_layers=1,
    context_length=12,
    vision_width=16,
    vision_layers=2,
    patch_size=4,
    steps=20,
    batch_size=32,
    num_workers=2,
    checkpoint_every=8,
)
"""Three groups of the ten digits in a batch."""
NETWORK = {"width": 16, "depth": 2, "patch_size": 4, "num_heads": 2}
TRAIN = {
    "steps": 12,
    "batch_size": 16,
    "learning_rate": 0.001,
    "sharding": "fsdp",
    "log_every": 2,
    "warmup_steps": 2,
    "checkpoint_every": 4,
}


def tiny_config(root: Path, *overrides: str) -> RunConfig:
    """The digits job at a tiny size."""
    parts = ("denoiser", "classifier")
    sizes = [f"{part}.network.{key}={value}" for part in parts for key, value in NETWORK.items()]
    lengths = [f"{part}.train.{key}={value}" for part in parts for key, value in TRAIN.items()]
    return load_config("digits", [f"storage.root={root}", "data.held_out=0.9", *sizes, *lengths, *overrides])


def write_cache(data: Dataset, folder: Path) -> EmbeddingCache:
    """A cache in the format of the embed stage, with features drawn from a seed."""
    index = CaptionIndex.read(data, ENCODER)
    captions = texts_of(data, index.item(0, len(index)))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(len(captions), TOKENS, WIDTH, generator=generator)
    pooled = functional.normalize(torch.randn(len(captions), WIDTH, generator=generator), dim=-1)
    mask = torch.arange(TOKENS)[None] < torch.randint(2, TOKENS + 1, (len(captions), 1), generator=generator)
    tokens = torch.where(mask[..., None], tokens, 0.0)
    table = caption_table(index.ids.to_pylist(), captions, EncodedText(tokens, mask, pooled), "float32")
    shards: list[Shard] = [write_mapped(folder, "captions/shard-000000.arrow", table, "captions")]
    rows, first = {"captions": len(captions)}, 0
    for split in SPLITS:
        samples = data.read(split)
        rows[split] = len(samples)
        uses = index.uses(first, first := first + len(samples))
        shards.append(write_mapped(folder, f"{split}/images/shard-000000.arrow", image_table(samples, uses), split))
    files = tuple(sorted(shards, key=lambda shard: shard.path))
    clip = {"model": "random", "context_length": TOKENS, "width": WIDTH, "embed_dim": WIDTH}
    sizes = {"images": 1 << 20, "captions": 1 << 20}
    Manifest("cache", ENCODER, data.info.data_hash, clip, "float32", data.info.shape, rows, sizes, files).save(folder)
    return EmbeddingCache.open(folder)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A tenth of the digits to train on."""
    folder = tmp_path_factory.mktemp("data")
    build_data(tiny_config(folder), {}, folder, Progress.silent())
    return Dataset.open(folder)


@pytest.fixture(scope="session")
def cache(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingCache:
    """Its cache."""
    return write_cache(digits, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Processes for trainers."""
    pool = Ranks()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The tiny job."""
    pictures = "denoiser.train.sample_every=6"
    averages = ("denoiser.train.ema_widths=[0.05,0.2]", "denoiser.train.snapshot_every=4")
    return tiny_config(tmp_path_factory.mktemp("runs"), pictures, *averages)


@pytest.fixture(scope="session")
def denoiser(config: RunConfig, cache: EmbeddingCache) -> DenoiserObjective:
    """A tiny denoiser's objective."""
    section = config.denoiser
    network = denoiser_network(section.network, cache)
    return DenoiserObjective(network, noise_schedule(section.schedule), "v", section.train.weighting)


@pytest.fixture(scope="session")
def classifier(config: RunConfig, cache: EmbeddingCache, digits: Dataset) -> ClassifierObjective:
    """A tiny classifier's objective."""
    candidates = cache.captions.pooled(cache.caption_positions(digits.info.candidate_captions))
    network = classifier_network(config.classifier.network, cache, len(digits.info.class_names), len(candidates))
    return ClassifierObjective(network, noise_schedule(config.denoiser.schedule), candidates)


@pytest.fixture(scope="session")
def meanings(digits: Dataset) -> Rows:
    """Which digits are the same."""
    return meanings_of(digits)


@pytest.fixture(scope="session")
def clip(digits: Dataset) -> ClipObjective:
    """A tiny CLIP's objective."""
    return ClipObjective(CLIP, 8, vocabulary_of(digits, build_tokenizer(CLIP)))


@pytest.fixture(scope="session")
def clip_loop(meanings: Rows) -> TrainConfig:
    """How the loop trains it."""
    return loop_config(CLIP, meanings)
