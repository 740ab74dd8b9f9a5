"""The pass over Ray Data, with real towers at a tiny size."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

from tests.workflows.embed.shapes_job import ShapesJob
from tests.workflows.embed.texts import texts_at
from workflows.config.load import load_config
from workflows.config.schema import RunConfig
from workflows.embed.cache import EmbeddingCache
from workflows.embed.manifest import Manifest
from workflows.embed.stage import embed
from workflows.errors import InvalidClip, InvalidData, StorageUnwritable
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.storage.hashing import file_sha256
from workflows.storage.mapped import MappedShard

pytestmark = pytest.mark.usefixtures("ray_session")


def configure(**settings: object) -> RunConfig:
    return load_config("digits", ["data.held_out=0.8", *(f"embed.{name}={value}" for name, value in settings.items())])


def run(config: RunConfig, inputs: dict[str, Artifact], folder: Path, root: Path | None = None) -> dict[str, object]:
    """Runs the stage; other runs' captions are known under `root` only, by default this cache's own."""
    folder.mkdir(exist_ok=True)
    storage = config.storage.model_copy(update={"root": str(root or folder.with_name(f"{folder.name}-root"))})
    return embed(config.model_copy(update={"storage": storage}), inputs, folder, Progress.silent())


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_sha256(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(inputs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 3 caption shards and 60 image shards, written by one worker. Do not write to it."""
    folder = tmp_path_factory.mktemp("finished")
    metrics = run(configure(rows_per_shard=30), inputs, folder)
    assert (metrics["num_captions"], metrics["encoded_captions"]) == (80, 80)
    return folder


def copy(folder: Path, to: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file():
            (to / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (to / path.relative_to(folder)).write_bytes(path.read_bytes())
    return to


def test_the_manifest_lists_every_file(finished: Path) -> None:
    cache = EmbeddingCache.open(finished)
    cache.verify()
    listed = {shard.path for shard in cache.manifest.files} | {"manifest.json"}
    assert listed == set(contents(finished))
    assert cache.manifest.rows == {"train": 359, "held_out": 1438, "captions": 80}
    assert sum(shard.rows for shard in cache.manifest.files) == 359 + 1438 + 80
    assert len(cache.images("train", range(359))) == 359


def test_two_workers_write_the_same_bytes(inputs: dict[str, Artifact], finished: Path, tmp_path: Path) -> None:
    run(configure(rows_per_shard=30, workers=2), inputs, tmp_path)
    assert contents(tmp_path) == contents(finished)
    assert len(list(tmp_path.glob("captions/*"))) == 3, "each worker has something to do"


def test_a_second_run_encodes_nothing(inputs: dict[str, Artifact], finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.arrow")}
    metrics = run(configure(rows_per_shard=30, workers=2, batch_size=9), inputs, finished)
    assert (metrics["num_captions"], metrics["encoded_captions"]) == (80, 0)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.arrow")} == before


def test_lost_and_damaged_shards_alone_are_made_again(
    inputs: dict[str, Artifact], finished: Path, tmp_path: Path
) -> None:
    folder = copy(finished, tmp_path)
    (kept,) = folder.glob("held_out/images/shard-000000-*.arrow")
    stamp = kept.stat().st_mtime_ns
    next(folder.glob("train/images/shard-000000-*.arrow")).unlink()
    (damaged,) = folder.glob("captions/shard-000000-*.arrow")
    data = bytearray(damaged.read_bytes())
    data[len(data) // 3] ^= 255
    damaged.write_bytes(data)
    (folder / "held_out/images/shard-000001.arrow.0123.partial").write_bytes(b"half")
    assert run(configure(rows_per_shard=30), inputs, folder)["encoded_captions"] == 30
    assert contents(folder) == contents(finished)
    damaged.write_bytes(data)
    assert run(configure(rows_per_shard=30), inputs, folder)["encoded_captions"] == 0, "the store has them"
    assert contents(folder) == contents(finished)
    assert kept.stat().st_mtime_ns == stamp


def known(finished: Path, to: Path) -> Path:
    """A storage folder that knows the captions of the finished run."""
    return copy(finished.with_name(f"{finished.name}-root"), to)


def test_captions_of_other_runs_are_not_encoded_again(
    inputs: dict[str, Artifact], finished: Path, tmp_path: Path
) -> None:
    """One caption of 81 is new, so one is encoded; the cache is that of a run which encoded them all."""
    root, more = known(finished, tmp_path / "root"), tmp_path / "data"
    shutil.copytree(inputs["data"].folder, more)
    table = pq.read_table(more / "train/part-000000.parquet")
    captions = table["captions"].to_pylist()
    captions[0] = ["an entirely new caption", *captions[0]]
    place = table.schema.get_field_index("captions")
    pq.write_table(
        table.set_column(place, table.schema.field(place), pa.array(captions)), more / "train/part-000000.parquet"
    )
    changed = inputs | {"data": Artifact("data", "5" * 64, more)}
    figures = run(configure(rows_per_shard=60), changed, tmp_path / "second", root)
    assert (figures["num_captions"], figures["encoded_captions"]) == (81, 1)
    alone = run(configure(share_captions=False), changed, tmp_path / "third", root)
    assert alone["encoded_captions"] == 81
    second, third = (EmbeddingCache.open(tmp_path / name) for name in ("second", "third"))
    assert texts_at(second.reader, torch.arange(81)) == texts_at(third.reader, torch.arange(81))
    (tokens, mask, _), (others, other_mask, _) = (cache.captions.take(torch.arange(81)) for cache in (second, third))
    torch.testing.assert_close(tokens, others, rtol=1e-5, atol=1e-6)
    assert torch.equal(mask, other_mask)
    EmbeddingCache.open(tmp_path / "second").verify()
    half = run(configure(dtype="float16"), changed, tmp_path / "half", root)
    assert half["encoded_captions"] == 81, "another storage type is another encoder"


def test_a_damaged_part_of_the_store_is_found_and_made_again(
    inputs: dict[str, Artifact], finished: Path, tmp_path: Path
) -> None:
    root = known(finished, tmp_path / "root")
    part = min((root / "cache/captions").glob("*/*.arrow"))
    data = bytearray(part.read_bytes())
    data[len(data) // 3] ^= 255
    part.write_bytes(data)
    rows = MappedShard.open(part).rows
    assert run(configure(rows_per_shard=30), inputs, tmp_path / "second", root)["encoded_captions"] == rows
    assert contents(tmp_path / "second") == contents(finished)
    assert file_sha256(part) == part.stem


def test_other_towers_make_another_cache_in_the_same_folder(
    inputs: dict[str, Artifact], finished: Path, tmp_path: Path
) -> None:
    from tests.workflows.embed.conftest import write_tiny

    folder = copy(finished, tmp_path / "cache")
    other = inputs | {"clip": Artifact("clip", "2" * 64, write_tiny(tmp_path / "towers", image_size=16))}
    assert run(configure(rows_per_shard=30), other, folder)["encoded_captions"] == 80
    assert Manifest.load(folder).key != Manifest.load(finished).key
    EmbeddingCache.open(folder).verify()


def test_errors_arrive_as_themselves(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    shutil.copytree(inputs["clip"].folder, tmp_path / "towers")
    (tmp_path / "towers/open_clip_model.safetensors").write_bytes(b"")
    broken = inputs | {"clip": Artifact("clip", "2" * 64, tmp_path / "towers")}
    with pytest.raises(InvalidClip, match="towers"):
        run(configure(), broken, tmp_path / "a")
    shutil.copytree(inputs["data"].folder, tmp_path / "data")
    values = (tmp_path / "data/data.json").read_text().replace('"shape": [\n    1,', '"shape": [\n    3,')
    (tmp_path / "data/data.json").write_text(values)
    with pytest.raises(InvalidData, match=r"wanted \(3, 8, 8\)"):
        run(configure(), inputs | {"data": Artifact("data", "3" * 64, tmp_path / "data")}, tmp_path / "c")


def test_a_failed_pass_says_why_and_gives_its_processors_back(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    (tmp_path / "captions").write_text("a file where a folder should be")
    before = ray.cluster_resources()["CPU"]
    with pytest.raises(
        StorageUnwritable, match=r"captions/shard-000000-.*\.arrow.*set storage\.root elsewhere$"
    ) as full:
        run(configure(), inputs, tmp_path)
    assert "\n" not in str(full.value), "Ray adds lines about its retries"
    deadline = time.monotonic() + 20
    while (free := ray.available_resources().get("CPU", 0)) < before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert free == before, "an actor of the failed pass still holds a processor"


def test_a_run_killed_half_way_goes_on_to_the_same_bytes(shapes_job: ShapesJob, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    with shapes_job.started(folder) as process:
        deadline = time.monotonic() + 120
        while len(list(folder.glob("captions/*.arrow"))) < 3 and time.monotonic() < deadline:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert len(list(folder.glob("captions/*.arrow"))) >= 3
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.arrow")}
    assert not (folder / "manifest.json").exists()
    metrics = run(shapes_job.config(), shapes_job.inputs, folder)
    assert metrics["encoded_captions"] < metrics["num_captions"]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "what was there is kept"
    assert contents(folder) == contents(whole)
