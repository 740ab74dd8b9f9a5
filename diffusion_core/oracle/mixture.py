"""Mixtures of Gaussians: sampling, exact density, posterior mean and variance. Equations: see the package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from diffusion_core import noise
from diffusion_core.condition import NO_LABEL
from diffusion_core.errors import InvalidCondition, InvalidShape
from diffusion_core.prediction import Prediction
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.spacing import checked_levels
from diffusion_core.types import Data, Rows


@final
@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """A distribution of clean data: `sum_k weights_k N(means_k, deviations_k^2 I)`.

    Attributes:
        weights: positive, float64 `(k,)`; they are divided by their sum.
        means: float64 `(k, ...)`, any data shape.
        deviations: positive, float64 `(k,)`.
        classes: the class of each component, `(k,)`.

    Raises:
        InvalidShape: shapes or types disagree, or a number is not positive.
    """

    weights: Float64[Tensor, "k"]
    means: Float64[Tensor, "k ..."]
    deviations: Float64[Tensor, "k"]
    classes: Int[Tensor, "k"]

    def __post_init__(self) -> None:
        parts = (self.weights, self.deviations, self.classes)
        if self.means.dim() < 2 or any(part.shape != self.means.shape[:1] for part in parts):
            raise InvalidShape(f"found means {tuple(self.means.shape)}, wanted (k, ...), and k of all other parts")
        if not all(bool((part > 0).all()) for part in parts[:2]):
            raise InvalidShape("weights and deviations must be positive: leave a component out instead")

    @classmethod
    def gaussian(cls, mean: Float[Tensor, "..."], deviation: float) -> GaussianMixture:
        """One Gaussian, of class 0."""
        one = torch.ones(1, dtype=torch.float64)
        return cls(one, mean.double()[None], one * deviation, torch.zeros(1, dtype=torch.int64))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row of data."""
        return tuple(self.means.shape[1:])

    @property
    def entropy(self) -> float:
        """In nats, of one Gaussian: `d / 2 log(2 pi e s^2)`.

        Raises:
            InvalidShape: a mixture of several, whose entropy has no closed form.
        """
        self._require_one("an entropy")
        return 0.5 * math.prod(self.shape) * math.log(2.0 * math.pi * math.e * float(self.deviations[0]) ** 2)

    def sample(self, num_rows: int, seed: int, label: int | None = None) -> Data:
        """Draws clean data, of one class if `label` is given, float64 `(num_rows, ...)`."""
        known = self if label is None else self._of_class(label)
        edges = (known.weights / known.weights.sum()).cumsum(0)[:-1]
        place = noise.uniform(seed, noise.ORACLE, 0, (num_rows,), dtype=torch.float64)
        chosen = torch.bucketize(place, edges, right=True)
        z = noise.normal(seed, noise.ORACLE, 1, (num_rows, *self.shape), dtype=torch.float64)
        return known.means[chosen] + (known.deviations[chosen] * z.movedim(0, -1)).movedim(-1, 0)

    def log_prior(self, label: Int[Tensor, "b"]) -> Rows:
        """Log of the share of each row's class in the mixture."""
        members = label.to(self.classes.device)[:, None] == self.classes
        return (self.weights * members).sum(dim=1).log() - self.weights.sum().log()

    def log_prob(self, x_t: Data, alpha_bar: Rows | None = None, label: Int[Tensor, "b"] | None = None) -> Rows:
        """Exact log density in nats, of clean data or at some `alpha_bar`, of a class where `label >= 0`."""
        return self._log_shares(x_t, alpha_bar, label).logsumexp(dim=1)

    def denoise(self, x_t: Data, alpha_bar: Rows, label: Int[Tensor, "b"] | None = None) -> Prediction:
        """The posterior mean E[x0 | x_t], and the eps that goes with it, at any `alpha_bar` in [0, 1]."""
        share = self._log_shares(x_t, alpha_bar, label).softmax(dim=1)[..., None]
        offset, alpha, spread, total = self._parts(x_t, alpha_bar)
        x0 = (share * (self._flat_means(x_t) + alpha * spread / total * offset)).sum(dim=1)
        eps = (share * (1.0 - alpha**2).sqrt() / total * offset).sum(dim=1)
        return Prediction(x_t, x0.to(x_t.dtype).view_as(x_t), eps.to(x_t.dtype).view_as(x_t), alpha_bar)

    def x0_variance(self, x_t: Data, alpha_bar: Rows, label: Int[Tensor, "b"] | None = None) -> Data:
        """The diagonal of the posterior covariance of x0 given x_t, the shape of `x_t`.

        Its mean over data and dimensions is what `ddpm(.., variance="optimal", x0_variance=..)` wants.
        """
        share = self._log_shares(x_t, alpha_bar, label).softmax(dim=1)[..., None]
        offset, alpha, spread, total = self._parts(x_t, alpha_bar)
        centre = self._flat_means(x_t) + alpha * spread / total * offset
        between = (share * (centre - (share * centre).sum(dim=1, keepdim=True)) ** 2).sum(dim=1)
        within = (share * spread * (1.0 - alpha**2) / total).sum(dim=1)
        return (between + within).to(x_t.dtype).view_as(x_t)

    def ddim_map(self, schedule: NoiseSchedule, levels: Sequence[int], x_t: Data) -> Data:
        """Where deterministic DDIM ends, for one Gaussian: `mu + F (x_t - sqrt(alpha_bar_t) mu)`.

        F = prod (sqrt(a a') s^2 + sqrt((1 - a)(1 - a'))) / (a s^2 + 1 - a) over the steps from a to a'.

        Args:
            schedule: gives alpha_bar.
            levels: descending, ending in 0.
            x_t: data at the first of them, `(b, ...)`.

        Raises:
            InvalidShape: a mixture of several.
        """
        self._require_one("a closed DDIM map")
        table = schedule.at(checked_levels(schedule, levels))
        before, after, variance = table[:-1], table[1:], self.deviations[0] ** 2
        numerator = (before * after).sqrt() * variance + ((1.0 - before) * (1.0 - after)).sqrt()
        factor = (numerator / (before * variance + 1.0 - before)).prod()
        mean = self.means[0].to(x_t)
        return mean + float(factor) * (x_t - math.sqrt(float(table[0])) * mean)

    def ode_map(self, x_t: Data, alpha_bar: float, label: int = NO_LABEL, num_steps: int = 400) -> Data:
        """Where the probability flow ends: `dy / dsigma = eps` for `y = x_t / sqrt(alpha_bar)`, by Runge-Kutta 4.

        Args:
            x_t: data at `alpha_bar`, `(b, ...)`.
            alpha_bar: of the start, in (0, 1).
            label: of the class to end in; -1: of all.
            num_steps: even steps of log sigma down to sigma = 1e-4, where the predicted x0 takes over.
        """
        labels = torch.full((len(x_t),), label)

        def slope(y: Tensor, log_sigma: float) -> Tensor:
            here = 1.0 / (1.0 + math.exp(2.0 * log_sigma))
            rows = torch.full((len(x_t),), here, dtype=torch.float64)
            return math.exp(log_sigma) * self.denoise(math.sqrt(here) * y, rows, labels).eps

        y = x_t.double() / math.sqrt(alpha_bar)
        log_sigma, end = 0.5 * math.log((1.0 - alpha_bar) / alpha_bar), math.log(1e-4)
        size = (end - log_sigma) / num_steps
        for _ in range(num_steps):
            first = slope(y, log_sigma)
            second = slope(y + size / 2 * first, log_sigma + size / 2)
            third = slope(y + size / 2 * second, log_sigma + size / 2)
            fourth = slope(y + size * third, log_sigma + size)
            y, log_sigma = y + size / 6 * (first + 2 * second + 2 * third + fourth), log_sigma + size
        return (y - slope(y, end)).to(x_t.dtype)

    def _log_shares(self, x_t: Data, alpha_bar: Rows | None, label: Tensor | None) -> Tensor:
        """`log(pi_k N(x_t; sqrt(alpha_bar) mu_k, v_k I))`, `(b, k)`; other classes' components have none."""
        offset, _, _, total = self._parts(x_t, alpha_bar)
        weights = self.weights.to(x_t.device).log().expand(len(x_t), -1)
        if label is not None:
            asked = label.to(x_t.device)[:, None]
            other = (asked != self.classes.to(x_t.device)) & (asked >= 0)
            if bool(other.all(dim=1).any()):
                rows = other.all(dim=1).nonzero().flatten().tolist()
                raise InvalidCondition(
                    f"rows {rows} ask for a class that is not there, wanted one of {self._class_names()}"
                )
            weights = weights.masked_fill(other, -math.inf)
        exponent = -0.5 * (offset.square() / total).sum(dim=2)
        scale = -0.5 * offset.shape[2] * (2.0 * math.pi * total[..., 0]).log()
        return weights.log_softmax(dim=1) + scale + exponent

    def _parts(self, x_t: Data, alpha_bar: Rows | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`x_t - alpha mu_k` `(b, k, d)`, alpha `(b, 1, 1)`, s_k^2 `(1, k, 1)` and v_k `(b, k, 1)`, in float64."""
        if x_t.shape[1:] != self.means.shape[1:]:
            raise InvalidShape(f"found rows of shape {tuple(x_t.shape[1:])}, this mixture has {self.shape}")
        table = torch.ones(len(x_t), dtype=torch.float64) if alpha_bar is None else alpha_bar
        signal = table.to(x_t.device, torch.float64)[:, None, None]
        spread = self.deviations.to(x_t.device).square()[None, :, None]
        alpha = signal.sqrt()
        offset = x_t.double().flatten(1)[:, None] - alpha * self._flat_means(x_t)
        return offset, alpha, spread, signal * spread + 1.0 - signal

    def _flat_means(self, x_t: Data) -> Tensor:
        return self.means.to(x_t.device).flatten(1)[None]

    def _of_class(self, label: int) -> GaussianMixture:
        keep = self.classes == label
        if not bool(keep.any()):
            raise InvalidCondition(f"found class {label}, this mixture has {self._class_names()}")
        return GaussianMixture(self.weights[keep], self.means[keep], self.deviations[keep], self.classes[keep])

    def _class_names(self) -> list[int]:
        return sorted(set(self.classes.tolist()))

    def _require_one(self, what: str) -> None:
        if len(self.weights) != 1:
            raise InvalidShape(f"{what} needs one Gaussian, this mixture has {len(self.weights)} components")
