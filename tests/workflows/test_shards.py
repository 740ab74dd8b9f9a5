from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workflows.errors import StorageUnwritable
from workflows.shards import Shard, file_sha256, find_shard, remove_partial, write_shard

TABLE = pa.table({"x": [1, 2, 3]})


def test_a_written_shard_is_found_by_its_key(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, "a/shard.parquet", TABLE, "key")
    assert shard == Shard("a/shard.parquet", 3, file_sha256(tmp_path / "a/shard.parquet"))
    assert find_shard(tmp_path, "a/shard.parquet", "key") == shard
    assert find_shard(tmp_path, "a/shard.parquet", "another key") is None
    assert find_shard(tmp_path, "b/shard.parquet", "key") is None
    assert pq.read_table(tmp_path / "a/shard.parquet").equals(TABLE)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    first, again, other = (
        write_shard(tmp_path, f"{name}.parquet", table, "key")
        for name, table in [("a", TABLE), ("b", TABLE), ("c", TABLE.slice(1))]
    )
    assert first.sha256 == again.sha256 != other.sha256


def test_half_a_file_is_no_shard(tmp_path: Path) -> None:
    write_shard(tmp_path, "shard.parquet", TABLE, "key")
    data = (tmp_path / "shard.parquet").read_bytes()
    (tmp_path / "shard.parquet").write_bytes(data[: len(data) // 2])
    assert find_shard(tmp_path, "shard.parquet", "key") is None


def test_leftovers_go_and_shards_stay(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, "a/shard.parquet", TABLE, "key")
    leftover = tmp_path / "a" / "shard.parquet.0123.partial"
    leftover.write_bytes(b"half")
    remove_partial(tmp_path)
    assert not leftover.exists()
    assert find_shard(tmp_path, "a/shard.parquet", "key") == shard


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file where a folder should be")
    with pytest.raises(StorageUnwritable, match=r"storage\.root"):
        write_shard(tmp_path, "a/shard.parquet", TABLE, "key")


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(table: pa.Table, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(StorageUnwritable, match="No space left"):
        write_shard(tmp_path, "shard.parquet", TABLE, "key")
    assert list(tmp_path.iterdir()) == []
