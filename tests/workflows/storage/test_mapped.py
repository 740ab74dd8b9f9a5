"""Shards that are mapped: written whole, found by key and hash, readable row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from workflows.errors import InvalidData, StorageUnwritable
from workflows.storage.mapped import MappedShard, find_mapped, hash_of, path_of, write_hashed, write_mapped

TABLE = pa.table({"x": [1, 2, 3], "y": ["a", None, "c"]})


def test_a_shard_is_found_as_it_was_written(tmp_path: Path) -> None:
    shard = write_mapped(tmp_path, "a/shard-0.arrow", TABLE, "key")
    assert (shard.rows, path_of(shard.path), hash_of(shard.path)) == (3, "a/shard-0.arrow", shard.sha256)
    assert find_mapped(tmp_path, "a/shard-0.arrow", "key") == shard
    assert find_mapped(tmp_path, "a/shard-0.arrow", "other") is None
    assert find_mapped(tmp_path, "a/shard-1.arrow", "key") is None
    found = MappedShard.open(tmp_path / shard.path)
    assert (found.key, found.rows, found.table().to_pydict()) == ("key", 3, TABLE.to_pydict())
    assert write_mapped(tmp_path, "a/shard-0.arrow", pa.concat_tables([TABLE[:1], TABLE[1:]]), "key") == shard
    assert [path.name for path in (tmp_path / "a").iterdir()] == [Path(shard.path).name]
    part = write_hashed(tmp_path, TABLE)
    assert len(part.stem) == 64 and MappedShard.open(part).rows == 3


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_shard_is_not_found(tmp_path: Path, damage: str) -> None:
    path = tmp_path / write_mapped(tmp_path, "shard.arrow", TABLE, "key").path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if damage == "flipped" else content[:-9])
    assert find_mapped(tmp_path, "shard.arrow", "key") is None


def test_files_of_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        MappedShard.open(tmp_path / "none.arrow")
    for content in (b"", b"no arrow at all"):
        (tmp_path / "x.arrow").write_bytes(content)
        with pytest.raises(InvalidData, match=r"x\.arrow"):
            MappedShard.open(tmp_path / "x.arrow")
    with pa.OSFile(str(tmp_path / "two.arrow"), "wb") as sink, pa.ipc.new_file(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)
        writer.write_table(TABLE)
    with pytest.raises(InvalidData, match=r"two\.arrow has 2 record batches, wanted 1"):
        MappedShard.open(tmp_path / "two.arrow")
    (tmp_path / "file").write_text("a file where a folder should be")
    with pytest.raises(StorageUnwritable, match=r"storage\.root"):
        write_mapped(tmp_path / "file", "shard.arrow", TABLE, "key")


def test_released_pages_leave_the_process_and_are_read_again(tmp_path: Path) -> None:
    count = 64 << 20
    values = np.arange(count // 8)
    shard = MappedShard.open(tmp_path / write_mapped(tmp_path, "x.arrow", pa.table({"x": values}), "key").path)
    view, process = shard.column("x").to_numpy(), psutil.Process()
    before = process.memory_full_info().uss
    assert int(view.sum()) == int(values.sum())
    touched = process.memory_full_info().uss
    shard.release()
    released = process.memory_full_info().uss
    assert touched - before > 0.9 * count, "negative control: a mapping that is read is in memory"
    assert released - before < 0.1 * count
    assert int(view[-1]) == int(values[-1])
