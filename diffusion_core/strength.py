"""How much of given data an edit makes anew: its strength, the share of the sampler's steps that it makes."""

from __future__ import annotations

from typing import Final

from diffusion_core.errors import InvalidPlan

DEFAULT_STRENGTH: Final = 0.7
"""Keeps the coarse composition of a picture and draws the rest anew."""


def steps_of_strength(strength: float, num_steps: int) -> int:
    """The last steps of a plan that an edit makes: `max(1, round(strength num_steps))` (SDEdit).

    Args:
        strength: in (0, 1]; 1 makes all steps and forgets nearly all of the given data.
        num_steps: of the whole plan, at least 1.

    Returns:
        In 1..num_steps.

    Raises:
        InvalidPlan: strength outside (0, 1].
    """
    if not 0.0 < strength <= 1.0:
        raise InvalidPlan(f"found strength={strength}, wanted a number in (0, 1]")
    return max(1, round(strength * num_steps))
