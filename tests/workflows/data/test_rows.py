"""Types of rows: from what a user has to what networks see and back, and nothing else that tells the types apart."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

import workflows
from tests.workflows.data.samples_own import picture
from tests.workflows.data.test_check import check
from workflows.config.load import load_config
from workflows.data.dataset import DataInfo
from workflows.data.intake import Intake, PictureIntake, VectorIntake
from workflows.data.own.importing import import_own
from workflows.data.picture import PictureShape
from workflows.data.png import decode_png
from workflows.data.rows import Pictures, RowType, Vectors, rows_of
from workflows.data.scale import VectorScale
from workflows.errors import InvalidData
from workflows.package.files import Defaults, PackageCard
from workflows.runtime.progress import Progress

SCALE = VectorScale(("a", "b"), (10.0, 0.0), (2.0, 0.5))
# Pixels with two axes are a gray picture.
KINDS_TOLD_APART = re.compile(
    r"(info|card)\.scale\b.* None|len\([\w.]*shape\) *[=<>!]|(?<!pixels\.)ndim *[=!]= *[12]\b"
    r"|[=!]= *[\"'](vectors|pictures)[\"']|isinstance\(.*\b(Pictures|Vectors)\b|dtype *[=!]= *(torch|np)\.uint8"
)


def stored_rows(intake: Intake, raw: NDArray) -> tuple[RowType, NDArray]:
    """As the import leads raw rows through Parquet."""
    cells = [intake.encode(row) for row in raw]
    rows = intake.rows(intake.measure(cells[:7]) + intake.measure(cells[7:]) if intake.measured else None)
    return rows, np.stack([rows.decode(cell) for cell in rows.store(cells)])


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_come_back_from_networks_bit_by_bit(channels: int) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (20, channels, 6, 6), np.uint8)
    raw[0], raw[1] = 0, 255
    rows, stored = stored_rows(PictureIntake(PictureShape(6, channels)), raw)
    assert rows == Pictures((channels, 6, 6))
    assert (stored.dtype, stored.shape[1:]) == (rows.dtype, rows.shape)
    x = rows.to_x(torch.from_numpy(stored))
    assert x.dtype == torch.float32
    assert (x[0].unique().tolist(), x[1].unique().tolist()) == ([-1.0], [1.0])
    assert float(x.abs().max()) <= rows.bound
    back = rows.from_x(x)
    np.testing.assert_array_equal(back, raw)
    table = rows.table(back.numpy())
    assert list(table) == list(rows.outputs)
    np.testing.assert_array_equal([decode_png(cell) for cell in table["image"]], raw)
    assert torch.equal(rows.from_x(x * 1.5)[0], back[0]), "what is outside [-1, 1] is cut off"


def test_vectors_come_back_from_networks_in_their_own_units() -> None:
    raw = np.random.default_rng(0).normal((1e4, -3.0), (20.0, 1e-3), (50, 2)).astype(np.float32)
    rows, stored = stored_rows(VectorIntake(("a", "b")), raw)
    assert isinstance(rows, Vectors)
    assert (stored.dtype, stored.shape[1:]) == (rows.dtype, rows.shape)
    x = rows.to_x(torch.from_numpy(stored))
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(x.std(0, correction=0), 1, atol=1e-3)
    assert float(x.abs().max()) > 1.0
    assert rows.bound == 0.0, "normalised numbers have no bound"
    table = rows.table(rows.from_x(x).numpy())
    assert list(table) == list(rows.outputs) == ["a", "b"]
    np.testing.assert_allclose(np.column_stack(list(table.values())), raw, rtol=1e-6)
    others = rows_of(rows.shape).table(rows.from_x(x).numpy())
    assert abs(others["0"].mean()) < 1.0, "without the scale, numbers stay normalised"


def test_intake_reads_what_sources_give() -> None:
    row, found = PictureIntake(PictureShape(8)).read(picture(3))
    assert (row.shape, row.dtype, found.format) == ((3, 8, 8), np.uint8, "PNG")
    numbers, found = VectorIntake(("a", "b")).read(np.array([1.5, -2], "<f4").tobytes())
    assert (numbers.tolist(), found.format) == ([1.5, -2.0], "vector")


@pytest.mark.parametrize(("shape", "scale"), [((3, 8, 8), None), ((2,), SCALE)])
def test_files_make_the_type_and_hold_no_more_for_it(
    shape: tuple[int, ...], scale: VectorScale | None, tmp_path: Path
) -> None:
    info = DataInfo("mine", shape, (), {}, 1, 1, "0", ("x",), (), scale)
    card = PackageCard("mine", shape, (), ("x",), "0", Defaults(), scale)
    assert info.rows == card.rows == rows_of(shape, scale)
    assert (info.rows.shape, info.rows.scale) == (shape, scale)
    info.save(tmp_path)
    card.save(tmp_path)
    plain = None if scale is None else {"columns": ["a", "b"], "mean": [10.0, 0.0], "std": [2.0, 0.5]}
    data, package = (json.loads((tmp_path / name).read_text()) for name in ("data.json", "package.json"))
    assert data == {
        "source": "mine", "shape": list(shape), "class_names": [], "attributes": {}, "num_train": 1, "num_held_out": 1,
        "data_hash": "0", "candidate_captions": ["x"], "unseen_combinations": [], "scale": plain,
        "parts": {}, "store": None,
    }  # fmt: skip
    assert (package["shape"], package["scale"]) == (list(shape), plain)
    assert set(package) == {
        "source", "shape", "class_names", "candidate_captions", "data_hash", "defaults", "scale", "parts",
        "format_version", "hash",
    }  # fmt: skip
    assert DataInfo.load(tmp_path).rows == PackageCard.load(tmp_path).rows == info.rows


def test_an_image_tower_sees_pictures_as_they_are_and_numbers_as_cells() -> None:
    x = torch.rand(2, 3, 6, 6)
    assert Pictures((3, 6, 6)).seen(x, (12, 12)) is x
    assert (Pictures((3, 6, 6)).side(4), rows_of((5,)).side(4), rows_of((4,)).side(4)) == (6, 12, 8)
    cells = rows_of((5,)).seen(torch.tensor([[0.0, 4.0, -4.0, 1.0, 2.0]]), (6, 6))
    assert cells.shape == (1, 1, 6, 6)
    wanted = torch.tensor([0.0, 2.0, -2.0, 0.5, 1.0, 0, 0, 0, 0]).tanh().view(3, 3)
    assert torch.equal(cells[0, 0, ::2, ::2], wanted)


def write_two_kinds_of_columns(folder: Path) -> Path:
    folder.mkdir()
    pq.write_table(pa.table({"a": [1.0], "label": ["x"]}), folder / "0.parquet")
    pq.write_table(pa.table({"a": [1.0], "b": [2.0], "label": ["x"]}), folder / "1.parquet")
    return folder


def test_files_with_other_columns_are_refused_before_any_is_read(tmp_path: Path) -> None:
    source = write_two_kinds_of_columns(tmp_path / "v")
    config = load_config("digits", ["data.source=vectors", f"data.path={source}"]).data
    with pytest.raises(InvalidData, match=r"files with columns a and a, b: set data\.vector_columns"):
        import_own(config, tmp_path / "data", Progress.silent())
    assert not (tmp_path / "data").exists()
    result, _ = check(source, tmp_path / "out")
    assert result.exit_code == 1
    assert "set --vector-columns" in result.output
    result, report = check(source, tmp_path / "out", "--vector-columns", "a")
    assert (result.exit_code, report["usable"]) == (0, 2), result.output


SPELLINGS = (
    "if card.scale is not None:", "if dataset.info.scale is None:", "if len(objective.config.shape) == 1:",
    "if images.ndim == 2:", 'if source != "vectors":', "if isinstance(rows, Vectors):", "if x.dtype == torch.uint8:",
)  # fmt: skip


def test_only_one_module_tells_the_types_apart() -> None:
    assert all(KINDS_TOLD_APART.search(line) for line in SPELLINGS)
    root = Path(workflows.__file__).parent
    told = {
        path.relative_to(root).as_posix(): found.group()
        for path in sorted(root.rglob("*.py"))
        if (found := KINDS_TOLD_APART.search(path.read_text()))
    }
    assert told == {"data/rows.py": "len(shape) >"}
