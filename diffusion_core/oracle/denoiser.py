"""A mixture as a denoiser and as a noisy classifier, both exact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core.condition import NO_LABEL, Condition
from diffusion_core.denoiser import check_rows
from diffusion_core.errors import InvalidCondition
from diffusion_core.oracle.mixture import GaussianMixture
from diffusion_core.prediction import Prediction
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.types import Data, Levels, Rows


@final
class OracleDenoiser:
    """The exact denoiser of a mixture, and its exact noisy classifier.

    A row whose condition is present and has a label gets the posterior mean within that class; others that of all.

    Args:
        mixture: the clean data.
        schedule: gives alpha_bar.
    """

    def __init__(self, mixture: GaussianMixture, schedule: NoiseSchedule) -> None:
        self.mixture, self.schedule = mixture, schedule

    @property
    def settings(self) -> Mapping[str, float]:
        """None of its own."""
        return {}

    def __call__(self, x_t: Data, level: Levels, condition: Condition | None) -> Prediction:
        """See `Denoiser.__call__`.

        Raises:
            InvalidCondition: a label that no component has.
        """
        check_rows(x_t, level, condition)
        return self.mixture.denoise(x_t, self.schedule.at(level), _seen_labels(condition))

    def score(self, x_t: Data, level: Levels, condition: Condition | None = None) -> Data:
        """`grad log p(x_t)`, of the class for rows that see a label; level 0 included."""
        alpha_bar, label = self.schedule.at(level), _seen_labels(condition)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            return torch.autograd.grad(self.mixture.log_prob(x, alpha_bar, label).sum(), x)[0]

    def log_prob(self, x_t: Data, level: Levels, condition: Condition | None = None) -> Rows:
        """`log p(x_t)` in nats, of the class for rows that see a label."""
        return self.mixture.log_prob(x_t, self.schedule.at(level), _seen_labels(condition))

    def log_density(self, x_t: Data, level: Levels, condition: Condition) -> Rows:
        """`log p(label | x_t)`, also of labels that the denoiser does not see: what `GradientGuidance` wants.

        Raises:
            InvalidCondition: a row without a label, or with one that no component has.
        """
        label = condition.label
        if label is None or bool((label < 0).any()):
            rows = "all" if label is None else (label < 0).nonzero().flatten().tolist()
            raise InvalidCondition(f"a class density needs a label, rows without one: {rows}")
        alpha_bar = self.schedule.at(level)
        within = self.mixture.log_prob(x_t, alpha_bar, label)
        joint = self.mixture.log_prior(label).to(x_t.device) + within
        return (joint - self.mixture.log_prob(x_t, alpha_bar)).to(x_t.dtype)


def energy_distance(x: Float[Tensor, "n ..."], y: Float[Tensor, "m ..."]) -> float:
    """`2 E|x - y| - E|x - x'| - E|y - y'|` of two samples, unbiased: 0 in expectation if they are of one distribution.

    References:
        Székely & Rizzo, Energy statistics (2013).
    """

    def mean_distance(a: Tensor, b: Tensor, pairs: int) -> float:
        return float(torch.cdist(a.flatten(1), b.flatten(1), compute_mode="donot_use_mm_for_euclid_dist").sum() / pairs)

    n, m = len(x), len(y)
    return 2.0 * mean_distance(x, y, n * m) - mean_distance(x, x, n * (n - 1)) - mean_distance(y, y, m * (m - 1))


def _seen_labels(condition: Condition | None) -> Tensor | None:
    if condition is None or condition.label is None:
        return None
    return torch.where(condition.present.to(condition.label.device), condition.label, NO_LABEL)
