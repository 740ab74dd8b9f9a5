"""The noise schedules by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

SCHEDULES: Final = ("cosine", "linear", "scaled_linear", "sigmoid", "flow")
"""Names of the constructors of `diffusion_core.schedule.NoiseSchedule`; the first is the default."""

if TYPE_CHECKING:
    ScheduleName: TypeAlias = str
else:
    ScheduleName = Literal[SCHEDULES]
