"""The share of the steps that an edit makes."""

from __future__ import annotations

import inspect

import pytest

from diffusion_core.errors import InvalidPlan
from diffusion_core.strength import DEFAULT_STRENGTH, steps_of_strength
from diffusion_core.trajectory import image_to_image


@pytest.mark.parametrize(
    ("strength", "num_steps", "made"),
    [(1.0, 50, 50), (0.7, 10, 7), (0.5, 10, 5), (0.02, 50, 1), (0.001, 50, 1), (1e-9, 1, 1), (0.99, 2, 2)],
)
def test_steps(strength, num_steps, made):
    """At least one step is made, however weak the edit: without it the data would come back unchanged."""
    assert steps_of_strength(strength, num_steps) == made


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.001, float("nan"), float("inf")])
def test_other_strengths_are_refused(strength):
    with pytest.raises(InvalidPlan, match="strength"):
        steps_of_strength(strength, 10)


def test_the_default_is_one_for_all():
    """The HTTP service promises 0.7."""
    assert DEFAULT_STRENGTH == 0.7
    assert inspect.signature(image_to_image).parameters["strength"].default == DEFAULT_STRENGTH
