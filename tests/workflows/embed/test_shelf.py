"""A cache whose shards lie in a bucket: as the stage makes it, as training reads it, and when shards are lost."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.workflows.embed.shapes_job import ShapesJob
from tests.workflows.embed.test_stage import configure, contents, run
from tests.workflows.embed.texts import texts_at
from tests.workflows.storage.bucket import NAME, Bucket
from workflows.cli import app as cli
from workflows.config.schema import RunConfig
from workflows.data.dataset import SPLITS
from workflows.embed.cache import EmbeddingCache
from workflows.embed.inventory import damaged_files, inventory, prunable, remove
from workflows.errors import InvalidData, PreflightFailed, StorageUnwritable
from workflows.job.stages import STAGES
from workflows.runtime.artifact import Artifact
from workflows.storage.copies import CopySettings
from workflows.storage.place import Place
from workflows.storage.shards import Shard

pytestmark = pytest.mark.usefixtures("ray_session")


def stored(url: str, **settings: object) -> RunConfig:
    return configure(rows_per_shard=100, store=url, **settings)


@pytest.fixture(scope="module")
def local(inputs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> EmbeddingCache:
    folder = tmp_path_factory.mktemp("local")
    run(configure(rows_per_shard=100), inputs, folder)
    return EmbeddingCache.open(folder)


@pytest.fixture(scope="module")
def remote(inputs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory, bucket: Bucket) -> EmbeddingCache:
    """Do not change it."""
    folder = tmp_path_factory.mktemp("remote")
    metrics = run(stored(bucket.url("whole")), inputs, folder)
    assert (metrics["num_captions"], metrics["encoded_captions"]) == (80, 80)
    return EmbeddingCache.open(folder)


def check_same(one: EmbeddingCache, other: EmbeddingCache) -> None:
    for split in SPLITS:
        rows = range(one.num_samples(split))
        assert torch.equal(one.images(split, rows), other.images(split, rows))
        for name, value in vars(one.batch(split, rows)).items():
            assert torch.equal(value, getattr(other.batch(split, rows), name)), (split, name)
    every = torch.arange(len(one.captions))
    assert texts_at(one.reader, every) == texts_at(other.reader, every)
    for value, wanted in zip(one.captions.take(every), other.captions.take(every), strict=True):
        assert torch.equal(value, wanted)


def test_the_same_tensors_are_read_from_a_bucket(local: EmbeddingCache, remote: EmbeddingCache) -> None:
    assert set(contents(remote.folder)) == {"manifest.json"}, "no shard is left here"
    assert remote.key == local.key, "where shards lie is no part of what they are"
    assert {shard.sha256 for shard in remote.manifest.files} == {shard.sha256 for shard in local.manifest.files}
    remote.verify()
    check_same(local, remote)


def test_where_shards_go_is_no_part_of_the_stage_either() -> None:
    (stage,) = (stage for stage in STAGES if stage.name == "embed")
    here = configure()
    assert stage.sections(configure(store="s3://bucket/path")) == stage.sections(here)
    assert stage.sections(configure(dtype="float16")) != stage.sections(here)


def test_a_shard_in_a_bucket_bears_the_hash_of_its_bytes(remote: EmbeddingCache, bucket: Bucket) -> None:
    keys = bucket.versions("whole")
    assert set(keys) == {f"whole/{remote.key}/{shard.path}" for shard in remote.manifest.files}
    for shard in remote.manifest.files:
        assert shard.path.endswith(f"-{shard.sha256}.arrow")


def test_another_storage_folder_takes_what_is_there(
    inputs: dict[str, Artifact], remote: EmbeddingCache, bucket: Bucket, tmp_path: Path
) -> None:
    metrics = run(stored(bucket.url("whole")), inputs, tmp_path / "second")
    assert metrics["encoded_captions"] == 0
    assert set(bucket.versions("whole").values()) == {1}, "nothing is sent again"
    assert EmbeddingCache.open(tmp_path / "second").manifest == remote.manifest
    run(configure(rows_per_shard=40, store=bucket.url("whole")), inputs, tmp_path / "third")
    remote.verify()
    check_same(remote, EmbeddingCache.open(tmp_path / "third"))


def test_shards_that_lie_here_go_there(
    inputs: dict[str, Artifact], local: EmbeddingCache, bucket: Bucket, tmp_path: Path
) -> None:
    folder = tmp_path / "moved"
    for path in contents(local.folder):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes((local.folder / path).read_bytes())
    metrics = run(stored(bucket.url("moved")), inputs, folder)
    assert metrics["encoded_captions"] == 0
    assert set(contents(folder)) == {"manifest.json"}
    check_same(local, EmbeddingCache.open(folder))


def copied(remote: EmbeddingCache, bucket: Bucket, root: Path) -> tuple[EmbeddingCache, list[str]]:
    """A finished cache under a storage folder, with objects of its own, and their names."""
    name = root.name
    for shard in remote.manifest.files:
        bucket.write(f"{name}/{remote.key}/{shard.path}", bucket.read(f"whole/{remote.key}/{shard.path}"))
    folder = root / "artifacts/embed/0123"
    folder.mkdir(parents=True)
    replace(remote.manifest, store=(Place(bucket.url(name)) / remote.key).url).save(folder)
    Artifact("embed", "0123", folder).commit()
    return EmbeddingCache.open(folder), [f"{name}/{remote.key}/{shard.path}" for shard in remote.manifest.files]


def flipped(data: bytes) -> bytes:
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]


@pytest.mark.parametrize("damage", ["removed", "truncated", "flipped"])
def test_a_lost_shard_is_told_and_made_again(
    inputs: dict[str, Artifact], remote: EmbeddingCache, bucket: Bucket, tmp_path: Path, damage: str
) -> None:
    root = tmp_path / damage
    cache, keys = copied(remote, bucket, root)
    cache.verify()
    assert damaged_files(root) == []
    (key,) = (key for key in keys if "train/images/shard-000001" in key)
    whole = bucket.read(key)
    bucket.remove(key)
    if damage != "removed":
        bucket.write(key, flipped(whole) if damage == "flipped" else whole[: len(whole) // 2])
    copies = CopySettings(tmp_path / "copies")
    with pytest.raises(InvalidData, match=r"s3://.*train/images/shard-000001-.*raverse cache prune") as told:
        EmbeddingCache.open(cache.folder, copies).images("train", range(359))
    assert "\n" not in str(told.value)
    ((place, reason),) = damaged_files(root)
    assert ("train/images/shard-000001" in place, reason) == (True, "missing or changed")
    with pytest.raises(InvalidData, match=r"train/images/shard-000001.* missing or changed"):
        cache.verify()
    ((mark, _),) = prunable(root)
    remove(mark)
    before = bucket.versions(root.name)
    assert run(stored(bucket.url(root.name)), inputs, cache.folder)["encoded_captions"] == 0
    after = bucket.versions(root.name)
    assert {name for name in keys if after[name] != before[name]} == {key}, "the others are not sent again"
    assert bucket.read(key) == whole
    cache.verify()


def test_what_cannot_be_looked_at_is_no_damage(
    remote: EmbeddingCache, bucket: Bucket, refusing: str, tmp_path: Path
) -> None:
    root = tmp_path / "away"
    cache, _ = copied(remote, bucket, root)
    (item,) = inventory(root)
    assert item.size == sum(len(bucket.read(f"away/{remote.key}/{shard.path}")) for shard in cache.manifest.files)
    listed = CliRunner().invoke(cli.app, ["cache", "list", "--root", str(root)]).output
    assert f"artifacts/embed/0123: its shards are in {cache.reader.place}" in listed.splitlines()
    away = cache.manifest.store.replace(bucket.address, refusing)
    replace(cache.manifest, store=away).save(cache.folder)
    ((_, reason),) = damaged_files(root)
    assert "check that it is reachable" in reason
    with pytest.raises(InvalidData, match="check that it is reachable"):
        prunable(root)
    assert [item.size for item in inventory(root)] == [None]


def test_a_store_that_cannot_be_written_stops_the_job_before_it_begins(
    inputs: dict[str, Artifact], bucket: Bucket, tmp_path: Path
) -> None:
    config = stored(bucket.url("x").replace(NAME, "nowhere"))
    (check,) = (check for stage in STAGES if stage.name == "embed" for check in stage.checks)
    check(stored(bucket.url("checked")))
    check(configure())
    with pytest.raises(PreflightFailed, match=r"NO_SUCH_BUCKET.*allow writing"):
        check(config)
    with pytest.raises(StorageUnwritable, match=r"cannot write s3://nowhere/x/.*NO_SUCH_BUCKET") as told:
        run(config, inputs, tmp_path / "cache")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "cache/manifest.json").exists()


def test_a_killed_run_sends_only_what_is_missing(
    shapes_job: ShapesJob, whole: Path, bucket: Bucket, tmp_path: Path
) -> None:
    store, folder = f"embed.store={bucket.url('killed')}", tmp_path / "killed"
    with shapes_job.started(folder, store) as process:
        deadline = time.monotonic() + 120
        while len(sent := [key for key in bucket.versions("killed") if "/captions/" in key]) < 3:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert not (folder / "manifest.json").exists()
    metrics = run(shapes_job.config(store), shapes_job.inputs, folder)
    assert metrics["encoded_captions"] < metrics["num_captions"]
    uploads = bucket.versions("killed")
    assert set(sent) <= set(uploads)
    assert set(uploads.values()) == {1}, "what was there is not sent again"
    assert set(contents(folder)) == {"manifest.json"}
    check_same(EmbeddingCache.open(whole), EmbeddingCache.open(folder))


def test_half_a_shard_under_its_name_counts_as_none(
    inputs: dict[str, Artifact], remote: EmbeddingCache, bucket: Bucket, tmp_path: Path
) -> None:
    """As a storage without atomic writes would leave it."""
    cache, _ = copied(remote, bucket, tmp_path / "half")
    shard: Shard = next(shard for shard in cache.manifest.files if shard.path.startswith("captions/"))
    key = f"half/{cache.key}/{shard.path}"
    whole = bucket.read(key)
    bucket.write(key, whole[: len(whole) // 2])
    assert run(stored(bucket.url("half")), inputs, tmp_path / "second")["encoded_captions"] == shard.rows
    assert bucket.read(key) == whole
