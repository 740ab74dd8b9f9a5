"""Shards of a store: fetched once, kept within a limit, and never wrong, whatever the store and the disk do."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pytest

from tests.workflows.storage.flaky import FlakyFileSystem, flaky_store
from workflows.errors import InvalidData
from workflows.storage import copies, open_files
from workflows.storage.copies import CopySettings, OpenShards
from workflows.storage.hashing import file_sha256
from workflows.storage.mapped import write_mapped
from workflows.storage.place import Place
from workflows.storage.shards import Shard

COUNT = 6


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No trouble and short waits, unless the test wants some."""
    with flaky_store(monkeypatch):
        yield


@pytest.fixture
def shards(tmp_path: Path) -> list[Shard]:
    """Shards of 1,000 rows, in `store`."""
    return [
        write_mapped(tmp_path / "store", f"shard-{number}.arrow", pa.table({"x": [number] * 1000}), "key")
        for number in range(COUNT)
    ]


def opened(tmp_path: Path, limit: int = 1 << 30) -> OpenShards:
    return OpenShards(Place(f"flaky://{tmp_path}/store"), CopySettings(tmp_path / "copies", limit))


def value(shards: OpenShards, shard: Shard) -> int:
    return int(shards.open(shard).column("x")[999].as_py())


def age(tmp_path: Path, shards: list[Shard]) -> None:
    """Makes copies as old as the order of the shards says: file systems count time in steps."""
    for stamp, shard in enumerate(shards):
        path = tmp_path / "copies" / f"{shard.sha256}.arrow"
        if path.exists():
            os.utime(path, (stamp, stamp))


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "copies").glob("*.arrow"))


def test_a_node_fetches_a_shard_once(tmp_path: Path, shards: list[Shard]) -> None:
    workers = [opened(tmp_path) for _ in range(4)]
    FlakyFileSystem.delay = 0.05
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda pair: value(*pair), [(worker, shard) for shard in shards for worker in workers]))
    assert found == [number for number in range(COUNT) for _ in workers]
    assert len(FlakyFileSystem.opened) == COUNT
    assert [path.stem for path in kept(tmp_path)] == sorted(shard.sha256 for shard in shards)
    assert [value(opened(tmp_path), shard) for shard in shards] == list(range(COUNT))
    assert len(FlakyFileSystem.opened) == COUNT, "another job of the node finds the copies"


def test_copies_stay_within_their_limit_and_the_latest_stay(tmp_path: Path, shards: list[Shard]) -> None:
    size = (tmp_path / "store" / shards[0].path).stat().st_size
    reader = opened(tmp_path, limit=3 * size)
    for number, shard in enumerate(shards):
        assert value(reader, shard) == number
        age(tmp_path, shards[: number + 1])
        assert sum(path.stat().st_size for path in kept(tmp_path)) <= 3 * size
        latest = {one.sha256 for one in shards[max(0, number - 2) : number + 1]}
        assert {path.stem for path in kept(tmp_path)} == latest
        assert {path.stem for path in reader.files.paths} <= latest, "no mapping keeps what is gone on the disk"
    assert [value(reader, shard) for shard in shards] == list(range(COUNT)), "what went is fetched again"
    assert len(FlakyFileSystem.opened) > COUNT


def test_a_copy_that_is_opened_again_stays(tmp_path: Path, shards: list[Shard]) -> None:
    size = (tmp_path / "store" / shards[0].path).stat().st_size
    for shard in shards[:3]:
        value(opened(tmp_path, 3 * size), shard)
    age(tmp_path, shards[:3])
    value(opened(tmp_path, 3 * size), shards[0])
    value(opened(tmp_path, 3 * size), shards[3])
    assert {path.stem for path in kept(tmp_path)} == {shards[number].sha256 for number in (0, 2, 3)}


def test_a_copy_that_is_in_use_stays(tmp_path: Path, shards: list[Shard], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "_TOUCHED_EVERY", 0.0)
    size = (tmp_path / "store" / shards[0].path).stat().st_size
    reader = opened(tmp_path, 3 * size)
    for shard in shards[:3]:
        value(reader, shard)
    age(tmp_path, shards[:3])
    value(reader, shards[0])  # it is mapped, and is not opened again
    value(reader, shards[3])
    assert {path.stem for path in kept(tmp_path)} == {shards[number].sha256 for number in (0, 2, 3)}


def test_a_copy_is_hashed_once_by_a_process_and_again_when_it_is_another_file(
    tmp_path: Path, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "MOST_OPEN", 1)
    hashed: list[Path] = []
    monkeypatch.setattr(copies, "file_sha256", lambda path: hashed.append(path) or file_sha256(path))
    reader = opened(tmp_path)
    for _ in range(3):
        assert [value(reader, shard) for shard in shards[:2]] == [0, 1]
    assert len(hashed) == 2
    copy = tmp_path / "copies" / f"{shards[0].sha256}.arrow"
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.unlink()
    copy.write_bytes(bytes(content))
    assert value(reader, shards[0]) == 0
    assert len(FlakyFileSystem.opened) == 3, "a changed copy is fetched again"


def test_a_disk_that_spoils_every_copy_is_told_and_the_shard_is_read_all_the_same(
    tmp_path: Path, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(logging.getLogger(open_files.__name__), "warning", lambda *words: told.append(str(words)))
    monkeypatch.setattr(copies, "file_sha256", lambda _: "0" * 64)
    assert value(opened(tmp_path), shards[2]) == 2
    assert "3 copies were gone or changed as soon as they were written" in " ".join(told)


def test_an_unknown_kind_of_store_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(copies._log, "log", lambda *words: told.append(words))
    reader = OpenShards(Place("zzz://bucket/x"), CopySettings(tmp_path / "copies", 1 << 30))
    with pytest.raises(InvalidData, match="cannot open zzz://bucket/x"):
        reader.open(Shard("x.arrow", 1, "0" * 64))
    assert told == []


def test_a_store_that_never_answers_is_not_asked_for_ever(
    tmp_path: Path, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "_LONGEST_TRY", 0.2)
    FlakyFileSystem.delay, FlakyFileSystem.refused = 0.15, True
    with pytest.raises(InvalidData, match="2 attempts"):
        value(opened(tmp_path), shards[0])


def test_a_shard_of_another_number_of_rows_than_the_manifest_says_is_named(tmp_path: Path, shards: list[Shard]) -> None:
    with pytest.raises(InvalidData, match="has 1000 rows, wanted 999"):
        opened(tmp_path).open(replace(shards[0], rows=999))
    with pytest.raises(InvalidData, match="is another shard, made from 'key'"):
        opened(tmp_path).open(replace(shards[0], key="other"))


def test_mappings_of_copies_that_another_worker_removed_end(tmp_path: Path, shards: list[Shard]) -> None:
    reader, other = opened(tmp_path), opened(tmp_path)
    for shard in shards[:3]:
        value(other, shard)
        value(reader, shard)
    for path in kept(tmp_path):
        path.unlink()
    value(reader, shards[3])
    assert {path.stem for path in reader.files.paths} == {shards[3].sha256}


def test_two_jobs_with_too_little_room_for_both_read_the_right_rows(tmp_path: Path, shards: list[Shard]) -> None:
    size = (tmp_path / "store" / shards[0].path).stat().st_size
    jobs = [opened(tmp_path, limit=2 * size) for _ in range(2)]
    errors: list[BaseException] = []

    def work(job: OpenShards) -> None:
        try:
            for turn in range(10):
                for number, shard in enumerate(shards):
                    assert value(job, shard) == number, turn
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("trouble", [{"failing": 3}, {"failing": 2, "delay": 0.02}, {"delay": 0.2}])
def test_a_slow_and_failing_store_is_asked_again(
    tmp_path: Path, shards: list[Shard], trouble: dict[str, float]
) -> None:
    for name, wanted in trouble.items():
        setattr(FlakyFileSystem, name, wanted)
    assert [value(opened(tmp_path), shard) for shard in shards] == list(range(COUNT))
    assert (len(FlakyFileSystem.opened) > COUNT) == ("failing" in trouble)


def test_a_store_that_lets_nobody_in_ends_with_the_remedy(tmp_path: Path, shards: list[Shard]) -> None:
    FlakyFileSystem.refused = True
    with pytest.raises(InvalidData, match=r"403 expired token.*6 attempts.*credentials are valid.*to go on") as told:
        value(opened(tmp_path), shards[0])
    assert "\n" not in str(told.value)
    assert len(FlakyFileSystem.opened) == 6


@pytest.mark.parametrize("damage", ["lost", "cut", "changed"])
def test_a_shard_that_is_not_what_it_was_is_named(tmp_path: Path, shards: list[Shard], damage: str) -> None:
    path = tmp_path / "store" / shards[2].path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if damage != "lost":
        path.write_bytes(content if damage == "changed" else content[:-9])
    reader = opened(tmp_path)
    assert value(reader, shards[1]) == 1
    told = "is missing" if damage == "lost" else "is cut or changed"
    with pytest.raises(InvalidData, match=f"{shards[2].path} {told}: run `raverse cache prune`"):
        value(reader, shards[2])
    assert shards[2].sha256 not in {path.stem for path in kept(tmp_path)}, "no copy is made of it"


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_copy_is_fetched_again(tmp_path: Path, shards: list[Shard], damage: str) -> None:
    value(opened(tmp_path), shards[0])
    (copy,) = kept(tmp_path)
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content if damage == "changed" else content[:-9])
    assert value(opened(tmp_path), shards[0]) == 0
    assert len(FlakyFileSystem.opened) == 2


def test_what_a_killed_worker_left_half_written_goes_after_an_hour(tmp_path: Path, shards: list[Shard]) -> None:
    (tmp_path / "copies").mkdir()
    old, new = (tmp_path / "copies" / f".{name}.arrow.0123.partial" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert value(opened(tmp_path), shards[0]) == 0
    assert (old.exists(), new.exists()) == (False, True)


def test_a_folder_that_is_removed_is_made_again(tmp_path: Path, shards: list[Shard]) -> None:
    reader = opened(tmp_path)
    assert value(reader, shards[0]) == 0
    shutil.rmtree(tmp_path / "copies")
    assert [value(reader, shard) for shard in shards] == list(range(COUNT))


def test_without_a_folder_shards_are_kept_in_memory(tmp_path: Path, shards: list[Shard]) -> None:
    (tmp_path / "copies").write_text("a file where a folder should be")
    reader = opened(tmp_path)
    assert [value(reader, shard) for shard in shards] == list(range(COUNT))
    assert [value(reader, shard) for shard in shards] == list(range(COUNT))
    assert len(FlakyFileSystem.opened) == COUNT
    assert not reader.files.paths, "what is kept in memory is counted once"


def test_shards_in_memory_stay_within_their_limit(
    tmp_path: Path, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (tmp_path / "store" / shards[0].path).stat().st_size
    monkeypatch.setattr(open_files, "KEPT_IN_MEMORY", 2 * size)
    (tmp_path / "copies").write_text("a file where a folder should be")
    reader = opened(tmp_path)
    for _ in range(2):
        assert [value(reader, shard) for shard in shards] == list(range(COUNT))
        assert reader.files._kept.currsize <= 2 * size
    assert len(FlakyFileSystem.opened) == 2 * COUNT


def test_a_full_disk_makes_room_of_older_copies(
    tmp_path: Path, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk with room for three copies, whatever the limit says."""
    size = (tmp_path / "store" / shards[0].path).stat().st_size
    download = OpenShards._download

    def until_full(self: OpenShards, shard: Shard, sink: Callable[[], BinaryIO]) -> None:
        if sum(path.stat().st_size for path in kept(tmp_path)) + size > 3 * size:
            full()
        download(self, shard, sink)

    monkeypatch.setattr(OpenShards, "_download", until_full)
    reader = opened(tmp_path)
    assert [value(reader, shard) for shard in shards] == list(range(COUNT))
    assert not reader.files._kept, "nothing had to be kept in memory"
    assert len(kept(tmp_path)) <= 3


def test_a_full_disk_is_told_once(tmp_path: Path, shards: list[Shard], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(logging.getLogger(open_files.__name__), "warning", lambda *words: told.append(str(words)))
    monkeypatch.setattr(copies, "make_room", full)
    reader = opened(tmp_path)
    assert [value(reader, shard) for shard in shards] == list(range(COUNT))
    assert len(told) == 1
    assert "No space left" in told[0] and "train.cache_folder" in told[0]
    assert kept(tmp_path) == []


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")
