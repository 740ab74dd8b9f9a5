"""A cache written with the real parts, without Ray: what training reads, and what plain pyarrow reads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.feather
import pytest
import torch

from tests.workflows.embed.texts import texts_at
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
    write_image = ImageShardWriter(dataset, Shelf(folder), dataset.info.rows)
    writer = CaptionShardWriter(dataset, towers, Shelf(folder), plan.encoder, dtype, batch_size=16, num_gpus=0)
    written = [writer._write(item) for item in plan.captions]
    assert [row.pop("encoded") for row in written] == [row["rows"] for row in written]
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
        images = cache.images(name, rows)
        assert images.dtype == torch.uint8
        np.testing.assert_array_equal(images, split.images[rows])
        np.testing.assert_array_equal(batch.labels, split.labels[rows])
        np.testing.assert_array_equal(batch.sample_ids, split.sample_ids[rows])
        for i, row in enumerate(rows):
            texts = texts_at(cache.reader, batch.captions[i, : batch.num_captions[i]])
            assert texts == [normalise(text) for text in split.captions[row]]


def test_captions_are_encoded_as_the_tower_encodes_them(cache: EmbeddingCache, inputs: dict[str, Artifact]) -> None:
    tower = load_clip(inputs["clip"].folder).text
    positions = cache.caption_positions(["the digit two", "a  handwritten 7"])
    assert texts_at(cache.reader, positions) == ["the digit two", "a handwritten 7"]
    for found, expected in zip(
        cache.captions.take(positions), tower.encode(["the digit two", "a handwritten 7"]), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert len(cache.captions) == len(set(texts_at(cache.reader, torch.arange(80)))) == 80


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
    tokens, mask, pooled = half.captions.take(torch.arange(80))
    whole = cache.captions.take(torch.arange(80))
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, whole[0], rtol=error, atol=1e-5)
    assert not torch.equal(tokens, whole[0])
    assert torch.equal(mask, whole[1])
    assert torch.equal(pooled, whole[2])
    assert half.key != cache.key
    sizes = [bytes_of(one, "tokens") for one in (half, cache)]
    assert sizes[0] * 2 == sizes[1]


def bytes_of(cache: EmbeddingCache, column: str) -> int:
    shards = [cache.reader.opened.open(shard) for shard in cache.reader.shards("captions")]
    return sum(shard.column(column).values.values.nbytes for shard in shards)


def test_only_tokens_that_the_mask_keeps_are_on_disk(cache: EmbeddingCache) -> None:
    tokens, mask, _ = cache.captions.take(torch.arange(80))
    assert 0.2 < float(mask.float().mean()) < 0.9
    assert bytes_of(cache, "tokens") == int(mask.sum()) * tokens.shape[2] * 4
    assert not tokens[~mask].any()


def test_plain_pyarrow_reads_the_shards(cache: EmbeddingCache, inputs: dict[str, Artifact]) -> None:
    """In a process that has neither raverse nor Ray."""
    code = """if True:
        import glob, sys, pyarrow.feather
        folder = sys.argv[1]
        images = pyarrow.feather.read_table(*glob.glob(folder + "/train/images/shard-000001-*.arrow"))
        shards = sorted(glob.glob(folder + "/captions/shard-*.arrow"))
        captions = pyarrow.concat_tables(map(pyarrow.feather.read_table, shards))
        assert "ray" not in sys.modules and "workflows" not in sys.modules
        column = images["image"].chunk(0)
        print(column.type.extension_name, column.to_numpy_ndarray().shape)
        print(images.column_names)
        print(captions["tokens"].type)
        print(captions.column_names)
        print(captions["caption"][images["captions"][7][0].as_py()])
    """
    lines = subprocess.run(
        [sys.executable, "-I", "-c", code, str(cache.folder)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert lines == [
        "arrow.fixed_shape_tensor (50, 1, 8, 8)",
        "['sample_id', 'image', 'captions', 'label', 'attributes', 'unseen', 'image_check', 'check']",
        "list<item: fixed_size_list<item: float>[16]>",
        "['caption_id', 'caption', 'mask', 'tokens', 'pooled', 'check']",
        normalise(Dataset.open(inputs["data"].folder).read("train").captions[57][0]),
    ]


def test_a_caption_that_is_not_there_is_named(cache: EmbeddingCache) -> None:
    with pytest.raises(InvalidData, match="'a handwritten eleven' is not in the cache"):
        cache.caption_positions(["a handwritten seven", "a handwritten eleven"])


def flip(cache: EmbeddingCache, prefix: str, column: str) -> None:
    """Changes one bit of row 3 in the first shard."""
    path = cache.folder / cache.reader.shards(prefix)[0].path
    table = pyarrow.feather.read_table(path, memory_map=False)
    values = table[column].chunk(0)
    while hasattr(values, "values") or hasattr(values, "storage"):
        values = values.storage if hasattr(values, "storage") else values.values
    content, wanted = bytearray(path.read_bytes()), bytes(values.buffers()[-1])
    place = content.find(wanted[: values.nbytes])
    assert place > 0
    content[place + values.nbytes * 3 // table.num_rows + 1] ^= 1
    path.write_bytes(content)


def every_row(cache: EmbeddingCache) -> None:
    rows = range(cache.num_samples("train"))
    cache.images("train", rows)
    cache.captions.take(cache.batch("train", rows).pick(torch.zeros(len(rows), dtype=torch.int64)))
    cache.captions.pooled(torch.arange(len(cache.captions)))


@pytest.mark.parametrize(
    ("prefix", "column"),
    [
        ("train/images", "image"),
        ("train/images", "label"),
        ("train/images", "sample_id"),
        ("train/images", "captions"),
        ("captions", "tokens"),
        ("captions", "pooled"),
        ("captions", "mask"),
    ],
)
def test_a_changed_row_is_named_where_it_is_read(
    inputs: dict[str, Artifact], tmp_path: Path, prefix: str, column: str
) -> None:
    cache = write(inputs, tmp_path)
    cache.verify()
    every_row(EmbeddingCache.open(tmp_path))
    flip(cache, prefix, column)
    path = cache.reader.shards(prefix)[0].path
    with pytest.raises(InvalidData, match=f"{path} was changed: row [0-9]+ has checksum .*raverse cache prune"):
        every_row(EmbeddingCache.open(tmp_path))
    with pytest.raises(InvalidData, match=f"{path} in .* missing or changed"):
        cache.verify()


def test_a_changed_vector_is_named_where_vectors_alone_are_read(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    cache = write(inputs, tmp_path)
    flip(cache, "captions", "pooled")
    with pytest.raises(InvalidData, match="was changed: row"):
        EmbeddingCache.open(tmp_path).captions.pooled(torch.arange(50))


def lost(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def shorter(path: Path) -> None:
    table = pyarrow.feather.read_table(path, memory_map=False).slice(1)
    pyarrow.feather.write_feather(table, path, compression="uncompressed")


@pytest.mark.parametrize("harm", [lost, cut, emptied, shorter])
@pytest.mark.parametrize("prefix", ["train/images", "captions"])
def test_a_shard_that_is_not_whole_is_named(
    inputs: dict[str, Artifact], tmp_path: Path, harm: Callable[[Path], None], prefix: str
) -> None:
    cache = write(inputs, tmp_path)
    path = cache.reader.shards(prefix)[-1].path
    harm(tmp_path / path)
    with pytest.raises(InvalidData, match=f"{path}.*run `raverse cache prune`, then the job again"):
        every_row(EmbeddingCache.open(tmp_path))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"shape": (1, 8, 9)}, r"train/images/.* has rows of shape \(1, 8, 8\), wanted \(1, 8, 9\)"),
        ({"width": 17}, r"captions/.* has rows of shape \(12, 16, 8\), wanted \(12, 17, 8\)"),
        ({"embed_dim": 9}, r"captions/.* has rows of shape \(12, 16, 8\), wanted \(12, 16, 9\)"),
    ],
)
def test_rows_of_another_width_are_named(
    cache: EmbeddingCache, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    manifest = replace(cache.manifest, store=str(cache.folder))
    manifest = replace(manifest, **changes) if "shape" in changes else replace(manifest, clip=manifest.clip | changes)
    manifest.save(tmp_path)
    with pytest.raises(InvalidData, match=told):
        every_row(EmbeddingCache.open(tmp_path))


def test_a_manifest_with_too_few_shards_is_named(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    cache = write(inputs, tmp_path)
    kept = tuple(shard for shard in cache.manifest.files if shard != cache.reader.shards("train/images")[-1])
    replace(cache.manifest, files=kept).save(tmp_path)
    with pytest.raises(InvalidData, match="lists 7 shards of 350 train/images, wanted 359 in shards of 50"):
        EmbeddingCache.open(tmp_path)
    with pytest.raises(InvalidData, match="the manifest has 8 shards of train/images, wanted number 8"):
        cache.images("train", [400])


@pytest.mark.parametrize("prefix", ["train/images", "captions"])
def test_shards_that_changed_places_are_named(inputs: dict[str, Artifact], tmp_path: Path, prefix: str) -> None:
    cache = write(inputs, tmp_path)
    one, other = (tmp_path / shard.path for shard in cache.reader.shards(prefix)[:2])
    assert cache.reader.shards(prefix)[0].rows == cache.reader.shards(prefix)[1].rows or prefix == "captions"
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    with pytest.raises(InvalidData, match=f"{one.relative_to(tmp_path)} (is another shard, made from|has 30 rows)"):
        every_row(EmbeddingCache.open(tmp_path))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_tokens_of_another_type_than_the_manifest_says_are_named(
    cache: EmbeddingCache, tmp_path: Path, dtype: str
) -> None:
    replace(cache.manifest, store=str(cache.folder), dtype=dtype).save(tmp_path)
    with pytest.raises(InvalidData, match=f"has tokens of float32, wanted {dtype}"):
        every_row(EmbeddingCache.open(tmp_path))


@pytest.mark.parametrize("prefix", ["train/images", "captions"])
def test_a_byte_that_was_changed_anywhere_is_named_or_changes_nothing(
    inputs: dict[str, Artifact], tmp_path: Path, prefix: str
) -> None:
    """Also in the headers and the footer, where no checksum is."""
    cache = write(inputs, tmp_path)
    path = tmp_path / cache.reader.shards(prefix)[0].path
    whole, draws, named = path.read_bytes(), np.random.default_rng(0), 0
    rows = torch.arange(5)
    wanted = (cache.images("train", rows), *cache.captions.take(rows))
    for trial in range(150):
        edge = int(draws.integers(1200))
        place = (edge, len(whole) - 1 - edge, int(draws.integers(len(whole))))[trial % 3]
        spoilt = bytearray(whole)
        spoilt[place] ^= int(draws.integers(1, 256))
        path.write_bytes(bytes(spoilt))
        told = ""
        try:
            found = EmbeddingCache.open(tmp_path)
            seen = (found.images("train", rows), *found.captions.take(rows))
        except InvalidData as error:
            told = str(error)
        assert str(path) in told or all(map(torch.equal, seen, wanted)), (place, told)
        named += bool(told)
    assert named > 20


def test_pages_of_captions_are_counted(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, counted = write(inputs, tmp_path), []
    monkeypatch.setattr(cache.reader.opened.files, "touched", lambda rows, count: counted.append((rows, count)))
    tokens, mask, _ = cache.captions.take(torch.arange(3))
    assert counted == [(3, int(mask.sum()) * tokens.shape[2] * 4)]
    cache.images("train", [0, 1])
    assert counted[1:] == [(2, 2 * 64)]


def test_a_cache_of_an_earlier_format_is_told_to_be_made_again(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    cache = write(inputs, tmp_path)
    replace(cache.manifest, format=1).save(tmp_path)
    with pytest.raises(InvalidData, match="has format 1, wanted 2: remove the folder and run `raverse embed` again"):
        EmbeddingCache.open(tmp_path)


def test_an_unfinished_cache_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact, match="raverse embed"):
        EmbeddingCache.open(tmp_path)


def test_a_picture_of_another_shape_is_refused(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    writer = ImageShardWriter(Dataset.open(inputs["data"].folder), Shelf(tmp_path), rows_of((3, 8, 8)))
    item = {"split": "train", "start": 0, "stop": 5, "path": "train/images/shard-000000.arrow", "key": "key"}
    with pytest.raises(InvalidData, match=r"\(1, 8, 8\) in train/images/shard-000000.arrow, wanted \(3, 8, 8\)"):
        writer(item)
    assert list(tmp_path.rglob("*.arrow")) == []
