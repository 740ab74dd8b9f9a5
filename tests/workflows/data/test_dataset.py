"""The data artifact: what is written is what is read, and a combination has one number."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from workflows.data.dataset import SCHEMA, DataInfo, Dataset, Split, decode, write_split
from workflows.data.rows import rows_of
from workflows.errors import InvalidData, MissingArtifact
from workflows.storage.shards import Shard


def make_split(count: int, shape: tuple[int, int, int]) -> Split:
    rng = np.random.default_rng(0)
    return Split(
        sample_ids=np.arange(count, dtype=np.int64) * 3,
        images=rng.integers(0, 256, (count, *shape), dtype=np.uint8),
        captions=tuple(("a", f"sample {i}")[: 1 + i % 2] for i in range(count)),
        labels=rng.integers(0, 4, count),
        attributes=tuple((f"value {i % 4}",) for i in range(count)),
        unseen=rng.random(count) < 0.5,
    )


def make_info() -> DataInfo:
    colors, sizes = ("red", "green", "blue"), ("small", "large")
    return DataInfo(
        source="test",
        shape=(1, 2, 2),
        class_names=colors,
        attributes={"color": colors, "size": sizes},
        num_train=1,
        num_held_out=1,
        data_hash="0" * 64,
        candidate_captions=tuple(f"{color} {size}" for color in colors for size in sizes),
        unseen_combinations=(5,),
        parts={"train": (Shard("train/part-000000.parquet", 1, "1" * 64),), "held_out": ()},
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
def test_a_split_is_read_as_it_was_written(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    split = make_split(9, shape)
    (part,) = write_split(split, tmp_path, "train")
    assert (part.path, part.rows) == ("train/part-000000.parquet", 9)
    table = pq.read_table(tmp_path / part.path)
    assert table.schema.equals(SCHEMA)
    found = decode(table, rows_of(split.images.shape[1:]))
    assert found.images.shape == (9, *shape)
    np.testing.assert_array_equal(found.images, split.images)
    np.testing.assert_array_equal(found.sample_ids, split.sample_ids)
    np.testing.assert_array_equal(found.unseen, split.unseen)
    assert (found.captions, found.attributes) == (split.captions, split.attributes)
    assert found.digest() == split.digest()


def test_any_range_of_rows_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.data.dataset.ROWS_PER_GROUP", 4)
    monkeypatch.setattr("workflows.data.dataset.ROWS_PER_PART", 6)
    parts = write_split(make_split(11, (1, 2, 2)), tmp_path, "train")
    assert [part.rows for part in parts] == [6, 5]
    assert pq.ParquetFile(tmp_path / parts[0].path).num_row_groups == 2
    dataset = Dataset(tmp_path, replace(make_info(), num_train=11, parts={"train": parts}))
    for start in range(11):
        for stop in range(start, 12):
            ids = dataset.table("train", start, stop, ["sample_id"])["sample_id"].to_pylist()
            assert ids == [3 * i for i in range(start, stop)]
    batches = list(dataset.batches("train", ["sample_id"]))
    assert [row for batch in batches for row in batch["sample_id"].to_pylist()] == [3 * i for i in range(11)]
    assert max(batch.num_rows for batch in batches) <= 4


def cut(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-9])


def flip(part: Path) -> None:
    images = pq.read_metadata(part).row_group(0).column(1)
    content = bytearray(part.read_bytes())
    content[images.data_page_offset + images.total_compressed_size - 3] ^= 1
    part.write_bytes(content)


def other(part: Path) -> None:
    part.write_bytes(part.with_name("part-000001.parquet").read_bytes())


@pytest.mark.parametrize("harm", [cut, flip, other, Path.unlink])
def test_a_damaged_part_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None]) -> None:
    monkeypatch.setattr("workflows.data.dataset.ROWS_PER_PART", 6)
    parts = write_split(make_split(11, (1, 2, 2)), tmp_path, "train")
    dataset = Dataset(tmp_path, replace(make_info(), num_train=11, parts={"train": parts}))
    assert len(dataset.read("train")) == 11
    harm(tmp_path / parts[0].path)
    with pytest.raises(InvalidData, match=f"{parts[0].path}.*run `raverse data` again"):
        dataset.read("train")


def test_data_of_an_earlier_version_are_told_to_be_made_again(tmp_path: Path) -> None:
    make_info().save(tmp_path)
    values = json.loads((tmp_path / "data.json").read_text())
    del values["parts"]
    (tmp_path / "data.json").write_text(json.dumps(values))
    with pytest.raises(InvalidData, match="earlier version: remove the folder, and run the job again"):
        DataInfo.load(tmp_path)


@pytest.mark.parametrize("part", ["sample_ids", "images", "captions", "labels", "attributes", "unseen"])
def test_the_digest_tells_every_change(part: str) -> None:
    split = make_split(4, (1, 2, 2))
    value = getattr(split, part)
    changed = (("other",), *value[1:]) if isinstance(value, tuple) else value ^ np.array([1], value.dtype)
    assert replace(split, **{part: changed}).digest() != split.digest()
    assert replace(split).digest() == split.digest()


def test_combinations_count_through_all_values() -> None:
    info = make_info()
    for index, caption in enumerate(info.candidate_captions):
        assert info.combination(info.values_of(index)) == index
        assert " ".join(info.values_of(index)) == caption


def test_a_value_that_does_not_occur_is_named() -> None:
    with pytest.raises(InvalidData, match="size 'huge' does not occur in test: give one of small, large"):
        make_info().combination(("red", "huge"))


def test_info_is_read_as_it_was_written(tmp_path: Path) -> None:
    make_info().save(tmp_path)
    assert Dataset.open(tmp_path).info == make_info()


def test_a_missing_artifact_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact, match="raverse data"):
        Dataset.open(tmp_path)
