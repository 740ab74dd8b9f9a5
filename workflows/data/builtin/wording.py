"""Several wordings for one combination of attribute values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

CAPTIONS_PER_SAMPLE = 3


def word(templates: Sequence[str], values: Mapping[str, str], rng: np.random.Generator) -> tuple[str, ...]:
    """`CAPTIONS_PER_SAMPLE` different wordings, drawn at random from the templates."""
    chosen = rng.choice(len(templates), CAPTIONS_PER_SAMPLE, replace=False)
    return tuple(templates[i].format(**values) for i in chosen)


def product(attributes: Mapping[str, tuple[str, ...]]) -> list[dict[str, str]]:
    """Every combination of attribute values, the last attribute varying fastest."""
    return [dict(zip(attributes, values, strict=True)) for values in itertools.product(*attributes.values())]
