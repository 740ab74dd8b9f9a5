"""Random sets in every format, with random defects: the check and the import lose nothing, and agree."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.workflows.data import samples_own as samples
from tests.workflows.data.test_import_own import contents
from workflows.config.schema import DataConfig
from workflows.data.check import check_data
from workflows.data.own import importing
from workflows.data.own.importing import import_own
from workflows.errors import InvalidData
from workflows.runtime.progress import Progress

GOOD = ("good", "twice", "windows")
DEFECTS = (*GOOD, "empty", "cut", "text", "no caption", "no label", "html")


def image_of(number: int, defect: str) -> bytes:
    data = samples.picture(0 if defect == "twice" else number)
    return {"empty": b"", "cut": data[:40], "text": b"hello", "html": b"<html>404</html>"}.get(defect, data)


def caption_of(number: int, defect: str) -> bytes:
    if defect == "windows":
        return f"caf\u00e9 {number}".encode("cp1252")
    return b"" if defect == "no caption" else f"a caption {number}".encode()


def write_sidecar(folder: Path, defects: Sequence[str]) -> None:
    for number, defect in enumerate(defects):
        (folder / f"{number:03d}.png").write_bytes(image_of(number, defect))
        (folder / f"{number:03d}.txt").write_bytes(caption_of(number, defect))
        if defect != "no label":
            (folder / f"{number:03d}.cls").write_text(str(number % 2 if defect != "twice" else 0))


def write_folder(folder: Path, defects: Sequence[str]) -> None:
    lines = []
    for number, defect in enumerate(defects):
        (folder / f"{number:03d}.png").write_bytes(image_of(number, defect))
        line = {"file_name": f"{number:03d}.png", "text": f"a caption {number}" if defect != "no caption" else None}
        lines.append(json.dumps(line))
        if defect == "windows":
            lines.append(json.dumps(line | {"text": "another caption"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def write_webdataset(folder: Path, defects: Sequence[str]) -> None:
    members = []
    for number, defect in enumerate(defects):
        members.append((f"{number:03d}.png", image_of(number, defect)))
        members.append((f"{number:03d}.txt", caption_of(number, defect)))
    half = len(members) // 4 * 2
    samples.write_tar(folder / "0.tar", members[:half])
    samples.write_tar(folder / "1.tar", members[half:])


def write_parquet(folder: Path, defects: Sequence[str], *, nested: bool = False) -> None:
    images: list[Any] = [image_of(number, defect) for number, defect in enumerate(defects)]
    if nested:
        images = [{"bytes": data, "path": None} for data in images]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if nested else pa.binary()
    texts = [None if defect == "no caption" else f"a caption {number}" for number, defect in enumerate(defects)]
    table = pa.table({"image": pa.array(images, kind), "caption": pa.array(texts, pa.string())})
    pq.write_table(table, folder / "0.parquet", row_group_size=7)


def write_hf_parquet(folder: Path, defects: Sequence[str]) -> None:
    write_parquet(folder, defects, nested=True)


def write_classes(folder: Path, defects: Sequence[str]) -> None:
    for number, defect in enumerate(defects):
        (folder / f"kind{number % 2}").mkdir(exist_ok=True)
        (folder / f"kind{number % 2}/{number:03d}.png").write_bytes(image_of(number, defect))


WRITERS = {
    "sidecar": write_sidecar,
    "folder": write_folder,
    "webdataset": write_webdataset,
    "parquet": write_parquet,
    "hf_parquet": write_hf_parquet,
    "classes": write_classes,
}


@dataclass
class Rows:
    """The two operations of Ray Data that an import asks for, in this process: its tests with Ray are elsewhere."""

    items: list[dict[str, Any]]

    def map(self, work: Callable[[dict[str, Any]], dict[str, Any]]) -> Rows:
        return Rows([work(item) for item in self.items])

    def flat_map(self, work: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> Rows:
        return Rows([row for item in self.items for row in work(item)])


def through_arrow(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows come back from Arrow as they do from Ray Data."""
    return pa.Table.from_pylist(rows).to_pylist() if rows else []


def in_order(items: Sequence[dict[str, Any]], build: Callable[[Any], Any], _blocks: int) -> Iterator[dict[str, Any]]:
    yield from through_arrow(build(Rows(through_arrow(list(items)))).items)


def backwards(items: Sequence[dict[str, Any]], build: Callable[[Any], Any], _blocks: int) -> Iterator[dict[str, Any]]:
    """The pass finishes its items in the opposite order, as another number of workers may."""
    yield from through_arrow(build(Rows(through_arrow(list(items)[::-1]))).items)


def imported(config: DataConfig, folder: Path, run_pass: Callable[..., Any]) -> tuple[Any, dict[str, int]]:
    folder.mkdir()
    with patch.object(importing, "run_pass", run_pass):
        return import_own(config, folder, Progress.silent())


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(defects=st.lists(st.sampled_from(DEFECTS), min_size=8, max_size=40))
def test_random_sets_lose_nothing(name: str, defects: list[str]) -> None:
    defects = ["good", "good", *defects]
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        source.mkdir()
        WRITERS[name](source, defects)
        config = DataConfig(source="auto", path=str(source), image_size=8, max_bad_fraction=1.0)
        report, _ = check_data(config, None)
        assert report["format"] == name
        refused = sum(report["unusable"].values())
        assert report["usable"] + refused == report["records"]
        assert report["records"] + report["joined"] == len(defects)
        info, counted = imported(config, Path(scratch) / "a", in_order)
        assert info.num_train + info.num_held_out == report["usable"]
        assert counted == {"num_rejected": refused, "num_joined": report["joined"]}
        rejected = pq.read_table(Path(scratch) / "a/rejected.parquet").to_pylist()
        names = [row["name"] for row in rejected if not row["kept"]]
        assert len(names) == len(set(names)) == refused
        other, _ = imported(config, Path(scratch) / "b", backwards)
        assert other == info
        assert contents(Path(scratch) / "a") == contents(Path(scratch) / "b")


def test_the_property_notices_a_lost_record(tmp_path: Path) -> None:
    """A negative control: with one picture less, the sum is another."""
    write_sidecar(tmp_path, ["good"] * 12)
    (tmp_path / "003.png").unlink()
    (tmp_path / "003.txt").unlink()
    report, _ = check_data(DataConfig(source="auto", path=str(tmp_path), image_size=8), None)
    assert report["records"] == 11


def test_rows_of_one_picture_in_different_pieces_are_joined(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    images = [samples.picture(number % 600) for number in range(1200)]
    table = pa.table({"image": images, "caption": [f"caption {number}" for number in range(1200)]})
    pq.write_table(table, tmp_path / "source/0.parquet", row_group_size=100)
    config = DataConfig(source="auto", path=str(tmp_path / "source"), image_size=8)
    info, counted = imported(config, tmp_path / "a", backwards)
    distinct = len(set(images))
    assert (info.num_train + info.num_held_out, counted["num_joined"]) == (distinct, 1200 - distinct)
    found = [
        caption
        for path in (tmp_path / "a").glob("*/part-*.parquet")
        for captions in pq.read_table(path)["captions"].to_pylist()
        for caption in captions
    ]
    assert sorted(found) == sorted(f"caption {number}" for number in range(1200)), "each once"


def test_one_picture_alone_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    write_sidecar(tmp_path / "source", ["good"])
    config = DataConfig(source="auto", path=str(tmp_path / "source"), image_size=8)
    with pytest.raises(InvalidData, match="at least two pictures"):
        imported(config, tmp_path / "a", in_order)
