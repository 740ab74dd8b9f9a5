r"""What a denoiser says about x_t, in any parameterization: the only place where they convert.

    x_t = alpha x0 + sigma eps,      v = alpha eps - sigma x0,      alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar)

so, with alpha^2 + sigma^2 = 1, `x0 = alpha x_t - sigma v` and `eps = sigma x_t + alpha v` at every level;
x0 from eps divides by alpha (undefined at zero terminal SNR), eps from x0 divides by sigma (undefined on
clean data). Both are refused there. The velocity of flow matching is

    u = eps - x0 = (sigma - alpha) x_t + (alpha + sigma) v,     x0 = (x_t - sigma u) / (alpha + sigma)

and is defined at every level, since alpha + sigma >= 1. With the schedule `NoiseSchedule.flow`, x_t is the path
(1 - t) x0 + t eps divided by its deviation.

References:
    Salimans & Ho, Progressive Distillation (2022), appendix D, for v.
    Lipman et al., Flow Matching (2023), for u; Esser et al., Scaling Rectified Flow Transformers (2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from diffusion_core.errors import InvalidPrediction, InvalidShape
from diffusion_core.types import Data, RowMask, Rows, expand

Parameterization: TypeAlias = Literal["x0", "eps", "v", "u"]


@dataclass(frozen=True, eq=False)
class Prediction:
    """A denoiser's answer for each row, with `x_t = alpha x0 + sigma eps`.

    Attributes:
        x_t: the noisy data `(b, ...)`.
        x0: the predicted clean data.
        eps: the predicted noise.
        alpha_bar: of each row's level, float64 `(b,)`; it stays where the levels are, by custom on the CPU,
            so that checking it never waits for an accelerator.
        variance_fraction: of learned-range variances, in [0, 1], the shape of `x_t`; else None.
        renoised: rows whose `eps` was replaced on purpose (CFG++), `(b,)`; None: no row.
    """

    x_t: Data
    x0: Data
    eps: Data
    alpha_bar: Rows
    variance_fraction: Data | None = None
    renoised: RowMask | None = None

    @classmethod
    def from_eps(cls, x_t: Data, eps: Data, alpha_bar: Rows) -> Prediction:
        """`x0 = (x_t - sigma eps) / alpha`.

        Raises:
            InvalidPrediction: some row has alpha_bar = 0, where noise says nothing about x0.
        """
        _same_shape(x_t, eps, "eps")
        _refuse(alpha_bar <= 0, "eps", "alpha_bar = 0 (zero terminal SNR)", "predict v or x0 there")
        alpha, sigma = scales = _signal_and_noise(x_t, alpha_bar)
        return _knowing(cls(x_t, x_t.addcmul(sigma, eps, value=-1).div_(alpha), eps, alpha_bar), scales)

    @classmethod
    def from_x0(cls, x_t: Data, x0: Data, alpha_bar: Rows) -> Prediction:
        """`eps = (x_t - alpha x0) / sigma`.

        Raises:
            InvalidPrediction: some row is clean data (alpha_bar = 1), where x0 says nothing about the noise.
        """
        _same_shape(x_t, x0, "x0")
        _refuse(alpha_bar >= 1, "x0", "alpha_bar = 1 (clean data)", "predict v or eps there, or start from level 1")
        alpha, sigma = scales = _signal_and_noise(x_t, alpha_bar)
        return _knowing(cls(x_t, x0, x_t.addcmul(alpha, x0, value=-1).div_(sigma), alpha_bar), scales)

    @classmethod
    def from_v(cls, x_t: Data, v: Data, alpha_bar: Rows) -> Prediction:
        """`x0 = alpha x_t - sigma v`, `eps = sigma x_t + alpha v`: defined at every level."""
        _same_shape(x_t, v, "v")
        alpha, sigma = scales = _signal_and_noise(x_t, alpha_bar)
        x0, eps = (alpha * x_t).addcmul_(sigma, v, value=-1), (sigma * x_t).addcmul_(alpha, v)
        return _knowing(cls(x_t, x0, eps, alpha_bar), scales)

    @classmethod
    def from_u(cls, x_t: Data, u: Data, alpha_bar: Rows) -> Prediction:
        """`x0 = (x_t - sigma u) / (alpha + sigma)`, `eps = (x_t + alpha u) / (alpha + sigma)`: defined everywhere."""
        _same_shape(x_t, u, "u")
        alpha, sigma = scales = _signal_and_noise(x_t, alpha_bar)
        x0, eps = x_t.addcmul(sigma, u, value=-1).div_(alpha + sigma), x_t.addcmul(alpha, u).div_(alpha + sigma)
        return _knowing(cls(x_t, x0, eps, alpha_bar), scales)

    @classmethod
    def from_output(cls, parameterization: Parameterization, x_t: Data, output: Data, alpha_bar: Rows) -> Prediction:
        """Reads a network's output as what it was trained to predict."""
        constructors = {"x0": cls.from_x0, "eps": cls.from_eps, "v": cls.from_v, "u": cls.from_u}
        return constructors[parameterization](x_t, output, alpha_bar)

    @property
    def v(self) -> Data:
        """`alpha eps - sigma x0`."""
        alpha, sigma = self._scales
        return alpha * self.eps - sigma * self.x0

    @property
    def u(self) -> Data:
        """`eps - x0`, the velocity of the path `(1 - t) x0 + t eps`."""
        return self.eps - self.x0

    def with_x0(self, x0: Data, rows: RowMask | None = None) -> Prediction:
        """Replaces x0 and re-derives eps, so that clipping x0 changes the direction too.

        Rows of clean data keep their eps: there `x_t = x0` and any eps is consistent. Rows that are
        re-noised on purpose keep theirs as well.

        Args:
            x0: the new x0 of every row, `(b, ...)`.
            rows: those whose x0 is replaced, `(b,)`; None: all. The others stay as they are, bit for bit.
        """
        eps = self._eps_beside(x0)
        if rows is None:
            return replace(self, x0=x0, eps=eps)
        chosen = expand(rows.to(x0.device), x0)
        return replace(self, x0=torch.where(chosen, x0, self.x0), eps=torch.where(chosen, eps, self.eps))

    def shifted(self, score: Data) -> Prediction:
        """Adds a guidance term to the score: `eps - sigma score`, `x0 + sigma^2 / alpha score`.

        Rows at alpha_bar = 0 stay as they are: x_T is pure noise there, and says nothing about a condition.

        Args:
            score: gradient of a log density at x_t, times its scale, the shape of `x_t`.

        References:
            Dhariwal & Nichol, Diffusion Models Beat GANs (2021), algorithm 2.
        """
        alpha, sigma = self._scales
        usable = alpha > 0
        gain = torch.where(usable, sigma**2 / torch.where(usable, alpha, 1.0), 0.0)
        return replace(self, x0=self.x0 + gain * score, eps=self.eps - torch.where(usable, sigma, 0.0) * score)

    def renoise_with(self, eps: Data, rows: RowMask) -> Prediction:
        """Lets some rows add back another noise than their own (CFG++)."""
        before = torch.zeros_like(rows) if self.renoised is None else self.renoised
        return replace(self, eps=torch.where(expand(rows, eps), eps, self.eps), renoised=before | rows)

    def rows(self, index: Tensor | slice) -> Prediction:
        """The chosen rows, by slice or integer indices, in that order."""
        return self._map(lambda part: part[index if isinstance(index, slice) else index.to(part.device)])

    def with_rows(self, index: Tensor, other: Prediction) -> Prediction:
        """Replaces the rows at these integer indices by those of another prediction."""
        rare = (self.renoised, other.renoised, self.variance_fraction, other.variance_fraction)
        if any(part is not None for part in rare):
            order = torch.arange(len(self.x_t), device=index.device)
            order[index] = len(self.x_t) + torch.arange(len(index), device=index.device)
            return Prediction.cat([self, other]).rows(order)
        return Prediction(
            self.x_t.index_copy(0, index, other.x_t),
            self.x0.index_copy(0, index, other.x0),
            self.eps.index_copy(0, index, other.eps),
            self.alpha_bar.index_copy(0, index.to(self.alpha_bar.device), other.alpha_bar),
        )

    def detach(self) -> Prediction:
        """Without its gradient."""
        return self._map(Tensor.detach)

    @staticmethod
    def cat(parts: Sequence[Prediction]) -> Prediction:
        """Stacks rows; a variance fraction survives only where every part has one."""
        fractions = [part.variance_fraction for part in parts if part.variance_fraction is not None]
        renoised = None
        if any(part.renoised is not None for part in parts):
            marks = [p.x_t.new_zeros(len(p.x_t), dtype=torch.bool) if p.renoised is None else p.renoised for p in parts]
            renoised = torch.cat(marks)
        return Prediction(
            torch.cat([part.x_t for part in parts]),
            torch.cat([part.x0 for part in parts]),
            torch.cat([part.eps for part in parts]),
            torch.cat([part.alpha_bar for part in parts]),
            torch.cat(fractions) if len(fractions) == len(parts) else None,
            renoised,
        )

    @cached_property
    def _scales(self) -> tuple[Tensor, Tensor]:
        """Alpha and sigma, as they multiply data."""
        return _signal_and_noise(self.x_t, self.alpha_bar)

    def _eps_beside(self, x0: Data) -> Data:
        """The noise with which x0 makes x_t; see `with_x0`."""
        alpha, sigma = self._scales
        # On an accelerator, looking whether a row is clean would wait for it.
        if self.renoised is None and sigma.device.type == "cpu" and bool(sigma.all()):
            return (self.x_t - alpha * x0) / sigma
        keep = sigma == 0 if self.renoised is None else (sigma == 0) | expand(self.renoised, x0)
        return torch.where(keep, self.eps, (self.x_t - alpha * x0) / torch.where(sigma > 0, sigma, 1.0))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Prediction:
        optional = (None if part is None else change(part) for part in (self.variance_fraction, self.renoised))
        return Prediction(change(self.x_t), change(self.x0), change(self.eps), change(self.alpha_bar), *optional)


def _signal_and_noise(x_t: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    alpha, sigma = alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()
    return expand(alpha.to(x_t), x_t), expand(sigma.to(x_t), x_t)


def _knowing(made: Prediction, scales: tuple[Tensor, Tensor]) -> Prediction:
    """Stores alpha and sigma so that they are not computed twice: a step has few numbers and many operations."""
    made.__dict__["_scales"] = scales
    return made


def _same_shape(x_t: Tensor, value: Tensor, name: str) -> None:
    if value.shape != x_t.shape:
        raise InvalidShape(
            f"found {name} of shape {tuple(value.shape)} for x_t of shape {tuple(x_t.shape)}: they must agree"
        )


def _refuse(at_fault: Tensor, kind: str, where: str, remedy: str) -> None:
    if at_fault.device.type == "cpu" and bool(at_fault.any()):
        rows = at_fault.nonzero().flatten().tolist()
        raise InvalidPrediction(f"{kind}-prediction is undefined at {where}, found in rows {rows}: {remedy}")
