"""Samples that are decoded once and mapped are those of the data."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pyarrow.feather
import pytest

from workflows.data.dataset import Dataset
from workflows.storage import open_files
from workflows.storage.copies import CopySettings
from workflows.train.clip import samples
from workflows.train.clip.samples import MappedSamples


@pytest.fixture(params=[50 * 64, 64 << 20], ids=["many files", "one file"])
def mapped(
    request: pytest.FixtureRequest, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> MappedSamples:
    monkeypatch.setattr(samples, "_FILE_BYTES", request.param)
    return MappedSamples(digits, CopySettings(tmp_path / "copies"))


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "copies").glob("*.arrow"))


def test_they_are_those_of_the_data(digits: Dataset, mapped: MappedSamples, tmp_path: Path) -> None:
    split, rng = digits.read("train"), np.random.default_rng(0)
    rows, draws = rng.integers(0, len(split), 90), rng.integers(0, 1 << 24, 90)
    ids, stored, texts = mapped.take(rows, draws)
    np.testing.assert_array_equal(ids, split.sample_ids[rows])
    np.testing.assert_array_equal(stored, split.images[rows])
    assert texts == [
        split.captions[row][draw % len(split.captions[row])] for row, draw in zip(rows, draws, strict=True)
    ]
    stamps = {path: path.stat().st_ino for path in files(tmp_path)}
    again = MappedSamples(digits, CopySettings(tmp_path / "copies"))
    np.testing.assert_array_equal(again.take(rows, draws)[1], split.images[rows])
    assert {path: path.stat().st_ino for path in files(tmp_path)} == stamps, "another worker decodes nothing"


@pytest.mark.parametrize("place", [0.3, 0.6])
def test_a_changed_file_is_made_again(digits: Dataset, tmp_path: Path, place: float) -> None:
    split, rows = digits.read("train"), np.arange(digits.info.num_train)
    MappedSamples(digits, CopySettings(tmp_path / "copies")).take(rows, rows)
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    wanted = split.images.tobytes()
    content[content.find(wanted) + int(place * len(wanted))] ^= 1
    path.write_bytes(content)
    found = MappedSamples(digits, CopySettings(tmp_path / "copies")).take(rows, rows)[1]
    np.testing.assert_array_equal(found, split.images)
    assert path.read_bytes() != content


@pytest.mark.parametrize("content", [b"", b"no arrow at all", "shorter"])
def test_a_file_that_is_not_whole_is_made_again(digits: Dataset, tmp_path: Path, content: bytes | str) -> None:
    split, rows = digits.read("train"), np.arange(digits.info.num_train)
    MappedSamples(digits, CopySettings(tmp_path / "copies")).take(rows, rows)
    (path,) = files(tmp_path)
    if isinstance(content, str):
        table = pyarrow.feather.read_table(path, memory_map=False).slice(1)
        pyarrow.feather.write_feather(table, path, compression="uncompressed")
    else:
        path.write_bytes(content)
    found = MappedSamples(digits, CopySettings(tmp_path / "copies")).take(rows, rows)[1]
    np.testing.assert_array_equal(found, split.images)


def test_files_stay_within_their_limit_and_the_last_used_stay(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "_FILE_BYTES", 50 * 64)
    MappedSamples(digits, CopySettings(tmp_path / "copies")).take(np.array([0]), np.array([0]))
    (first,) = files(tmp_path)
    size = first.stat().st_size
    mapped = MappedSamples(digits, CopySettings(tmp_path / "copies", 3 * size))
    for number in range(1, digits.info.num_train // 50):
        os.utime(first, (2_000_000_000 + number,) * 2)
        mapped.take(np.array([50 * number]), np.array([0]))
        for stamp, path in enumerate(files(tmp_path)):
            os.utime(path, (stamp, stamp) if path != first else None)
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 3.5 * size
        assert first.exists(), "it was used last"
    assert len(mapped._opened_files.paths) <= 4, "mappings of files that are gone are gone"


def test_without_a_folder_samples_are_kept_in_memory_and_it_is_told_once(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(logging.getLogger(open_files.__name__), "warning", lambda *words: told.append(str(words)))
    monkeypatch.setattr(samples, "_FILE_BYTES", 50 * 64)
    (tmp_path / "copies").write_text("a file where a folder should be")
    split, rows = digits.read("train"), np.arange(digits.info.num_train)
    mapped = MappedSamples(digits, CopySettings(tmp_path / "copies"))
    for _ in range(2):
        np.testing.assert_array_equal(mapped.take(rows, rows)[1], split.images)
    assert len(told) == 1
    assert "clip.cache_folder" in told[0]
