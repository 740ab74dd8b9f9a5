"""Training from shards in a bucket: the weights are those of training from a folder, bit for bit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch

from tests.workflows.storage.bucket import Bucket
from tests.workflows.train.ranks import Job, Ranks
from workflows.config.schema import RunConfig
from workflows.embed.cache import EmbeddingCache
from workflows.errors import InvalidData
from workflows.storage.shelf import Shelf
from workflows.train.objectives import DenoiserObjective

STEPS = 6


def moved(cache: EmbeddingCache, url: str, folder: Path) -> EmbeddingCache:
    """The cache with its shards in a bucket."""
    shelf = Shelf.of(folder, url, cache.key)
    assert shelf.store is not None
    for shard in cache.manifest.files:
        shelf.store.put(cache.folder / shard.path, shard.path)
    replace(cache.manifest, store=shelf.store.url).save(folder)
    return EmbeddingCache.open(folder)


def test_training_from_a_bucket_is_training_from_a_folder(
    ranks: Ranks, denoiser: DenoiserObjective, config: RunConfig, cache: EmbeddingCache, bucket: Bucket, tmp_path: Path
) -> None:
    remote = moved(cache, bucket.url("train"), tmp_path)
    train = config.denoiser.train.model_copy(update={"steps": STEPS, "cache_folder": tmp_path / "copies"})
    here = Job(denoiser, train, cache.folder, STEPS)
    there = replace(here, source=remote.folder)
    one, other = ranks.run(2, here)[0], ranks.run(2, there)[0]
    assert one.error is None
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    assert all(torch.equal(one.ema[name], other.ema[name]) for name in one.ema)
    assert one.figures["loss"] == other.figures["loss"]
    seeded = ranks.run(2, replace(there, config=there.config.model_copy(update={"seed": 1})))[0]
    assert not all(torch.equal(one.weights[name], seeded.weights[name]) for name in one.weights)


def test_a_lost_shard_stops_training_with_its_name(
    ranks: Ranks, denoiser: DenoiserObjective, config: RunConfig, cache: EmbeddingCache, bucket: Bucket, tmp_path: Path
) -> None:
    remote = moved(cache, bucket.url("lost"), tmp_path)
    (shard,) = remote.reader.shards("train/images")
    bucket.remove(f"lost/{cache.key}/{shard.path}")
    train = config.denoiser.train.model_copy(update={"cache_folder": tmp_path / "copies"})
    (ended,) = ranks.run(1, Job(denoiser, train, remote.folder, STEPS))
    assert isinstance(ended.error, InvalidData)
    assert re.search(r"s3://shards/lost/.*train/images/.* is missing: run `raverse cache prune`", str(ended.error))
