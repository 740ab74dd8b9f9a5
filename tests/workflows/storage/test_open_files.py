"""Mapped files give their pages back, and leave with the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from workflows.storage import open_files
from workflows.storage.mapped import MappedShard, write_mapped
from workflows.storage.open_files import OpenFiles

COUNT = 64 << 20


def opened(tmp_path: Path, files: OpenFiles) -> MappedShard:
    """A file of 64 MiB."""
    path = tmp_path / write_mapped(tmp_path, "x.arrow", pa.table({"x": np.arange(COUNT // 8)}), "key").path
    return files.keep(path, MappedShard.open(path))


def test_a_row_counts_with_what_the_system_maps_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, released = OpenFiles("numbers", "a.folder"), []
    monkeypatch.setattr(opened(tmp_path, files), "release", lambda: released.append(True), raising=True)
    rows = open_files.RELEASED_AFTER // open_files._AROUND
    files.touched(rows, 0)
    assert released == []
    files.touched(1, 0)
    assert released == [True]


@pytest.mark.parametrize(("limit", "most"), [(COUNT // 2, 0.1), (2 * COUNT, 1.1)])
def test_pages_are_given_back_after_so_many_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, most: float
) -> None:
    monkeypatch.setattr(open_files, "RELEASED_AFTER", limit)
    files = OpenFiles("numbers", "a.folder")
    view, process = opened(tmp_path, files).column("x").to_numpy(), psutil.Process()
    before = process.memory_full_info().uss
    assert int(view.sum()) > 0
    files.touched(1, COUNT)
    grown = process.memory_full_info().uss - before
    assert grown < most * COUNT
    if limit > COUNT:
        assert grown > 0.9 * COUNT, "negative control: below the limit the pages stay"


def test_files_that_are_gone_do_not_stay_open(tmp_path: Path) -> None:
    files = OpenFiles("numbers", "a.folder")
    opened(tmp_path, files)
    (path,) = files.paths
    files.forget_removed()
    assert files.get(path) is not None
    path.unlink()
    files.forget_removed()
    assert files.get(path) is None
