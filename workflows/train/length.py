"""How long to train: a number of steps that follows the number of rows, within a budget of minutes.

steps = min(minutes / seconds of a step, max(least, epochs * rows / batch size))
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias, final

from workflows.runtime.progress import duration
from workflows.storage.atomic import write_whole

LENGTH_FILE: Final = "length.json"
TrainedPart: TypeAlias = Literal["clip", "denoiser", "classifier"]
_FEW_EPOCHS: Final = 10.0


@final
@dataclass(frozen=True)
class Pace:
    """What `steps: auto` aims at.

    Attributes:
        epochs: how often training sees each row.
        least: steps of a small set, which needs them to learn anything.
        minutes: the budget where the configuration gives none.
    """

    epochs: int
    least: int
    minutes: float

    def steps(self, rows: int, batch_size: int, minutes: float | None, step_seconds: float) -> int:
        """The number of steps; at least 1.

        Args:
            rows: to train on.
            batch_size: rows of a step.
            minutes: the budget; None: the default.
            step_seconds: of a step, as measured.
        """
        wanted = max(self.least, math.ceil(self.epochs * rows / batch_size))
        budget = 60.0 * (self.minutes if minutes is None else minutes) / step_seconds
        return max(1, min(wanted, int(budget)))


PACES: Final[dict[TrainedPart, Pace]] = {
    "clip": Pace(epochs=60, least=300, minutes=3.0),
    "denoiser": Pace(epochs=200, least=1000, minutes=10.0),
    "classifier": Pace(epochs=60, least=500, minutes=3.0),
}
"""The aims of each part; the descriptions of `steps` and `minutes` in the configuration repeat them."""


@final
@dataclass(frozen=True)
class Length:
    """How long a training is.

    Attributes:
        steps: of the optimizer.
        rows: to train on.
        batch_size: rows of a step.
        step_seconds: of a step, as measured.
    """

    steps: int
    rows: int
    batch_size: int
    step_seconds: float

    @property
    def minutes(self) -> float:
        """Of the whole training."""
        return self.steps * self.step_seconds / 60.0

    @property
    def epochs(self) -> float:
        """How often it sees each row."""
        return self.steps * self.batch_size / self.rows

    def __str__(self) -> str:
        epochs = f"{self.epochs:.1f}" if self.epochs < _FEW_EPOCHS else f"{self.epochs:,.0f}"
        return (
            f"{self.steps:,} steps of {self.batch_size} rows, {epochs} epochs of {self.rows:,} rows, "
            f"about {duration(60.0 * self.minutes)} ({1000.0 * self.step_seconds:.3g} ms a step, measured)"
        )

    def save(self, folder: Path) -> None:
        """Writes `length.json`, whole or not at all."""
        write_whole(folder / LENGTH_FILE, json.dumps(asdict(self), indent=2))

    @staticmethod
    def load(folder: Path) -> Length | None:
        """What a try before has decided in this folder."""
        try:
            return Length(**json.loads((folder / LENGTH_FILE).read_text()))
        except FileNotFoundError:
            return None
