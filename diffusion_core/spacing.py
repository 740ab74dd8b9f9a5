"""Which levels a sampler visits: a descending list from a noisy level to 0.

The names are those of Lin et al. (2023), table 2, shifted by one since level 0 is clean data here: the
levels of `trailing(schedule, 50)` are 1000, 980, .., 20, 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from diffusion_core.errors import InvalidLevels
from diffusion_core.schedule import NoiseSchedule


def trailing(schedule: NoiseSchedule, num_steps: int) -> tuple[int, ...]:
    """`round(T - i T / n)`: starts at T, the right choice for few steps.

    Raises:
        InvalidLevels: `num_steps` outside `1 .. T` (also for the other spacings).
    """
    count, last = _checked(schedule, num_steps), schedule.num_levels
    return (*(round(last - i * last / count) for i in range(count)), 0)


def leading(schedule: NoiseSchedule, num_steps: int, offset: int = 0) -> tuple[int, ...]:
    """`1 + i (T // n) + offset`: the common choice of older code; it never visits T.

    Args:
        schedule: gives T.
        num_steps: number of network evaluations.
        offset: shifts every visited level (`steps_offset` of published checkpoints).
    """
    stride = schedule.num_levels // _checked(schedule, num_steps)
    return checked_levels(schedule, [*(1 + i * stride + offset for i in reversed(range(num_steps))), 0])


def linspace(schedule: NoiseSchedule, num_steps: int) -> tuple[int, ...]:
    """`1 + round((T - 1) i / (n - 1))`: evenly from T to 1, both included (T alone for one step)."""
    count, last = _checked(schedule, num_steps), schedule.num_levels
    if count == 1:
        return (last, 0)
    return (*(1 + round((last - 1) * i / (count - 1)) for i in reversed(range(count))), 0)


def quadratic(schedule: NoiseSchedule, num_steps: int) -> tuple[int, ...]:
    """`floor(T i^2 / n^2)`, dense near the data (DDIM, appendix D.2); never two equal levels."""
    count, last = _checked(schedule, num_steps), schedule.num_levels
    return (*(max(last * i * i // (count * count), i) for i in range(count, 0, -1)), 0)


def checked_levels(schedule: NoiseSchedule, levels: Sequence[int]) -> tuple[int, ...]:
    """A user's own list, checked: strictly descending, inside the schedule, ending in 0.

    Raises:
        InvalidLevels: it is not; the message names the place.
    """
    found = tuple(int(level) for level in levels)
    if len(found) < 2 or found[-1] != 0:
        raise InvalidLevels(f"found levels {_short(found)}, wanted at least one noisy level and then a final 0")
    if found[0] > schedule.num_levels:
        raise InvalidLevels(f"level {found[0]} is above the schedule's last level {schedule.num_levels}")
    for position, (here, after) in enumerate(itertools.pairwise(found)):
        if after >= here:
            raise InvalidLevels(f"levels must descend: found {here} then {after} at position {position}")
    return found


def _checked(schedule: NoiseSchedule, num_steps: int) -> int:
    if not 1 <= num_steps <= schedule.num_levels:
        raise InvalidLevels(f"found num_steps={num_steps}, wanted 1..{schedule.num_levels}")
    return num_steps


def _short(levels: tuple[int, ...]) -> str:
    return str(list(levels)) if len(levels) <= 6 else f"[{levels[0]}, {levels[1]}, .., {levels[-1]}]"
