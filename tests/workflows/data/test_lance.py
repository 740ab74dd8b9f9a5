"""Lance: what the other formats do not have, and what is said without the extra."""

from __future__ import annotations

import sys
from pathlib import Path

import lance
import pytest

from tests.workflows.data import samples_own as samples
from tests.workflows.data.test_sources import records
from workflows.errors import InvalidData


def test_rows_that_were_deleted_are_not_read(tmp_path: Path) -> None:
    folder = samples.write_lance(tmp_path / "mine.lance", 30)
    lance.dataset(str(folder)).delete("caption = 'a red field number 0'")
    found = records(folder, "lance")
    assert len(found) == 25
    assert not any(record.captions == ("a red field number 0",) for record in found)
    assert len({record.name for record in found}) == 25


def test_long_fragments_are_cut(tmp_path: Path) -> None:
    folder = samples.write_lance(tmp_path / "mine.lance", 1300)
    assert [record.captions[0] for record in records(folder, "lance")] == [samples.caption(i) for i in range(1300)]


def test_a_folder_of_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="no Lance data set at"):
        records(samples.write_parquet(tmp_path / "x", 3), "lance")


def test_a_missing_extra_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = samples.write_lance(tmp_path / "mine.lance", 4)
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(InvalidData, match=r"pip install 'raverse\[lance\]'"):
        records(folder, "lance")
