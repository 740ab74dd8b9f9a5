"""`shapes`: generated 32 x 32 pictures of one coloured shape, with a share of combinations never trained on.

Every picture differs a little from the others of its combination in place, size, rotation, color and
background, so that a held-out picture is no copy of a training picture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workflows.data.builtin.drawing import DISTANCES, Drawing, Floats, draw
from workflows.data.builtin.wording import product, word
from workflows.data.dataset import Split
from workflows.data.split import stratified_held_out
from workflows.errors import InvalidData

SIZE = 32
COLORS = {
    "red": (224, 48, 44),
    "green": (52, 184, 66),
    "blue": (52, 88, 232),
    "yellow": (240, 214, 48),
    "purple": (168, 60, 200),
    "white": (238, 238, 238),
}
RADII = {"small": 4.2, "large": 7.0}
POSITIONS = {
    "in the center": (16.0, 16.0),
    "on the left": (9.5, 16.0),
    "on the right": (22.5, 16.0),
    "at the top": (16.0, 9.5),
    "at the bottom": (16.0, 22.5),
}
ATTRIBUTES = {
    "shape": tuple(DISTANCES),
    "color": tuple(COLORS),
    "size": tuple(RADII),
    "position": tuple(POSITIONS),
}
COMBINATIONS = product(ATTRIBUTES)
TEMPLATES = (
    "a {size} {color} {shape} {position}",
    "{size} {color} {shape}, {position}",
    "{position}, a {size} {color} {shape}",
    "{position} there is a {size} {color} {shape}",
    "a {shape} {position}, {size} and {color}",
    "one {color} {shape} of {size} size {position}",
)
"""Wordings; the first is the canonical one."""


def shapes(num_samples: int, held_out: float, unseen: float, seed: int) -> tuple[Split, Split, tuple[int, ...]]:
    """The training pictures, the held-out pictures, and the combinations that only the latter show.

    Args:
        num_samples: pictures to draw, spread evenly over the 240 combinations.
        held_out: share of each combination's pictures that is kept out of training.
        unseen: share of combinations whose pictures are all kept out of training.
        seed: of everything.

    Raises:
        InvalidData: too few pictures for one of each combination, or an attribute value left unseen.
    """
    if num_samples < len(COMBINATIONS):
        raise InvalidData(f"{num_samples} pictures of {len(COMBINATIONS)} combinations: ask for at least one of each")
    rng = np.random.default_rng(seed)
    never = _choose_unseen(unseen, rng)
    combinations = np.arange(num_samples, dtype=np.int64) % len(COMBINATIONS)
    samples = _draw_samples(combinations, np.isin(combinations, never), rng)
    kept_out = stratified_held_out(combinations, held_out, rng) | samples.unseen
    return samples.rows(np.flatnonzero(~kept_out)), samples.rows(np.flatnonzero(kept_out)), tuple(never.tolist())


def _choose_unseen(fraction: float, rng: np.random.Generator) -> NDArray[np.int64]:
    count = round(fraction * len(COMBINATIONS))
    never = np.sort(rng.permutation(len(COMBINATIONS))[:count])
    for name, allowed in ATTRIBUTES.items():
        seen = {values[name] for index, values in enumerate(COMBINATIONS) if index not in never}
        if missing := set(allowed) - seen:
            raise InvalidData(f"no training picture would show {name} {min(missing)}: lower data.unseen_combinations")
    return never


def _draw_samples(combinations: NDArray[np.int64], unseen: NDArray[np.bool_], rng: np.random.Generator) -> Split:
    values = [COMBINATIONS[index] for index in combinations]
    labels = np.array([ATTRIBUTES["shape"].index(value["shape"]) for value in values], np.int64)
    return Split(
        np.arange(len(combinations), dtype=np.int64),
        draw(_vary(values, labels, rng), SIZE),
        tuple(word(TEMPLATES, value, rng) for value in values),
        labels,
        tuple(tuple(value.values()) for value in values),
        unseen,
    )


def _vary(values: list[dict[str, str]], labels: NDArray[np.int64], rng: np.random.Generator) -> Drawing:
    def jitter(width: float, *shape: int) -> Floats:
        return rng.uniform(-width, width, (len(values), *shape)).astype(np.float32)

    colors = np.array([COLORS[value["color"]] for value in values], np.float32)
    radii = np.array([RADII[value["size"]] for value in values], np.float32)
    return Drawing(
        shapes=labels,
        centers=np.array([POSITIONS[value["position"]] for value in values], np.float32) + jitter(0.75, 2),
        radii=radii * (1 + jitter(0.06)),
        angles=jitter(0.1),
        colors=colors + jitter(12, 3),
        backgrounds=40 + jitter(12, 1) + jitter(4, 3),
        slopes=jitter(16, 2),
    )
