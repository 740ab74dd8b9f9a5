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

from workflows.evaluate.metrics.estimate import Estimate, estimate, mean_of

_NEIGHBOURS: Final = 3
_SUBSETS: Final = 50
_SUBSET_SIZE: Final = 100
_LINES: Final = 64
_QUANTILES: Final = 128


LEAST: Final = 2
"""Pictures of a set with fewer have no covariance, and so no distance."""


def fidelity(real: Tensor, drawn: Tensor) -> dict[str, float]:
    """All distances of two sets of pictures.

    Args:
        real: unit CLIP vectors `(n, e)`.
        drawn: unit CLIP vectors `(m, e)`.

    Returns:
        `clip_fd`, `clip_kd`, `mind`, `precision`, `recall`, `density`, `coverage`; nothing where a set has fewer than
        `LEAST` pictures.
    """
    return {name: found.value for name, found in fidelity_estimates(real, drawn).items()}


def fidelity_estimates(real: Tensor, drawn: Tensor) -> dict[str, Estimate]:
    """The same with their intervals, over the choice of the drawn pictures; of recall and coverage, of the real ones.

    Holds a few matrices of `n x m` and `m x m` numbers.
    """
    if min(len(real), len(drawn)) < LEAST:
        return {}
    there, here = moments(real), moments(drawn)
    kernel, slices = _Kernel(there, here), _Slices(there, here)
    distances = {
        "clip_fd": estimate(frechet(there, here), lambda rows: frechet(there, here[rows]), len(here)),
        "clip_kd": estimate(clip_kd(real, drawn), kernel.of, len(here)),
        "mind": estimate(mind(real, drawn), slices.of, len(here)),
    }
    found = neighbourhoods(real, drawn)
    return distances | {name: mean_of(values) for name, values in found.items()}


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


def mind(real: Tensor, drawn: Tensor) -> float:
    """Mean over random directions u of the squared Wasserstein-2 distance of `u . features` of both sets.

        MIND = mean_u integral_0^1 (F_real^-1(q) - F_drawn^-1(q))^2 dq

    A Frechet distance sees two moments, this sees the shape of both sets, and needs no large number of pictures.

    References:
        MIND (arXiv 2605.06797): sliced Wasserstein distance on features.
    """
    slices = _Slices(moments(real), moments(drawn))
    return slices.of(np.arange(len(drawn)))


def precision_recall(real: Tensor, drawn: Tensor, neighbours: int = _NEIGHBOURS) -> dict[str, float]:
    """`precision` and `recall` of `neighbourhoods`."""
    found = neighbourhoods(real, drawn, neighbours)
    return {name: float(found[name].mean()) for name in ("precision", "recall")}


def neighbourhoods(real: Tensor, drawn: Tensor, neighbours: int = _NEIGHBOURS) -> dict[str, NDArray[np.float64]]:
    """Whether each picture is among those of the other set.

    A picture is among others when it is no farther from one of them than that one's k-th nearest of its own set.

    Args:
        real: vectors `(n, e)`.
        drawn: vectors `(m, e)`.
        neighbours: k.

    Returns:
        `precision` `(m,)`: drawn ones among the real; `recall` `(n,)`: real ones among the drawn (Kynkaanniemi et al.,
        2019); `density` `(m,)`: number of real neighbourhoods around each drawn one, over k; `coverage` `(n,)`: real
        ones with a drawn one in their neighbourhood (Naeem et al., 2020).
    """
    a, b = real.double(), drawn.double()
    between = torch.cdist(a, b)
    within_real = (between <= _radius(a, neighbours)[:, None]).double()
    within_drawn = (between <= _radius(b, neighbours)[None, :]).double()
    found = {
        "precision": within_real.amax(dim=0),
        "recall": within_drawn.amax(dim=1),
        "density": within_real.sum(dim=0) / min(neighbours, max(1, len(a) - 1)),
        "coverage": within_real.amax(dim=1),
    }
    return {name: values.cpu().numpy() for name, values in found.items()}


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


class _Kernel:
    """The squared MMD under the cubic kernel of resampled drawn features, from kernel matrices that are made once."""

    def __init__(self, real: NDArray[np.float64], drawn: NDArray[np.float64]) -> None:
        self._width = real.shape[1]
        self._drawn, self._between = self._kernel(drawn, drawn), self._kernel(real, drawn).mean(axis=0)
        within, n = self._kernel(real, real), len(real)
        self._real = (within.sum() - np.trace(within)) / (n * (n - 1))

    def of(self, rows: NDArray[np.int64]) -> float:
        """Of the drawn features in these rows; a picture is compared with itself in no pair."""
        count = np.bincount(rows, minlength=len(self._drawn)).astype(np.float64)
        own = np.diag(self._drawn)
        pairs = count @ self._drawn @ count - (count**2) @ own
        number = len(rows) ** 2 - (count**2).sum()
        return float(self._real + pairs / max(number, 1.0) - 2.0 * (count @ self._between) / len(rows))

    def _kernel(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = (a @ b.T / self._width + 1.0) ** 3
        return found


class _Slices:
    """Both sets on the same random lines."""

    def __init__(self, real: NDArray[np.float64], drawn: NDArray[np.float64]) -> None:
        lines = np.random.default_rng(0).normal(size=(real.shape[1], _LINES))
        lines /= np.linalg.norm(lines, axis=0)
        self._at = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
        self._real, self._drawn = self._quantiles(real @ lines), drawn @ lines

    def of(self, rows: NDArray[np.int64]) -> float:
        """The mean squared distance of their quantiles, of the drawn features in these rows."""
        return float(((self._real - self._quantiles(self._drawn[rows])) ** 2).mean())

    def _quantiles(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.sort(places, axis=0)[(self._at * len(places)).astype(np.int64)]
        return found


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
    if k == 0:
        return torch.zeros(len(x), dtype=x.dtype, device=x.device)
    return torch.cdist(x, x).kthvalue(k + 1, dim=1).values
