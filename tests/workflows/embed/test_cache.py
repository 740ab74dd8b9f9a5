"""A cache written with the real parts, without Ray: what training reads, and what plain pyarrow reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from workflows.config.schema import EmbedConfig
from workflows.data.dataset import SPLITS, Dataset
from workflows.data.rows import rows_of
from workflows.embed.cache import EmbeddingCache
from workflows.embed.captions import CaptionShardWriter
from workflows.embed.images import ImageShardWriter
from workflows.embed.manifest import normalise
from workflows.embed.plan import plan_shards
from workflows.errors import InvalidData, MissingArtifact
from workflows.runtime.artifact import Artifact
from workflows.storage.shards import Shard
from workflows.storage.shelf import Shelf
from workflows.towers.clip import load_clip
from workflows.towers.identity import ClipIdentity


def write(inputs: dict[str, Artifact], folder: Path, dtype: str = "float32") -> EmbeddingCache:
    dataset, towers = Dataset.open(inputs["data"].folder), inputs["clip"].folder
    identity = ClipIdentity.load(towers)
    plan = plan_shards(dataset, identity, EmbedConfig(dtype=dtype, rows_per_shard=50))
    write_image = ImageShardWriter(dataset.folder, Shelf(folder), dataset.info.rows, plan.encoder)
    writer = CaptionShardWriter(towers, Shelf(folder), plan.encoder, dtype, batch_size=16, num_gpus=0)
    written = [writer._write(item) for item in plan.captions]
    assert [row.pop("encoded") for row in written] == [len(item["captions"]) for item in plan.captions]
    shards = [Shard(**row) for row in [*map(write_image, plan.images), *written]]
    plan.manifest(dataset, identity, dtype, shards).save(folder)
    return EmbeddingCache.open(folder)


@pytest.fixture(scope="module")
def cache(inputs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> EmbeddingCache:
    return write(inputs, tmp_path_factory.mktemp("cache"))


def test_samples_are_those_of_the_data(cache: EmbeddingCache, inputs: dict[str, Artifact]) -> None:
    for name in SPLITS:
        split = Dataset.open(inputs["data"].folder).read(name)
        assert cache.num_samples(name) == len(split)
        rows = np.random.default_rng(0).permutation(len(split))[:77]
        batch = cache.batch(name, rows)
        assert batch.images.dtype == torch.uint8
        np.testing.assert_array_equal(batch.images, split.images[rows])
        np.testing.assert_array_equal(batch.labels, split.labels[rows])
        np.testing.assert_array_equal(batch.sample_ids, split.sample_ids[rows])
        for i, row in enumerate(rows):
            texts = [cache.captions.text[position] for position in batch.captions[i, : batch.num_captions[i]]]
            assert texts == [normalise(text) for text in split.captions[row]]


def test_captions_are_encoded_as_the_tower_encodes_them(cache: EmbeddingCache, inputs: dict[str, Artifact]) -> None:
    tower = load_clip(inputs["clip"].folder).text
    positions = cache.caption_positions(["the digit two", "a  handwritten 7"])
    assert [cache.captions.text[i] for i in positions] == ["the digit two", "a handwritten 7"]
    for found, expected in zip(
        cache.captions.take(positions), tower.encode(["the digit two", "a handwritten 7"]), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert len(cache.captions) == len(set(cache.captions.text)) == 80


def test_a_wording_is_picked_by_number(cache: EmbeddingCache) -> None:
    batch = cache.batch("train", [0, 1, 2])
    assert batch.pick(torch.tensor([0, 1, 2])).tolist() == [int(batch.captions[i, i]) for i in range(3)]
    far = torch.tensor([3, 2**40 * 3 + 1, 3 * 7 + 2])
    assert batch.pick(far).tolist() == [int(batch.captions[i, i]) for i in range(3)]


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_tokens_may_be_kept_in_half_the_space(
    cache: EmbeddingCache, inputs: dict[str, Artifact], tmp_path: Path, dtype: str, error: float
) -> None:
    half = write(inputs, tmp_path, dtype)
    assert half.captions.tokens.dtype == getattr(torch, dtype)
    tokens, mask, pooled = half.captions.take(torch.arange(80))
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, cache.captions.tokens, rtol=error, atol=1e-5)
    assert not torch.equal(tokens, cache.captions.tokens)
    assert torch.equal(mask, cache.captions.mask)
    assert torch.equal(pooled, cache.captions.pooled)
    assert half.key != cache.key


def test_plain_pyarrow_reads_the_shards(cache: EmbeddingCache) -> None:
    """In a process that has neither raverse nor Ray."""
    code = """if True:
        import sys, pyarrow, pyarrow.parquet as pq
        folder = sys.argv[1]
        images = pq.read_table(folder + "/train/images/shard-00001.parquet").combine_chunks()
        captions = pq.read_table(folder + "/captions/shard-00000.parquet").combine_chunks()
        every = pq.read_table(folder + "/captions")["caption_id"].to_pylist()
        assert "ray" not in sys.modules and "workflows" not in sys.modules
        for table, name in ((images, "image"), (captions, "tokens")):
            column = table[name].chunk(0)
            print(column.type.extension_name, column.to_numpy_ndarray().shape)
            print(table.column_names)
        print(set(images["caption_ids"].chunk(0).flatten().to_pylist()) <= set(every))
    """
    lines = subprocess.run(
        [sys.executable, "-I", "-c", code, str(cache.folder)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert lines == [
        "arrow.fixed_shape_tensor (50, 1, 8, 8)",
        "['sample_id', 'image', 'caption_ids', 'label', 'attributes', 'unseen']",
        "arrow.fixed_shape_tensor (50, 12, 16)",
        "['caption_id', 'caption', 'tokens', 'mask', 'pooled']",
        "True",
    ]


def test_a_caption_that_is_not_there_is_named(cache: EmbeddingCache) -> None:
    with pytest.raises(InvalidData, match="'a handwritten eleven' is not in the cache"):
        cache.caption_positions(["a handwritten seven", "a handwritten eleven"])


def test_a_changed_shard_is_named(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    cache = write(inputs, tmp_path)
    cache.verify()
    path = "train/images/shard-00002.parquet"
    pq.write_table(pq.read_table(tmp_path / path).slice(1), tmp_path / path)
    with pytest.raises(InvalidData, match=path):
        cache.verify()
    (tmp_path / path).write_bytes(b"")
    with pytest.raises(InvalidData, match="cannot read"):
        cache.samples("train")


def test_an_unfinished_cache_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact, match="raverse embed"):
        EmbeddingCache.open(tmp_path)


def test_a_picture_of_another_shape_is_refused(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    writer = ImageShardWriter(inputs["data"].folder, Shelf(tmp_path), rows_of((3, 8, 8)), "encoder")
    item = {"split": "train", "start": 0, "stop": 5, "path": "train/images/shard-00000.parquet", "key": "key"}
    with pytest.raises(InvalidData, match=r"\(1, 8, 8\) in train/images/shard-00000.parquet, wanted \(3, 8, 8\)"):
        writer(item)
    assert list(tmp_path.rglob("*.parquet")) == []
