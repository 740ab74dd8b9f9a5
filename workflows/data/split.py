"""The fixed split into training and held-out samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def stratified_held_out(groups: NDArray[np.int64], fraction: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Marks the same share of every group, drawn at random.

    Args:
        groups: (n,) group of each sample, such as its class.
        fraction: share to mark, in [0, 1]; rounded to whole samples in each group.
        rng: source of the draw.

    Returns:
        (n,) bool, true for held-out samples.
    """
    held_out = np.zeros(len(groups), np.bool_)
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        held_out[members[: round(fraction * len(members))]] = True
    return held_out
