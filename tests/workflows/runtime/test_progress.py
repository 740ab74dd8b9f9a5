"""Progress on a terminal, on a pipe and in a log."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from workflows.runtime.progress import Progress, duration


def plain() -> tuple[Progress, io.StringIO, io.StringIO]:
    screen, log = io.StringIO(), io.StringIO()
    return Progress(Console(file=screen, width=120), log), screen, log


def test_plain_lines_name_stage_unit_and_figures() -> None:
    progress, screen, log = plain()
    with progress.stage("denoiser"):
        progress.start(1000, "steps")
        progress.advance(1000, loss=0.1234567, lr=0.001)
        progress.log("kept 2 checkpoints")
    lines = ["denoiser: 1000/1000 steps loss 0.1235 lr 0.001", "denoiser: kept 2 checkpoints"]
    assert screen.getvalue().splitlines() == lines
    assert [line.split(" ", 1)[1] for line in log.getvalue().splitlines()] == lines


def test_a_fast_loop_does_not_flood_the_output() -> None:
    progress, screen, _ = plain()
    progress.start(10_000, "rows")
    for done in range(1, 10_001):
        progress.advance(done)
    assert screen.getvalue().splitlines() == ["10000/10000 rows"]


def test_markup_in_a_line_is_text() -> None:
    progress, screen, _ = plain()
    progress.log("caption [bold]red[/bold]")
    assert screen.getvalue() == "caption [bold]red[/bold]\n"


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    screen, log = io.StringIO(), io.StringIO()
    progress = Progress(Console(file=screen, width=120, force_terminal=True), log)
    with progress.stage("clip"):
        progress.start(10, "steps")
        for done in range(1, 11):
            progress.advance(done, loss=1.0)
    assert "clip" in screen.getvalue()
    assert "10/10 steps loss 1" in screen.getvalue()
    assert screen.getvalue().rstrip("\x1b[?25h\r").endswith("\x1b[2K"), "the bar's line is not cleared"
    assert "clip: 10/10 steps loss 1" in log.getvalue()


def test_silent_says_nothing(capfd: object) -> None:
    progress = Progress.silent()
    with progress.stage("data"):
        progress.start(3, "rows")
        progress.advance(3, loss=1.0)
        progress.log("done")
    assert capfd.readouterr() == ("", "")  # type: ignore[attr-defined]


def test_a_line_says_how_long_the_rest_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the rate since the loop was first heard of, which may be far from its beginning."""
    progress, screen, _ = plain()
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress.start(1000, "steps")
    for done in (500, 550, 600, 1000):
        now[0] += 30.0
        progress.advance(done)
    assert screen.getvalue().splitlines() == [
        "500/1000 steps",
        "550/1000 steps, 4.5 minutes left",
        "600/1000 steps, 4.0 minutes left",
        "1000/1000 steps",
    ]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "0 s"), (99, "99 s"), (150, "2.5 minutes"), (5999, "100.0 minutes"), (18_000, "5.0 hours")],
)
def test_a_duration_is_as_exact_as_an_estimate_may_be(seconds: float, told: str) -> None:
    assert duration(seconds) == told
