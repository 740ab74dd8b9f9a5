"""Vectors: Parquet of numbers with captions or labels, from the file to normalised samples in a cache."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.workflows.data import samples_own as samples
from tests.workflows.data.test_check import check
from tests.workflows.data.test_sources import faults, records
from workflows.config.load import load_config
from workflows.data.dataset import Dataset
from workflows.data.scale import Moments, VectorScale
from workflows.data.sources import detect
from workflows.data.sources.location import Location
from workflows.data.sources.record import Columns
from workflows.data.stage import build_data
from workflows.errors import InvalidData
from workflows.runtime.progress import Progress


def test_numbers_captions_and_labels_are_read_in_order(tmp_path: Path) -> None:
    folder = samples.write_vectors(tmp_path / "v", 250)
    assert detect(Location(str(folder))) == "vectors"
    found = records(folder, "vectors")
    assert [record.name for record in found] == [f"part.parquet:{number}" for number in range(250)]
    columns = pq.read_table(folder / "part.parquet")
    rows = np.stack([np.frombuffer(record.image, "<f4") for record in found])
    for place, name in enumerate(("length", "width", "year", "constant")):
        np.testing.assert_allclose(rows[:, place], columns[name].to_numpy(), rtol=1e-6)
    assert found[4].captions == ("a green one",)
    assert found[4].label == "green"
    chosen = records(folder, "vectors", Columns(values=("width",)))
    assert len(chosen[0].image) == 4


def test_a_label_is_the_caption_where_there_is_none(tmp_path: Path) -> None:
    found = records(samples.write_vectors(tmp_path / "v", 3, captions=False), "vectors")
    assert [record.captions for record in found] == [("red",), ("green",), ("blue",)]


def test_what_is_no_finite_number_is_refused(tmp_path: Path) -> None:
    table = pa.table({"a": [1.0, None, float("nan"), float("inf"), 1e300], "b": [1, 2, 3, 4, None], "text": ["x"] * 5})
    pq.write_table(table, tmp_path / "part.parquet")
    found = records(tmp_path, "vectors")
    assert faults(found) == {
        "part.parquet:1": "no finite number in a",
        "part.parquet:2": "no finite number in a",
        "part.parquet:3": "no finite number in a",
        "part.parquet:4": "no finite number in a, b",
    }


def test_missing_and_wrong_columns_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1.0], "text": ["x"]}), tmp_path / "part.parquet")
    for columns, wanted in (
        (Columns(values=("z",)), "column 'z' .* is not there, wanted numbers"),
        (Columns(values=("text",)), "column 'text' .* is string, wanted numbers"),
        (Columns(label="kind"), "no label column"),
    ):
        with pytest.raises(InvalidData, match=wanted):
            records(tmp_path, "vectors", columns)
    pq.write_table(pa.table({"a": [1.0]}), tmp_path / "part.parquet")
    with pytest.raises(InvalidData, match="neither caption nor label"):
        records(tmp_path, "vectors")


def test_scale_normalises_and_goes_back() -> None:
    rng = np.random.default_rng(0)
    raw = np.stack([rng.normal(1e6, 3.0, 500), rng.normal(0, 1e-4, 500), np.full(500, 5.0)], axis=1)
    scale = VectorScale.fit(("a", "b", "c"), sum(map(Moments.of, (raw[:100], raw[100:])), start=Moments.of(raw[:0])))
    np.testing.assert_allclose(scale.mean, raw.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(scale.std[:2], raw.std(0)[:2], rtol=1e-9)
    assert scale.std[2] == 1.0
    x = scale.normalised(raw)
    np.testing.assert_allclose(x.std(0), [1, 1, 0], atol=1e-5)
    np.testing.assert_allclose(scale.raw(x), raw, rtol=1e-6, atol=1e-9)
    assert VectorScale.of(json.loads(json.dumps(scale.__dict__))) == scale


def test_the_check_knows_ranges_and_the_command_to_run_next(tmp_path: Path) -> None:
    folder = samples.write_vectors(tmp_path / "v", 90)
    result, report = check(folder, tmp_path / "out", "--vector-columns", "length,year")
    assert result.exit_code == 0, result.output
    assert (report["format"], report["usable"]) == ("vectors", 90)
    assert report["columns"]["year"]["min"] >= 2000
    assert set(report["columns"]) == {"length", "year"}
    assert "data.vector_columns=[length,year]" in report["next"]
    assert "image_size" not in report["next"]
    assert "--config vectors " in report["next"]
    assert "year" in (tmp_path / "out/report.html").read_text()


@pytest.mark.usefixtures("ray_session")
def test_import_normalises_by_the_training_samples(tmp_path: Path) -> None:
    folder = samples.write_vectors(tmp_path / "v", 300)
    config = load_config("digits", ["data.source=auto", f"data.path={folder}"])
    (tmp_path / "data").mkdir()
    figures = build_data(config, {}, tmp_path / "data", Progress.silent())
    dataset = Dataset.open(tmp_path / "data")
    assert (figures["num_train"], figures["num_held_out"]) == (240, 60)
    assert (dataset.info.source, dataset.info.shape) == ("vectors", (4,))
    assert dataset.info.scale is not None
    assert dataset.info.scale.columns == ("length", "width", "year", "constant")
    train, held_out = dataset.read("train"), dataset.read("held_out")
    np.testing.assert_allclose(train.images.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(train.images.std(0), [1, 1, 1, 0], atol=1e-5)
    raw = dataset.info.scale.raw(held_out.images)
    table = pq.read_table(folder / "part.parquet")
    np.testing.assert_allclose(raw[:, 0], table["length"].to_numpy()[held_out.sample_ids], rtol=1e-5, atol=1e-5)
    assert dataset.info.class_names == ("blue", "green", "red")
