"""How far drawn pictures are from real ones, in the eyes of a CLIP image tower.

CLIP-FD and CLIP-KD are torchmetrics' Frechet and kernel distances with the model's own CLIP in the place of
Inception: numbers of one CLIP compare with each other, and never with a published FID or KID.
Features are unit vectors times sqrt(e), so that a coordinate is about 1 whatever their width e.
"""

from __future__ import annotations

import math
import warnings
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_NEIGHBOURS: Final = 3
_SUBSETS: Final = 50
_SUBSET_SIZE: Final = 100


def fidelity(real: Tensor, drawn: Tensor) -> dict[str, float]:
    """All distances of two sets of pictures.

    Args:
        real: unit CLIP vectors `(n, e)`.
        drawn: unit CLIP vectors `(m, e)`.

    Returns:
        `clip_fd`, `clip_kd`, `precision`, `recall`.
    """
    found = precision_recall(real, drawn)
    return {"clip_fd": clip_fd(real, drawn), "clip_kd": clip_kd(real, drawn)} | found


def clip_fd(real: Tensor, drawn: Tensor) -> float:
    """`|mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^1/2)` of the features (Heusel et al., 2017, with CLIP)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Given(real.shape[1])).set_dtype(torch.float64)
    metric.update(_scaled(real), real=True)
    metric.update(_scaled(drawn), real=False)
    return max(0.0, float(metric.compute()))


def clip_kd(real: Tensor, drawn: Tensor) -> float:
    """Unbiased squared MMD of the features under the cubic kernel (Binkowski et al., 2018, with CLIP).

    A mean over random subsets, whose choice depends on nothing outside.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(_SUBSET_SIZE, len(real), len(drawn))
    with warnings.catch_warnings():
        # It keeps all features in memory, as is wanted.
        warnings.simplefilter("ignore", UserWarning)
        metric = KernelInceptionDistance(feature=_Given(real.shape[1]), subsets=_SUBSETS, subset_size=size)
    metric.update(_scaled(real), real=True)
    metric.update(_scaled(drawn), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mean, _ = metric.compute()
    return float(mean)


def precision_recall(real: Tensor, drawn: Tensor, neighbours: int = _NEIGHBOURS) -> dict[str, float]:
    """Share of drawn pictures among the real ones, and of real ones among the drawn (Kynkaanniemi et al., 2019).

    A picture is among others when it is no farther from one of them than that one's k-th nearest of its own set.

    Args:
        real: vectors `(n, e)`.
        drawn: vectors `(m, e)`.
        neighbours: k.
    """
    a, b = real.double(), drawn.double()
    between = torch.cdist(a, b)
    within_real = between <= _radius(a, neighbours)[:, None]
    within_drawn = between <= _radius(b, neighbours)[None, :]
    return {
        "precision": float(within_real.any(dim=0).double().mean()),
        "recall": float(within_drawn.any(dim=1).double().mean()),
    }


def moments(vectors: Tensor) -> NDArray[np.float64]:
    """Features of unit vectors as float64: what `frechet` takes."""
    features: NDArray[np.float64] = _scaled(vectors).cpu().numpy()
    return features


def frechet(real: NDArray[np.float64], drawn: NDArray[np.float64]) -> float:
    """CLIP-FD of features, fast enough for a bootstrap; equal to `clip_fd`."""
    mean_gap = real.mean(axis=0) - drawn.mean(axis=0)
    s1, s2 = np.cov(real, rowvar=False), np.cov(drawn, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(s1 @ s2).astype(complex)).real.sum()
    return max(0.0, float(mean_gap @ mean_gap + np.trace(s1) + np.trace(s2) - 2.0 * roots))


class _Given(nn.Module):
    """The feature network of torchmetrics, for features that are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _scaled(vectors: Tensor) -> Tensor:
    return vectors.double() * math.sqrt(vectors.shape[1])


def _radius(x: Tensor, neighbours: int) -> Tensor:
    """Distance of each row to its k-th nearest other row."""
    k = min(neighbours, len(x) - 1)
    return torch.cdist(x, x).kthvalue(k + 1, dim=1).values
