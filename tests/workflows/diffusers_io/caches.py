"""A cache of latents, written as the embed stage does but without Ray."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from workflows.config.load import load_config
from workflows.data.dataset import Dataset
from workflows.embed.cache import EmbeddingCache
from workflows.embed.captions import CaptionShardWriter
from workflows.embed.latents import LatentShardWriter
from workflows.embed.plan import plan_shards
from workflows.package.base import Base
from workflows.storage.shards import Shard
from workflows.storage.shelf import Shelf
from workflows.towers.identity import ClipIdentity


def write_latents(base: Base, data: Dataset, folder: Path, *, flips: bool) -> EmbeddingCache:
    """Runs the writers of the embed stage, one shard after the other."""
    section, identity = load_config("digits", []).embed, ClipIdentity.load(base.text_folder)
    wanted = base.latents(flips=flips)
    assert wanted is not None
    assert base.autoencoder is not None
    plan, shelf = plan_shards(data, identity, section, wanted), Shelf(folder)
    images = LatentShardWriter(data, shelf, data.info.rows, base.autoencoder, wanted, "cpu")
    captions = CaptionShardWriter(
        data, base.text_folder, shelf, plan.encoder, section.dtype, section.batch_size, 0, None
    )
    shards = [Shard(**images(item)) for item in plan.images]
    for row in captions(pa.Table.from_pylist([item | {"parts": []} for item in plan.captions])).to_pylist():
        shards.append(Shard(**{name: value for name, value in row.items() if name != "encoded"}))
    plan.manifest(data, identity, section.dtype, shards).save(folder)
    return EmbeddingCache.open(folder)
