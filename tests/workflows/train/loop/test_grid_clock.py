"""When grids are drawn, on a clock of the test's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workflows.config.schema import TrainConfig
from workflows.train.batches import Share
from workflows.train.loop import grid_clock
from workflows.train.loop.grid_clock import GridClock
from workflows.train.objectives import DenoiserObjective


def train(
    denoiser: Any, monkeypatch: pytest.MonkeyPatch, steps: int, step_seconds: float, grid_seconds: float
) -> tuple[list[float], float]:
    """When grids were drawn, and the seconds of the whole training."""
    now, drawn = [0.0], []
    config = TrainConfig(steps=steps, batch_size=32, log_every=25)
    trainer: Any = SimpleNamespace(objective=denoiser, config=config, share=Share(0, 1), steps_done=0)
    clock = GridClock(trainer, lambda: now[0])

    def draw_grid(_trainer: Any, _folder: Path) -> None:
        drawn.append(now[0])
        now[0] += grid_seconds

    monkeypatch.setattr(grid_clock, "draw_grid", draw_grid)
    for _ in range(steps):
        now[0] += step_seconds
        trainer.steps_done += 1
        clock.draw(Path())
    return drawn, now[0]


@pytest.mark.parametrize("step_seconds", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("steps", [500, 3000, 20_000])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.9])
def test_grids_take_less_than_2_percent(
    denoiser: DenoiserObjective, monkeypatch: pytest.MonkeyPatch, steps: int, step_seconds: float, factor: float
) -> None:
    grid_seconds = factor * step_seconds * 16 * 20 / (3 * 32)
    drawn, seconds = train(denoiser, monkeypatch, steps, step_seconds, grid_seconds)
    assert len(drawn) * grid_seconds < 0.02 * seconds
    if seconds > 600:
        assert drawn, "ten minutes without a picture"
        assert drawn[0] >= 60.0
    assert len(drawn) < 100


def test_a_dear_grid_comes_once_and_then_late(denoiser: DenoiserObjective, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, _ = train(denoiser, monkeypatch, 40_000, 0.1, 30.0)
    assert drawn[1] - drawn[0] >= 30.0 / 0.015


def test_a_short_training_and_what_is_no_picture_have_none(
    denoiser: DenoiserObjective, classifier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(denoiser, monkeypatch, 500, 0.1, 0.1)[0] == []
    assert train(denoiser, monkeypatch, 5000, 0.1, 0.1)[0] != []
    assert train(classifier, monkeypatch, 5000, 0.1, 0.1)[0] == []
