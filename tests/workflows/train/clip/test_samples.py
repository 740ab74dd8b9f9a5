"""Samples that are decoded once and mapped are those of the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from workflows.data.dataset import Dataset
from workflows.errors import StorageUnwritable
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
    stamps = {path: path.stat().st_mtime_ns for path in files(tmp_path)}
    again = MappedSamples(digits, CopySettings(tmp_path / "copies"))
    np.testing.assert_array_equal(again.take(rows, draws)[1], split.images[rows])
    assert {path: path.stat().st_mtime_ns for path in files(tmp_path)} == stamps, "another worker decodes nothing"


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


def test_a_folder_that_cannot_be_written_is_named(digits: Dataset, tmp_path: Path) -> None:
    (tmp_path / "copies").write_text("a file where a folder should be")
    with pytest.raises(StorageUnwritable, match=r"set clip\.cache_folder elsewhere"):
        MappedSamples(digits, CopySettings(tmp_path / "copies")).take(np.arange(3), np.arange(3))
