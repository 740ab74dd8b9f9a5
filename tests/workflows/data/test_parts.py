"""The parts of an import: written by tasks, in the folder or in a store, while the driver sees no picture."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.workflows.data import samples_own as samples
from tests.workflows.data.test_import_own import build, configure, contents, kill, write_many
from tests.workflows.storage.bucket import NAME, Bucket
from workflows.config.load import load_config
from workflows.data.dataset import SPLITS, Dataset
from workflows.data.png import decode_png
from workflows.data.stage import build_data
from workflows.errors import InvalidData, PreflightFailed, StorageUnwritable
from workflows.job.stages import STAGES
from workflows.runtime.progress import Progress

pytestmark = pytest.mark.usefixtures("ray_session")
METHODS = ("read", "iter_batches", "read_row_group", "read_row_groups")


class Seen(Exception):
    """This process has read the column of pictures, or decoded one."""


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process, the driver, cannot read pictures; tasks run in others."""

    def wrapped(method: Callable[..., Any], file: pq.ParquetFile, *args: Any, **kwargs: Any) -> Any:
        columns = kwargs.get("columns") or file.schema_arrow.names
        if "image" in columns:
            raise Seen
        return method(file, *args, **kwargs)

    for name in METHODS:
        method = getattr(pq.ParquetFile, name)
        monkeypatch.setattr(pq.ParquetFile, name, lambda *args, method=method, **more: wrapped(method, *args, **more))

    def refuse(*_: Any, **__: Any) -> None:
        raise Seen

    monkeypatch.setattr(pq, "read_table", refuse)
    monkeypatch.setattr(Image, "open", refuse)


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize("write", [samples.write_webdataset, samples.write_vectors])
def test_the_driver_sees_no_picture(write: Callable[[Path, int], Path], tmp_path: Path) -> None:
    source = write(tmp_path / "source", 700)
    assert build(tmp_path / "data", source)["num_train"] == 560
    dataset = Dataset.open(tmp_path / "data")
    with pytest.raises(Seen):
        dataset.read("train")
    with pytest.raises(Seen):
        decode_png(samples.picture(0))
    assert dataset.table("train", 0, 3, ["captions"]).num_rows == 3


@pytest.mark.usefixtures("blind")
def test_the_driver_sees_none_either_when_a_killed_import_goes_on(tmp_path: Path) -> None:
    source = write_many(tmp_path / "source")
    assert kill(tmp_path / "data", source, "samples")
    assert build(tmp_path / "data", source)["num_rejected"] == 0


def test_parts_hold_the_samples_of_pieces_in_order_and_none_is_empty(tmp_path: Path) -> None:
    build(tmp_path / "data", write_many(tmp_path / "source"), "data.held_out=0.005")
    info = Dataset.open(tmp_path / "data").info
    assert (len(info.parts["train"]), info.num_train + info.num_held_out) == (25, 7203)
    assert 1 <= len(info.parts["held_out"]) < 25
    found = []
    for split in SPLITS:
        assert all(part.rows > 0 for part in info.parts[split])
        assert sum(part.rows for part in info.parts[split]) == info.num_samples(split)
        ids = np.concatenate([pq.read_table(tmp_path / "data" / p.path)["sample_id"] for p in info.parts[split]])
        assert (np.diff(ids) > 0).all()
        found.append(ids)
    assert sorted(np.concatenate(found).tolist()) == list(range(7203))


def test_progress_goes_on_to_the_last_sample(tmp_path: Path) -> None:
    source, log = samples.write_vectors(tmp_path / "source", 1300), io.StringIO()
    (tmp_path / "data").mkdir()
    build_data(configure(source), {}, tmp_path / "data", Progress(None, log))
    lines = [line.split(" ", 1)[1] for line in log.getvalue().splitlines()]
    pieces = lines[0].partition("/")[0]
    assert lines == [f"{pieces}/{pieces} pieces", f"{pieces}/{pieces} pieces measured", "1300/1300 samples"]


def test_the_scale_of_vectors_is_that_of_the_training_samples(tmp_path: Path) -> None:
    source = samples.write_vectors(tmp_path / "source", 3000)
    build(tmp_path / "data", source)
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.info.scale is not None
    assert len(dataset.info.parts["train"]) >= 3, "several pieces are measured"
    table = pq.read_table(source / "part.parquet", columns=list(dataset.info.scale.columns))
    raw = np.stack([column.to_numpy().astype(np.float32) for column in table.columns], axis=1).astype(np.float64)
    train = raw[dataset.read("train").sample_ids]
    np.testing.assert_allclose(dataset.info.scale.mean, train.mean(0), rtol=1e-12)
    np.testing.assert_allclose(dataset.info.scale.std[:3], train.std(0)[:3], rtol=1e-12)
    assert dataset.info.scale.std[3] == 1.0
    assert not np.allclose(dataset.info.scale.mean[:3], raw.mean(0)[:3], rtol=1e-6), "the held-out are left out"


def same(one: Dataset, other: Dataset) -> bool:
    return all(one.read(split).digest() == other.read(split).digest() for split in SPLITS)


@pytest.fixture(scope="module")
def stored(bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """Pictures of one's own, and their data in the bucket. Do not change them."""
    root = tmp_path_factory.mktemp("stored")
    source = samples.write_webdataset(root / "source", 700)
    build(root / "data", source, f"data.store={bucket.url('own')}")
    return source, Dataset.open(root / "data")


def test_parts_in_a_bucket_bear_the_hash_of_the_data_and_of_their_bytes(
    stored: tuple[Path, Dataset], bucket: Bucket, tmp_path: Path
) -> None:
    source, dataset = stored
    assert set(contents(dataset.folder)) == {"data.json", "rejected.parquet"}, "no part is left here"
    parts = [part for split in SPLITS for part in dataset.info.parts[split]]
    assert set(bucket.versions("own")) == {f"own/{dataset.info.data_hash}/{part.path}" for part in parts}
    assert all(part.path.endswith(f"-{part.sha256}.parquet") for part in parts)
    build(tmp_path / "local", source)
    local = Dataset.open(tmp_path / "local")
    assert local.info.data_hash == dataset.info.data_hash, "where parts lie is no part of what they are"
    assert [part.sha256 for split in SPLITS for part in local.info.parts[split]] == [part.sha256 for part in parts]
    assert same(local, dataset)


def test_another_storage_folder_takes_what_is_there(
    stored: tuple[Path, Dataset], bucket: Bucket, tmp_path: Path
) -> None:
    source, dataset = stored
    build(tmp_path / "again", source, f"data.store={bucket.url('own')}")
    assert Dataset.open(tmp_path / "again").info == dataset.info
    assert set(bucket.versions("own").values()) == {1}, "nothing is sent again"


@pytest.mark.parametrize("damage", ["lost", "cut", "flipped"])
def test_a_damaged_part_in_a_bucket_is_named(
    stored: tuple[Path, Dataset], bucket: Bucket, tmp_path: Path, damage: str
) -> None:
    source, _ = stored
    setting = f"data.store={bucket.url(damage)}"
    build(tmp_path / "data", source, setting)
    dataset = Dataset.open(tmp_path / "data")
    assert len(dataset.read("train")) == 560
    part = dataset.info.parts["train"][1]
    key = f"{damage}/{dataset.info.data_hash}/{part.path}"
    content = bytearray(bucket.read(key))
    bucket.remove(key)
    if damage != "lost":
        content[len(content) // 2] ^= 1
        bucket.write(key, bytes(content if damage == "flipped" else content[: len(content) // 2]))
    with pytest.raises(InvalidData, match=rf"{part.path}.*run `raverse data` again") as told:
        dataset.read("train")
    assert "\n" not in str(told.value)
    assert dataset.table("train", 0, 10).num_rows == 10, "the others are read"
    build(tmp_path / "again", source, setting)
    assert len(Dataset.open(tmp_path / "again").read("train")) == 560, "it is made again"


def test_a_killed_import_sends_only_what_is_missing(bucket: Bucket, tmp_path: Path) -> None:
    source, folder, setting = write_many(tmp_path / "source"), tmp_path / "killed", f"data.store={bucket.url('killed')}"
    kill(folder, source, "samples", setting)
    assert (sent := set(bucket.versions("killed")))
    build(folder, source, setting)
    uploads = bucket.versions("killed")
    assert set(uploads.values()) == {1}, "what was there is not sent again"
    assert sent < set(uploads)
    build(tmp_path / "whole", source)
    assert same(Dataset.open(folder), Dataset.open(tmp_path / "whole"))


def test_built_in_sets_go_to_a_store_too(bucket: Bucket, tmp_path: Path) -> None:
    for name, more in (("here", []), ("there", [f"data.store={bucket.url('digits')}"])):
        (tmp_path / name).mkdir()
        build_data(load_config("digits", more), {}, tmp_path / name, Progress.silent())
    here, there = (Dataset.open(tmp_path / name) for name in ("here", "there"))
    assert set(contents(there.folder)) == {"data.json"}
    assert set(bucket.versions("digits")) == {
        f"digits/{there.info.data_hash}/{part.path}" for parts in there.info.parts.values() for part in parts
    }
    assert same(here, there)
    assert here.info.data_hash == there.info.data_hash


def test_a_store_that_cannot_be_written_stops_the_job_before_it_begins(bucket: Bucket, tmp_path: Path) -> None:
    url = bucket.url("x").replace(NAME, "nowhere")
    (check,) = (check for stage in STAGES if stage.name == "data" for check in stage.checks)
    check(load_config("digits", [f"data.store={bucket.url('checked')}"]))
    check(load_config("digits"))
    with pytest.raises(PreflightFailed, match=r"NO_SUCH_BUCKET.*allow writing"):
        check(load_config("digits", [f"data.store={url}"]))
    source = samples.write_sidecar(tmp_path / "source", 30)
    with pytest.raises((StorageUnwritable, InvalidData), match=r"s3://nowhere/x/.*NO_SUCH_BUCKET") as told:
        build(tmp_path / "data", source, f"data.store={url}")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "data/data.json").exists()


def test_any_number_of_blocks_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, log = write_many(tmp_path / "source"), io.StringIO()
    build(tmp_path / "many", source)
    monkeypatch.setattr("workflows.data.own.importing._BLOCKS_PER_CPU", 1)
    (tmp_path / "few").mkdir()
    build_data(configure(source), {}, tmp_path / "few", Progress(None, log))
    assert contents(tmp_path / "few") == contents(tmp_path / "many")
    assert "25/25 pieces\n" in log.getvalue()
