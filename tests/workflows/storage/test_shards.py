from __future__ import annotations

import contextlib
import random
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workflows.errors import StorageUnwritable
from workflows.storage.atomic import remove_partial
from workflows.storage.hashing import file_sha256
from workflows.storage.shards import Shard, ShardWriter, find_shard, write_shard

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


FULL_DISK = """
import pyarrow as pa, random, resource, sys
from pathlib import Path
from workflows.errors import StorageUnwritable
from workflows.storage.shards import Shard, copy_shard, write_shard

def refused(write, *arguments):
    try:
        write(*arguments)
    except StorageUnwritable as error:
        print(error)
    else:
        sys.exit("written")

def grow_to(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

folder, small = Path(sys.argv[1]), pa.table({"x": [1, 2, 3]})
grow_to(2000)
write_shard(folder, "small.parquet", small, "key")
refused(write_shard, folder, "large.parquet", pa.table({"x": random.Random(0).sample(range(10**9), 1000)}), "key")
refused(copy_shard, folder, Shard("copy.parquet", 1, ""), Path(sys.executable).resolve())
grow_to(2)
refused(write_shard, folder, "begun.parquet", small, "key")
"""


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """In a process of its own, none of whose files may grow, as on a disk that gets full."""
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    large, copied, begun = done.stdout.splitlines()
    assert re.search(r"cannot write .*/large\.parquet .* free space", large)
    assert "File too large" in copied
    assert "File too large" in begun
    assert [path.name for path in tmp_path.iterdir()] == ["small.parquet"]


def test_a_shard_written_bit_by_bit_is_there_when_it_is_finished(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "a/shard.parquet", TABLE.schema, "key") as writer:
        writer.write(TABLE)
        writer.write(TABLE.slice(1))
        assert find_shard(tmp_path, "a/shard.parquet", "key") is None
        shard = writer.finish()
    assert shard.rows == 5
    assert find_shard(tmp_path, "a/shard.parquet", "key") == shard
    assert pq.read_table(tmp_path / "a/shard.parquet")["x"].to_pylist() == [1, 2, 3, 2, 3]
    with contextlib.suppress(KeyError), ShardWriter(tmp_path, "b/shard.parquet", TABLE.schema, "key") as writer:
        writer.write(TABLE)
        raise KeyError
    assert not list((tmp_path / "b").iterdir())


def test_a_flipped_bit_is_found_without_a_manifest(tmp_path: Path) -> None:
    """Plain pyarrow reads such a file, and gives other numbers."""
    table = pa.table({"x": random.Random(0).sample(range(10**9), 1000)})
    shard = write_shard(tmp_path, "shard.parquet", table, "key")
    data = bytearray((tmp_path / "shard.parquet").read_bytes())
    for place in range(200, len(data) // 2, 50):
        changed = data.copy()
        changed[place] ^= 1
        (tmp_path / "shard.parquet").write_bytes(changed)
        assert find_shard(tmp_path, "shard.parquet", "key") is None
    (tmp_path / "shard.parquet").write_bytes(data)
    assert find_shard(tmp_path, "shard.parquet", "key") == shard
