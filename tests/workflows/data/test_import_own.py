"""A user's own data become a data artifact: the same bytes whoever writes them, with nothing lost or silent."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from tests.workflows.data import samples_own as samples
from tests.workflows.data.test_picture import bomb, encoded
from workflows.config.load import load_config
from workflows.config.schema import RunConfig
from workflows.data.dataset import ROWS_PER_GROUP, Dataset
from workflows.data.stage import build_data
from workflows.errors import InvalidConfig, InvalidData, StorageUnwritable
from workflows.runtime.progress import Progress
from workflows.storage.hashing import file_sha256

pytestmark = pytest.mark.usefixtures("ray_session")


def configure(path: Path | str, *more: str) -> RunConfig:
    return load_config("digits", ["data.source=auto", f"data.path={path}", "data.image_size=8", *more])


def build(folder: Path, path: Path | str, *more: str) -> dict[str, object]:
    folder.mkdir(exist_ok=True, parents=True)
    return build_data(configure(path, *more), {}, folder, Progress.silent())


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_sha256(path) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", samples.WRITERS)
def test_each_format_becomes_a_data_artifact(name: str, tmp_path: Path) -> None:
    source = samples.WRITERS[name](tmp_path / "source", 30)
    figures = build(tmp_path / "data", source)
    assert (figures["num_train"], figures["num_held_out"], figures["num_rejected"]) == (24, 6, 0)
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.info.shape == (3, 8, 8)
    assert dataset.info.source == name
    assert set(dataset.info.class_names) == set(samples.COLORS)
    train, held_out = dataset.read("train"), dataset.read("held_out")
    ids = np.concatenate([train.sample_ids, held_out.sample_ids])
    assert sorted(ids.tolist()) == list(range(30))
    for split in (train, held_out):
        for number, texts, label in zip(split.sample_ids, split.captions, split.labels, strict=True):
            assert texts[0] == samples.caption(int(number))
            assert dataset.info.class_names[label] == samples.label(int(number))
    assert dataset.combinations(held_out).tolist() == held_out.labels.tolist()
    assert len(set(dataset.info.candidate_captions)) == 3
    parts = [part.path for split in dataset.info.parts.values() for part in split]
    assert set(contents(tmp_path / "data")) == {*parts, "rejected.parquet", "data.json"}
    assert {"train/part-000000.parquet", "held_out/part-000000.parquet"} <= set(parts)


def test_without_labels_there_are_no_classes(tmp_path: Path) -> None:
    build(tmp_path / "data", samples.write_folder(tmp_path / "source", 30, labels=False))
    dataset = Dataset.open(tmp_path / "data")
    assert (dataset.info.class_names, dataset.info.attributes) == ((), {})
    assert sorted(dataset.info.candidate_captions) == sorted(samples.caption(number) for number in range(6))
    split = dataset.read("train")
    assert set(split.labels.tolist()) == {-1}
    chosen = [dataset.info.candidate_captions[i] for i in dataset.combinations(split)]
    assert chosen == [texts[0] for texts in split.captions]


def test_broken_records_are_refused_with_their_reasons(tmp_path: Path) -> None:
    source = samples.write_sidecar(tmp_path / "source", 40)
    jpeg = samples.picture(1, (64, 64), "JPEG")
    (source / "0001.png").write_bytes(jpeg[: len(jpeg) // 2])
    (source / "0002.png").write_bytes(bomb())
    (source / "0003.png").write_bytes(b"")
    (source / "0004.txt").write_text("  \n\n")
    (source / "0005.txt").write_text("a\0b")
    (source / "0006.txt").write_text("word " * 200_000)
    (source / "0007.txt").unlink()
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "lime")]
    deep = Image.fromarray(np.full((9, 9), 0x8040, np.uint16))
    good = {
        "0008.jpg": encoded(Image.new("CMYK", (9, 9)), "JPEG"), "0009.png": encoded(frames[0].convert("P")),
        "0010.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "0011.png": encoded(deep),
    }  # fmt: skip
    for name, data in good.items():
        (source / f"{name[:4]}.png").unlink()
        (source / name).write_bytes(data)
    (source / "0012.txt").write_text("猫の写真 صورة قطة", encoding="utf-8")
    figures = build(tmp_path / "data", source, "data.max_bad_fraction=0.2")
    assert figures["num_rejected"] == 5
    assert int(str(figures["num_train"])) + int(str(figures["num_held_out"])) == 35
    rows = pq.read_table(tmp_path / "data/rejected.parquet").to_pylist()
    reasons = {row["name"]: row["reason"] for row in rows if not row["kept"]}
    assert set(reasons) == {"0001.png", "0002.png", "0003.png", "0004.png", "0007.png"}
    assert "cannot be decoded" in reasons["0001.png"]
    assert "20000" in reasons["0002.png"] or "bomb" in reasons["0002.png"]
    assert reasons["0003.png"] == "the image is empty: 0 bytes"
    assert reasons["0004.png"] == "every caption is empty"
    assert reasons["0007.png"] == "no .txt of this name beside it"
    kept = [(row["name"], row["reason"]) for row in rows if row["kept"]]
    assert ("0005.png", "NUL removed from a caption") in kept
    assert ("0006.png", "a caption of 999999 characters cut to 2000") in kept
    assert ("0010.gif", "animated: the first of 2 frames is used") in kept
    dataset = Dataset.open(tmp_path / "data")
    captions = {text for name in ("train", "held_out") for texts in dataset.read(name).captions for text in texts}
    assert "猫の写真 صورة قطة" in captions


def test_labels_that_no_file_can_hold_are_replaced_and_told(tmp_path: Path) -> None:
    source = samples.write_folder(tmp_path / "source", 20)
    lines = (source / "metadata.jsonl").read_text().replace('"red"', '"r\\ud800"')
    (source / "metadata.jsonl").write_text(lines)
    build(tmp_path / "data", source)
    assert "r?" in Dataset.open(tmp_path / "data").info.class_names
    reasons = pq.read_table(tmp_path / "data/rejected.parquet")["reason"].to_pylist()
    assert set(reasons) == {"what is no Unicode text replaced in the label"}


def test_a_piece_of_many_records_is_written_bit_by_bit(tmp_path: Path) -> None:
    source = samples.write_webdataset(tmp_path / "source", 2400)
    build(tmp_path / "data", source)
    dataset = Dataset.open(tmp_path / "data")
    parts = [pq.read_metadata(tmp_path / "data" / part.path) for part in dataset.info.parts["train"]]
    assert len(parts) == 2
    for part in parts:
        assert part.num_row_groups >= 3
        assert max(part.row_group(group).num_rows for group in range(part.num_row_groups)) <= ROWS_PER_GROUP
    for split in map(dataset.read, ("train", "held_out")):
        for number, texts in zip(split.sample_ids, split.captions, strict=True):
            assert texts[0] == samples.caption(int(number))


def test_too_many_broken_records_stop_the_job(tmp_path: Path) -> None:
    source = samples.write_sidecar(tmp_path / "source", 20)
    for number in range(2):
        (source / f"{number:04d}.png").write_bytes(b"")
    with pytest.raises(InvalidData, match=r"2 of 20 records .*max_bad_fraction 0\.05 .*rejected\.parquet; 0000\.png"):
        build(tmp_path / "data", source)
    assert pq.read_table(tmp_path / "data/rejected.parquet").num_rows == 2
    assert build(tmp_path / "data", source, "data.max_bad_fraction=0.1")["num_rejected"] == 2


def test_a_wanted_label_that_is_missing_is_a_reason(tmp_path: Path) -> None:
    source = samples.write_folder(tmp_path / "source", 20, labels=False)
    with pytest.raises(InvalidData, match=r"no label, though data\.label_column is set"):
        build(tmp_path / "data", source, "data.label_column=label")


def test_damaged_files_and_missing_folders_arrive_as_themselves(tmp_path: Path) -> None:
    source = samples.write_webdataset(tmp_path / "source", 10)
    (source / "00001.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(InvalidData, match=r"00001\.tar: it is no tar file"):
        build(tmp_path / "data", source)
    with pytest.raises(InvalidData, match="nothing at"):
        build(tmp_path / "data", tmp_path / "nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/parts").write_text("a file where a folder should be")
    with pytest.raises(StorageUnwritable, match="part-000000"):
        build(tmp_path / "full", samples.write_sidecar(tmp_path / "more", 10))
    with pytest.raises(InvalidConfig, match=r"data\.source folder needs data\.path"):
        load_config("digits", ["data.source=folder"])
    with pytest.raises(InvalidConfig, match=r"not with the built-in digits"):
        load_config("digits", ["data.path=x"])


def test_equal_pictures_land_in_one_split_and_new_ones_move_few(tmp_path: Path) -> None:
    source = samples.write_sidecar(tmp_path / "source", 60)
    for number in range(60, 90):
        (source / f"{number:04d}.png").write_bytes(samples.picture(number - 60))
        (source / f"{number:04d}.txt").write_text("a second caption of the same picture")
    build(tmp_path / "data", source)
    dataset = Dataset.open(tmp_path / "data")
    train, held_out = ({image.tobytes() for image in dataset.read(name).images} for name in ("train", "held_out"))
    assert not train & held_out
    (source / "9999.png").write_bytes(samples.picture(100))
    (source / "9999.txt").write_text("one more")
    build(tmp_path / "more", source)
    after = {image.tobytes() for image in Dataset.open(tmp_path / "more").read("held_out").images}
    assert len(held_out - after) <= 1


def test_all_files_and_captions_of_one_picture_land_in_one_split(tmp_path: Path) -> None:
    """Equal pixels in other formats, under other names, in other pieces, and with other captions."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(40):
        picture = Image.open(io.BytesIO(samples.picture(number))).convert("RGB")
        for ending, options in (("png", {}), ("webp", {"lossless": True}), ("bmp", {})):
            name = f"{ending}-{number:04d}"
            picture.save(source / f"{name}.{ending}", **options)
            (source / f"{name}.txt").write_text(f"{number} as {ending}")
    build(tmp_path / "data", source, "data.held_out=0.3")
    dataset = Dataset.open(tmp_path / "data")
    found = {
        split: Counter(texts[0].split()[0] for texts in dataset.read(split).captions) for split in ("train", "held_out")
    }
    assert not found["train"].keys() & found["held_out"].keys()
    assert set((found["train"] + found["held_out"]).values()) == {3}
    assert len(found["held_out"]) == 12, "a share of pictures, not of files"


def test_the_same_input_gives_the_same_bytes_whatever_was_there(tmp_path: Path) -> None:
    source = samples.write_sidecar(tmp_path / "source", 1100)
    build(tmp_path / "one", source)
    build(tmp_path / "two", source)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    (source / "0700.txt").write_text("another caption")
    build(tmp_path / "two", source)
    assert contents(tmp_path / "one") != contents(tmp_path / "two")
    for number in range(300, 1100):
        (source / f"{number:04d}.png").unlink()
        (source / f"{number:04d}.txt").unlink()
    build(tmp_path / "two", source)
    build(tmp_path / "few", source)
    assert contents(tmp_path / "few") == contents(tmp_path / "two"), "no part of what is gone is left"


@ray.remote(num_cpus=1)
class Holder:
    """Takes a processor away."""

    def hold(self) -> None: ...


@pytest.mark.parametrize("write", [samples.write_parquet, samples.write_webdataset, samples.write_vectors])
def test_one_worker_and_two_write_the_same_bytes(write: Callable[[Path, int], Path], tmp_path: Path) -> None:
    source = write(tmp_path / "source", 40)
    for number in range(2):
        write(source / f"{number}", 600)  # more than are written at once
    assert ray.cluster_resources()["CPU"] == 2
    build(tmp_path / "two", source)
    holder = Holder.remote()
    ray.get(holder.hold.remote())
    assert ray.available_resources()["CPU"] == 1
    build(tmp_path / "one", source)
    ray.kill(holder)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


KILLED = """
import os, signal, sys
from pathlib import Path
import ray
from tests.workflows.data.test_import_own import build
from workflows.runtime.progress import Progress
address, folder, source, unit, *more = sys.argv[1:]
start, loop = Progress.start, []
Progress.start = lambda self, total, name: (loop.append(name), start(self, total, name))
Progress.advance = lambda self, done: os.kill(os.getpid(), signal.SIGKILL) if loop[-1] == unit and done >= 3 else None
ray.init(address=address, log_to_driver=False)
build(Path(folder), source, *more)
"""


def write_many(folder: Path) -> Path:
    """13 files, of which 12 give two pieces each; no picture comes twice."""
    samples.write_parquet(folder, 3)
    for number in range(12):
        samples.write_parquet(folder / f"{number:02d}", 600, first=3 + 600 * number)
    return folder


def kill(folder: Path, source: Path, unit: str, *more: str) -> dict[Path, int]:
    """Kills the driver of an import in the loop over these units; returns when each file was finished."""
    address = ray.get_runtime_context().gcs_address
    arguments = [sys.executable, "-c", KILLED, address, str(folder), str(source), unit, *more]
    environment = os.environ | {"PYTHONPATH": "."}
    killed = subprocess.run(arguments, cwd=Path(__file__).parents[3], env=environment, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "data.json").exists()
    return {path: path.stat().st_mtime_ns for path in folder.rglob("part-??????.parquet")}


def unchanged(stamps: dict[Path, int], place: str) -> set[bool]:
    """Whether the files of a folder are those that were there."""
    found = {path: stamp for path, stamp in stamps.items() if path.parent.name == place}
    return {path.is_file() and path.stat().st_mtime_ns == stamp for path, stamp in found.items()}


def test_an_import_that_was_killed_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder = write_many(tmp_path / "source"), tmp_path / "killed"
    build(tmp_path / "whole", source)
    stamps = kill(folder, source, "pieces")
    assert 3 <= len(stamps) < 25
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda _: None)
        build(folder, source)
    assert unchanged(stamps, "parts") == {True}
    shutil.rmtree(folder / "parts")
    assert contents(folder) == contents(tmp_path / "whole")
    counts = Counter(Dataset.open(folder).read("train").captions)
    assert counts[(samples.caption(2), "another wording of 2")] > 0


def test_an_import_that_was_killed_while_it_wrote_the_splits_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder, other = write_many(tmp_path / "source"), tmp_path / "killed", tmp_path / "other"
    build(tmp_path / "whole", source)
    build(tmp_path / "another", source, "data.held_out=0.4")
    stamps = kill(folder, source, "samples")
    assert len({path for path in stamps if path.parent.name == "parts"}) == 25
    shutil.copytree(folder, other)
    stamps_of_other = {other / path.relative_to(folder): stamp for path, stamp in stamps.items()}
    build(folder, source)
    assert unchanged(stamps, "train") == unchanged(stamps, "held_out") == {True}
    assert contents(folder) == contents(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda _: None)
        build(other, source, "data.held_out=0.4")
    assert unchanged(stamps_of_other, "train") == {False}, "parts of another split are no good"
    assert unchanged(stamps_of_other, "parts") == {True}
    shutil.rmtree(other / "parts")
    assert contents(other) == contents(tmp_path / "another")
