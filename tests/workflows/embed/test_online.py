"""Captions that are encoded while training are those of the cache."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workflows.embed.test_cache import flip, write
from tests.workflows.embed.texts import texts_at
from workflows.config.schema import EmbedConfig, TrainConfig
from workflows.data.dataset import Dataset
from workflows.embed.cache import EmbeddingCache
from workflows.embed.captions import TextShardWriter
from workflows.embed.images import ImageShardWriter
from workflows.embed.plan import plan_shards
from workflows.errors import InvalidClip, InvalidData
from workflows.runtime.artifact import Artifact
from workflows.storage.shards import Shard
from workflows.storage.shelf import Shelf
from workflows.towers.identity import ClipIdentity
from workflows.train.batches import CachedBatches, Share


def write_online(inputs: dict[str, Artifact], folder: Path) -> EmbeddingCache:
    dataset, towers = Dataset.open(inputs["data"].folder), inputs["clip"].folder
    identity, config = ClipIdentity.load(towers), EmbedConfig(rows_per_shard=50, mode="online")
    plan, shelf = plan_shards(dataset, identity, config), Shelf(folder)
    shards = [Shard(**row) for row in map(ImageShardWriter(dataset, shelf, dataset.info.rows), plan.images)]
    shards += [Shard(**row) for row in map(TextShardWriter(dataset, shelf, plan.encoder), plan.captions)]
    plan.manifest(dataset, identity, config.dtype, shards, towers=os.path.relpath(towers, folder)).save(folder)
    return EmbeddingCache.open(folder)


@pytest.fixture(scope="module")
def cached(inputs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> EmbeddingCache:
    return write(inputs, tmp_path_factory.mktemp("cached"))


@pytest.fixture(scope="module")
def online(inputs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> EmbeddingCache:
    return write_online(inputs, tmp_path_factory.mktemp("online"))


def test_features_are_those_of_the_cache(cached: EmbeddingCache, online: EmbeddingCache) -> None:
    assert online.key != cached.key
    positions = torch.tensor([79, 3, 3, 51, 0])
    for found, wanted in zip(online.captions.take(positions), cached.captions.take(positions), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(online.captions.pooled(positions), cached.captions.pooled(positions), rtol=0, atol=1e-5)
    assert len(online.captions) == len(cached.captions) == 80
    assert texts_at(online.reader, positions) == texts_at(cached.reader, positions)
    other = cached.captions.take(torch.tensor([79, 3, 3, 51, 1]))[0]
    assert float((online.captions.take(positions)[0] - other).abs().max()) > 1e-2, "negative control"


@pytest.mark.parametrize("share", [Share(), Share(1, 3)])
def test_training_reads_the_same_batches(cached: EmbeddingCache, online: EmbeddingCache, share: Share) -> None:
    config = TrainConfig(batch_size=12, steps=9)
    one, other = (
        CachedBatches(cache, 100, config, torch.device("cpu")).read(24, 0, share) for cache in (cached, online)
    )
    assert torch.equal(one.x0, other.x0)
    assert torch.equal(one.sample_ids, other.sample_ids)
    for name in ("tokens", "pooled"):
        found, wanted = getattr(other.condition, name), getattr(one.condition, name)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert one.num_all == other.num_all == 12


def test_a_worker_encodes_its_own_rows_alone(online: EmbeddingCache, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, encode = [], type(online.captions._tower).encode

    def spy(tower: Any, texts: list[str]) -> Any:
        encoded.append(len(texts))
        return encode(tower, texts)

    monkeypatch.setattr(type(online.captions._tower), "encode", spy)
    batches = CachedBatches(online, 100, TrainConfig(batch_size=12, steps=9), torch.device("cpu"))
    assert len(batches.read(24, 0, Share(1, 3))) == 4
    assert encoded == [4]


def test_only_text_is_on_disk(cached: EmbeddingCache, online: EmbeddingCache) -> None:
    columns = [online.reader.opened.open(shard).table().column_names for shard in online.reader.shards("captions")]
    assert all(names == ["caption_id", "caption", "check"] for names in columns)
    sizes = [
        sum((cache.folder / shard.path).stat().st_size for shard in cache.reader.shards("captions"))
        for cache in (online, cached)
    ]
    assert sizes[0] < sizes[1] / 3
    online.verify()


def test_a_changed_caption_is_named(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    cache = write_online(inputs, tmp_path)
    flip(cache, "captions", "caption")
    with pytest.raises(InvalidData, match="was changed: row"):
        EmbeddingCache.open(tmp_path).captions.take(torch.arange(80))


@pytest.mark.parametrize("bit", [1, 1 << 30])
def test_changed_offsets_of_texts_are_named_and_harm_no_process(
    inputs: dict[str, Artifact], tmp_path: Path, bit: int
) -> None:
    cache = write_online(inputs, tmp_path)
    path = tmp_path / cache.reader.shards("captions")[0].path
    starts = bytes(cache.reader.opened.open(cache.reader.shards("captions")[0]).column("caption").buffers()[1])
    content = bytearray(path.read_bytes())
    place = content.find(starts) + 4 * 5
    content[place : place + 4] = (int.from_bytes(content[place : place + 4], "little") ^ bit).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(InvalidData, match=r"was changed: row [45]"):
        EmbeddingCache.open(tmp_path).captions.take(torch.arange(50))


def test_towers_that_are_gone_are_named(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    cache = write_online(inputs, tmp_path)
    replace(cache.manifest, towers="nowhere").save(tmp_path)
    with pytest.raises(InvalidClip, match="nowhere"):
        EmbeddingCache.open(tmp_path).captions.take(torch.arange(2))
