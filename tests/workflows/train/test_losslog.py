"""`losses.csv` survives restarts and can be followed while it grows."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from workflows.runtime.progress import Progress
from workflows.train.losslog import LossLog, following, read_losses


def test_rows_come_back_with_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    log = LossLog(path, 0)
    log.append(10, {"loss": 0.5})
    log.append(20, {"loss": 1 / 3})
    rows = read_losses(path)
    assert [(row["step"], row["loss"]) for row in rows] == [(10, 0.5), (20, pytest.approx(1 / 3, rel=1e-5))]
    assert 0 <= rows[0]["seconds"] <= rows[1]["seconds"]


def test_a_restart_cuts_off_what_will_be_done_again_and_goes_on_counting_seconds(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    path.write_text("step,seconds,loss\n10,100,3\n20,200,2\n30,300,1\n")
    log = LossLog(path, 20)
    log.append(30, {"loss": 1.5})
    rows = read_losses(path)
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert rows[2]["loss"] == 1.5
    assert 200 <= rows[2]["seconds"] < 300


def test_a_fresh_start_forgets_an_older_file(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    path.write_text("step,seconds,loss\n10,100,3\n")
    LossLog(path, 0)
    assert read_losses(path) == []


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    path.write_text("step,seconds,loss\n10,1,3\n20,2,0.")
    assert [row["step"] for row in read_losses(path)] == [10]
    assert read_losses(tmp_path / "missing.csv") == []


def test_the_driver_sees_rows_that_appear(tmp_path: Path) -> None:
    path, shown = tmp_path / "losses.csv", io.StringIO()
    progress = Progress(None, shown)
    progress.start(20, "steps")
    with following(path, progress, tmp_path / "grids"):
        log = LossLog(path, 0)
        log.append(10, {"loss": 2.0, "samples_per_second": 7.0})
        log.append(20, {"loss": 1.0, "samples_per_second": 8.0})
    assert "20/20 steps loss 1 samples_per_second 8" in shown.getvalue()


def test_new_pictures_are_named_once(tmp_path: Path) -> None:
    grids, shown = tmp_path / "grids", io.StringIO()
    grids.mkdir()
    (grids / "step-1.png").write_bytes(b"of an earlier try")
    with following(tmp_path / "losses.csv", Progress(None, shown), grids):
        (grids / "step-2.png").write_bytes(b"new")
    assert shown.getvalue().count("pictures so far") == 1
    assert f"pictures so far: {grids / 'step-2.png'}" in shown.getvalue()
