"""Training from shards in a bucket: the weights are those of training from a folder, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.workflows.bucket import Bucket
from tests.workflows.train.ranks import Job, Ranks
from workflows.config import RunConfig
from workflows.embed.cache import EmbeddingCache
from workflows.embed.shelf import Shelf
from workflows.errors import InvalidData
from workflows.train.objectives import DenoiserObjective

STEPS = 6


def moved(cache: EmbeddingCache, url: str, folder: Path) -> EmbeddingCache:
    """The cache with its shards in a bucket."""
    shelf = Shelf.of(folder, url, cache.key)
    assert shelf.store is not None
    shards = tuple(shelf.copy(shard, cache.folder / shard.path) for shard in cache.manifest.files)
    replace(cache.manifest, files=shards, store=shelf.store.url).save(folder)
    return EmbeddingCache.open(folder)


def test_training_from_a_bucket_is_training_from_a_folder(
    ranks: Ranks, denoiser: DenoiserObjective, config: RunConfig, cache: EmbeddingCache, bucket: Bucket, tmp_path: Path
) -> None:
    remote = moved(cache, bucket.url("train"), tmp_path)
    here = Job(denoiser, config.denoiser.train.model_copy(update={"steps": STEPS}), cache.folder, STEPS)
    there = replace(here, cache=remote.folder)
    for one, other in zip(ranks.run(2, here), ranks.run(2, there), strict=True):
        assert one.error is None
        for name in ("weights", "ema"):
            found, expected = getattr(other, name), getattr(one, name)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in expected), name
        assert one.figures["loss"] == other.figures["loss"]
    (seeded,) = ranks.run(1, replace(there, config=there.config.model_copy(update={"seed": 1})))
    assert any(not torch.equal(seeded.weights[key], one.weights[key]) for key in one.weights)


def test_a_lost_shard_stops_training_with_its_name(
    ranks: Ranks, denoiser: DenoiserObjective, config: RunConfig, cache: EmbeddingCache, bucket: Bucket, tmp_path: Path
) -> None:
    remote = moved(cache, bucket.url("lost"), tmp_path)
    (path,) = remote.manifest.paths("train/images")
    bucket.remove(f"lost/{cache.key}/{path}")
    with pytest.raises(InvalidData, match=r"cannot read s3://shards/lost/.*train/images/.*does not exist"):
        ranks.run(1, Job(denoiser, config.denoiser.train, remote.folder, STEPS))
