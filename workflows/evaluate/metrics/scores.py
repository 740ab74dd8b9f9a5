"""What is counted about judged pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from workflows.data.dataset import DataInfo


def accuracy(judged: NDArray[np.int64], targets: NDArray[np.int64], info: DataInfo) -> dict[str, float]:
    """Share of pictures judged as asked: `all` attributes, and where there are several each by its name.

    Args:
        judged: (n, attributes).
        targets: (n, attributes).
        info: names the attributes.
    """
    right = judged == targets
    figures = {"all": float(right.all(axis=1).mean())}
    if len(info.attributes) > 1:
        figures |= {name: float(right[:, place].mean()) for place, name in enumerate(info.attributes)}
    return figures


def histogram(judged: NDArray[np.int64], info: DataInfo) -> dict[str, float]:
    """Share of pictures judged to be of each class (value of the first attribute)."""
    counts = np.bincount(judged[:, 0], minlength=len(info.class_names))
    return {name: float(count / max(1, len(judged))) for name, count in zip(info.class_names, counts, strict=True)}


def diversity(features: Tensor, prompts: Sequence[int]) -> float:
    """How much pictures of the same prompt differ.

        mean over prompts of the mean over pairs i < j of the same prompt of 1 - cos(v_i, v_j)

    with v the CLIP image vectors. Prompts with one picture do not count.

    Args:
        features: unit vectors `(n, e)`.
        prompts: n numbers, equal for the same prompt.

    Returns:
        A number in [0, 2]; NaN if no prompt has two pictures.
    """
    found = diversities(features, prompts)
    return float(found.mean()) if len(found) else float("nan")


def diversities(features: Tensor, prompts: Sequence[int]) -> NDArray[np.float64]:
    """How much the pictures of each prompt differ, of those with two or more: see `diversity`."""
    groups: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(row)
    return np.array([_mean_distance(features[rows].double()) for rows in groups.values() if len(rows) > 1])


def _mean_distance(v: Tensor) -> float:
    """Mean of 1 - v_i v_j over i != j, from the sum of all vectors."""
    count = len(v)
    same = float(v.square().sum())
    return 1.0 - (float(v.sum(dim=0).square().sum()) - same) / (count * (count - 1))


def clip_score(images: Tensor, texts: Tensor) -> float:
    """`100 mean max(cos(v_i, u_i), 0)` of pictures and their own prompts (Hessel et al., CLIPScore, 2021, with w = 1).

    Args:
        images: unit vectors v `(n, e)`.
        texts: unit vectors u `(n, e)`.
    """
    return float(100.0 * (images * texts).sum(dim=1).clamp(min=0.0).mean())
