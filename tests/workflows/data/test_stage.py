from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from workflows.config.load import load_config
from workflows.data.dataset import Dataset
from workflows.data.stage import build_data
from workflows.errors import InvalidData
from workflows.runtime.progress import Progress


def build(folder: Path, *overrides: str) -> Dataset:
    folder.mkdir()
    metrics = build_data(load_config(overrides[0], list(overrides[1:])), {}, folder, Progress.silent())
    dataset = Dataset.open(folder)
    assert metrics["data_hash"] == dataset.info.data_hash
    return dataset


def test_digits_artifact(tmp_path: Path) -> None:
    dataset = build(tmp_path / "digits", "digits")
    info = dataset.info
    assert (info.shape, info.num_train + info.num_held_out) == ((1, 8, 8), 1797)
    assert info.candidate_captions[7] == "a handwritten seven"
    assert info.combination(["seven"]) == 7
    assert info.class_names[7] == "seven"
    for name in ("train", "held_out"):
        split = dataset.read(name)
        assert len(split) == info.num_samples(name)
        np.testing.assert_array_equal(dataset.combinations(split), split.labels)
    assert len(dataset.read("train", limit=5)) == 5


def test_shapes_artifact(tmp_path: Path) -> None:
    dataset = build(tmp_path / "shapes", "shapes", "data.num_samples=480", "data.held_out=0.5")
    info = dataset.info
    assert (info.shape, len(info.candidate_captions), len(info.unseen_combinations)) == ((3, 32, 32), 240, 24)
    cross = info.combination(("cross", "blue", "large", "at the top"))
    assert info.candidate_captions[cross] == "a large blue cross at the top"
    held_out = dataset.read("held_out")
    assert set(dataset.combinations(held_out)[held_out.unseen]) == set(info.unseen_combinations)
    assert len(dataset.read("train")) == 216


def test_the_hash_follows_the_content(tmp_path: Path) -> None:
    first, again, other = (
        build(tmp_path / name, "digits", f"data.seed={seed}") for name, seed in [("a", 0), ("b", 0), ("c", 1)]
    )
    assert first.info == again.info
    assert first.info.data_hash != other.info.data_hash
    for name in ("train/part-000000.parquet", "held_out/part-000000.parquet", "data.json"):
        assert (first.folder / name).read_bytes() == (again.folder / name).read_bytes()


@pytest.mark.parametrize(("fraction", "found"), [(0.0, "0 held out"), (1.0, "0 samples to train on")])
def test_an_empty_split_is_refused(tmp_path: Path, fraction: float, found: str) -> None:
    with pytest.raises(InvalidData, match=found):
        build(tmp_path / "empty", "digits", f"data.held_out={fraction}")
