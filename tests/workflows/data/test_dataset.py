"""The data artifact: what is written is what is read, and a combination has one number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from workflows.data.dataset import SCHEMA, DataInfo, Dataset, Split, decode, read_rows, write_split
from workflows.data.rows import rows_of
from workflows.errors import InvalidData, MissingArtifact


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
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
def test_a_split_is_read_as_it_was_written(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    split = make_split(9, shape)
    write_split(split, tmp_path / "train.parquet")
    table = pq.read_table(tmp_path / "train.parquet")
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
    write_split(make_split(11, (1, 2, 2)), tmp_path / "rows.parquet")
    assert pq.ParquetFile(tmp_path / "rows.parquet").num_row_groups == 3
    for start in range(11):
        for stop in range(start + 1, 12):
            ids = read_rows(tmp_path / "rows.parquet", start, stop)["sample_id"].to_pylist()
            assert ids == [3 * i for i in range(start, stop)]


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
