"""How many steps `auto` is."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from workflows.config.schema import ClassifierTrainConfig, ClipConfig, TrainConfig
from workflows.train.length import PACES, Length, Pace

PACE = Pace(epochs=10, least=50, minutes=2.0)


@pytest.mark.parametrize(
    ("rows", "minutes", "step_seconds", "steps"),
    [
        (3200, None, 0.01, 1000),  # ten epochs of 100 batches
        (3201, None, 0.01, 1001),  # whole epochs
        (32, None, 0.01, 50),  # a small set needs some steps
        (3200, None, 0.5, 240),  # two minutes of half a second
        (3200, 1.0, 0.5, 120),
        (3200, 60.0, 0.5, 1000),  # a budget is no aim
        (32, 0.1, 0.5, 12),  # nor is the least number above the budget
        (32, 0.001, 5.0, 1),
    ],
)
def test_steps_follow_the_rows_within_the_budget(
    rows: int, minutes: float | None, step_seconds: float, steps: int
) -> None:
    assert PACE.steps(rows, 32, minutes, step_seconds) == steps


def test_a_length_is_told_and_found_again(tmp_path: Path) -> None:
    length = Length(steps=1200, rows=3200, batch_size=32, step_seconds=0.1)
    assert str(length) == (
        "1,200 steps of 32 rows, 12 epochs of 3,200 rows, about 2.0 minutes (100 ms a step, measured)"
    )
    assert Length.load(tmp_path) is None
    length.save(tmp_path)
    assert Length.load(tmp_path) == length


@pytest.mark.parametrize(
    ("part", "model"), [("clip", ClipConfig), ("denoiser", TrainConfig), ("classifier", ClassifierTrainConfig)]
)
def test_the_descriptions_say_what_the_table_does(part: str, model: type[TrainConfig]) -> None:
    pace, fields = PACES[part], model.model_fields  # type: ignore[index]
    assert f"auto: {pace.epochs} epochs, {pace.least} steps at least" in (fields["steps"].description or "")
    assert f"default: {pace.minutes:g}" in (fields["minutes"].description or "")


@pytest.mark.parametrize("model", [ClipConfig, TrainConfig, ClassifierTrainConfig])
def test_a_budget_goes_with_auto(model: type[TrainConfig]) -> None:
    with pytest.raises(ValidationError, match="steps is 5: set steps=auto"):
        model(steps=5, minutes=3.0)
    assert model(steps="auto", minutes=3.0).minutes == 3.0
    with pytest.raises(AssertionError, match="not decided"):
        _ = TrainConfig(steps="auto").num_steps
