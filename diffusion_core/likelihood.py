r"""How well a model explains data: the terms of the variational bound, and bits per dimension.

    -log p(x0) <= L_T + sum_{t >= 2} L_{t-1} + L_0
    L_T = KL(q(x_T | x0) || N(0, I)),   L_{t-1} = KL(q(x_s | x_t, x0) || p(x_s | x_t)),   L_0 = -log p(x0 | x_1)

References:
    Lecture Notes in Probabilistic Diffusion Models (arXiv 2312.10393), ELBO; Ho et al. (2020), eq. 5-7 and 13;
    Nichol & Dhariwal, Improved DDPM (2021), eq. 15, for the learned variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias, final

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from diffusion_core import noise
from diffusion_core.condition import Condition
from diffusion_core.denoiser import Denoiser
from diffusion_core.errors import InvalidLevels, InvalidPrediction, InvalidShape, NonFinite
from diffusion_core.prediction import Prediction
from diffusion_core.sampler import Variance, ddpm
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.types import Data, Levels, Rows, expand

Decoder: TypeAlias = Literal["discretized", "discretized_tanh", "gaussian"]
Column: TypeAlias = Float64[Tensor, "steps"]
RowTerms: TypeAlias = Float64[Tensor, "b"]

# Half the distance between two of 256 values in [-1, 1].
_BIN = 1.0 / 255.0


@final
@dataclass(frozen=True, eq=False)
class ReverseProcess:
    """The Gaussians that the variational bound compares, over a list of levels t_0 > .. > t_n = 0.

    Attributes:
        levels: the list.
        x0_weight: what x0 weighs in the mean of q(x_s | x_t, x0), per step.
        log_true: log variance of q; the step into 0 takes the entry before it, as its own is log 0.
        log_low: log variance of p; lower end if it is learned.
        log_high: upper end of a learned variance.
    """

    levels: tuple[int, ...]
    x0_weight: Column
    log_true: Column
    log_low: Column
    log_high: Column | None = None

    @classmethod
    def of(
        cls,
        schedule: NoiseSchedule,
        levels: Sequence[int] | None = None,
        variance: Variance = "posterior",
        x0_variance: Sequence[float] | None = None,
    ) -> ReverseProcess:
        """The process that `ddpm` of the same arguments samples, with its errors; `levels` None: all."""
        plan = ddpm(schedule, range(schedule.num_levels, -1, -1) if levels is None else levels, variance, x0_variance)
        before, after = plan.alpha_bar[:-1], plan.alpha_bar[1:]
        beta = 1.0 - before / after
        true = beta * (1.0 - after) / (1.0 - before)
        true[-1] = true[-2] if len(true) > 1 else beta[-1]
        low, high = true.clone(), None
        if variance == "learned_range":
            high = beta
        elif variance != "posterior":
            low[:-1] = plan.D[:-1] ** 2
        if x0_variance is not None:
            low[-1] = x0_variance[-1]
        weight = after.sqrt() * beta / (1.0 - before)
        return cls(plan.levels, weight, true.log(), low.log(), None if high is None else high.log())

    def step_of(self, level: Levels) -> Int[Tensor, "b"]:
        """Where in the list each row is; InvalidLevels where it is not, or at its end."""
        known = (level >= 1) & (level <= self.levels[0])
        step = self._steps.to(level.device)[level.where(known, 0)]
        if bool((step < 0).any()):
            missing = sorted(set(level[step < 0].tolist()))
            raise InvalidLevels(f"found levels {missing}, which this reverse process does not start a step from")
        return step

    @cached_property
    def _steps(self) -> Int[Tensor, "levels"]:
        """The place of each level in the list, -1 where there is none."""
        table = torch.full((self.levels[0] + 1,), -1)
        table[list(self.levels[:-1])] = torch.arange(len(self.levels) - 1)
        return table


def vlb_terms(
    process: ReverseProcess, prediction: Prediction, x0: Data, level: Levels, decoder: Decoder = "discretized"
) -> Rows:
    """L_{t-1} of each row in nats, summed over its dimensions; L_0 for rows at the last noisy level.

    Args:
        process: the variances.
        prediction: of the rows, at x_t drawn from q(x_t | x0).
        x0: the truth, `(b, ...)`.
        level: `(b,)`, each a noisy level of the process.
        decoder: p(x0 | x_1): `discretized`, of 8-bit data in [-1, 1]; `discretized_tanh`, the same with the usual
            approximation, to compare with published numbers; `gaussian`, a density of real-valued data.

    Raises:
        InvalidLevels: a level that the process does not visit.
        InvalidPrediction: a learned variance that the network does not have.
    """
    step = process.step_of(level)

    def per_row(column: Tensor) -> Tensor:
        return expand(column[step].to(x0), x0)

    log_ratio = per_row(process.log_low - process.log_true)
    if process.log_high is not None:
        if prediction.variance_fraction is None:
            raise InvalidPrediction("a learned_range variance needs a network with a learned variance")
        log_ratio = log_ratio + prediction.variance_fraction * per_row(process.log_high - process.log_low)
    scale = per_row(process.x0_weight**2 / process.log_true.exp())
    distance = scale * (x0 - prediction.x0).square() * torch.exp(-log_ratio)
    terms = 0.5 * (log_ratio + torch.expm1(-log_ratio) + distance).expand_as(x0).flatten(1).sum(dim=1)
    last = (step == len(process.levels) - 2).nonzero().flatten().to(x0.device)
    if len(last) == 0:
        return terms
    log_variance = (log_ratio + per_row(process.log_true)).expand_as(x0)[last]
    decoded = decoder_log_prob(x0[last], prediction.x0[last], log_variance, decoder)
    return terms.index_copy(0, last, -decoded.flatten(1).sum(dim=1))


def decoder_log_prob(x0: Data, mean: Data, log_variance: Data, decoder: Decoder) -> Data:
    """Element by element, the log probability (`gaussian`: density) of x0; see `vlb_terms`."""
    if decoder == "gaussian":
        return -0.5 * (math.log(2.0 * math.pi) + log_variance + (x0 - mean).square() * torch.exp(-log_variance))
    inverse = torch.exp(-0.5 * log_variance)
    upper, lower = inverse * (x0 - mean + _BIN), inverse * (x0 - mean - _BIN)
    first, last = x0 < -0.999, x0 > 0.999
    if decoder == "discretized_tanh":
        inside = _tanh_cdf(torch.where(last, math.inf, upper)) - _tanh_cdf(torch.where(first, -math.inf, lower))
        return inside.clamp(min=1e-12).log()
    # Where both ends are in the upper half, the mirrored ones lose no digits.
    mirrored = upper + lower > 0
    near, far = torch.where(mirrored, -lower, upper), torch.where(mirrored, -upper, lower)
    log_near = torch.special.log_ndtr(near)
    inside = log_near + torch.log(-torch.expm1(torch.special.log_ndtr(far) - log_near))
    edge = torch.special.log_ndtr(torch.where(first, upper, -lower))
    return torch.where(first | last, edge, inside)


@final
@dataclass(frozen=True, eq=False)
class ElboTerms:
    """The bound of each row, in nats summed over its dimensions, float64.

    Attributes:
        L_T: the prior's term, `(b,)`.
        L_t: the denoising terms, `(b, n - 1)`, in the order of `levels`: from the noisiest to the last but one.
        L_0: the decoder's term, `(b,)`.
        levels: the descending list, ending in 0.
        num_dims: numbers in a row.
    """

    L_T: RowTerms
    L_t: Float64[Tensor, "b steps"]
    L_0: RowTerms
    levels: tuple[int, ...]
    num_dims: int

    @property
    def total(self) -> RowTerms:
        """The bound on -log p(x0), `(b,)`."""
        return self.L_T + self.L_t.sum(dim=1) + self.L_0


class BitsPerDim(NamedTuple):
    """A mean over rows, with its standard error (NaN for a single row)."""

    mean: float
    standard_error: float


def elbo_terms(
    denoiser: Denoiser,
    x0: Data,
    condition: Condition | None = None,
    *,
    seeds: int | Sequence[int] = 0,
    levels: Sequence[int] | None = None,
    variance: Variance = "posterior",
    x0_variance: Sequence[float] | None = None,
    decoder: Decoder = "discretized",
    rows_per_call: int = 256,
) -> ElboTerms:
    """Every term of the bound, each level once, with one draw of noise per row and level.

    Args:
        denoiser: guided or plain.
        x0: data `(b, ...)`.
        condition: `b` rows, or None.
        seeds: of the noise, one per row; a single one is used with the rows' numbers.
        levels: a descending list that ends in 0; None: all.
        variance: of p, as for `ddpm`.
        x0_variance: for `optimal`, one number per step.
        decoder: see `vlb_terms`.
        rows_per_call: rows and levels are evaluated together, about this many at a time.

    Raises:
        InvalidShape: data that is not 8-bit, with a discretized decoder, or another number of seeds than rows.
        NonFinite: NaN or infinity in the data, or from the denoiser; names the rows.
    """
    _check_data(x0, decoder)
    process = ReverseProcess.of(denoiser.schedule, levels, variance, x0_variance)
    noisy = process.levels[:-1]
    at_once = max(rows_per_call // max(len(x0), 1), 1)
    parts = [
        _terms_at(denoiser, x0, condition, seeds, process, noisy[start : start + at_once], decoder)
        for start in range(0, len(noisy), at_once)
    ]
    terms, prior = torch.cat(parts, dim=1), prior_term(denoiser.schedule, x0, noisy[0])
    _require_finite(terms, noisy)
    return ElboTerms(prior, terms[:, :-1], terms[:, -1], process.levels, x0[0].numel() if len(x0) else 0)


def bits_per_dim(terms: ElboTerms | Sequence[ElboTerms]) -> BitsPerDim:
    """The bound in bits per dimension: mean and standard error over the rows of one or several batches.

    Discrete bits with a discretized decoder; with the Gaussian one, those of a density.

    Raises:
        InvalidShape: no rows.
    """
    batches = [terms] if isinstance(terms, ElboTerms) else list(terms)
    values = [batch.total / (batch.num_dims * math.log(2.0)) for batch in batches if len(batch.L_0)]
    if not values:
        raise InvalidShape("found no rows: bits per dimension need at least one")
    rows = torch.cat(values)
    error = float(rows.std()) / math.sqrt(len(rows)) if len(rows) > 1 else math.nan
    return BitsPerDim(float(rows.mean()), error)


def prior_term(schedule: NoiseSchedule, x0: Data, level: int) -> RowTerms:
    """`L_T = KL(q(x_t | x0) || N(0, I))` in nats at the first level that a sampler visits, `(b,)`."""
    alpha_bar = float(schedule.alpha_bar[level])
    return 0.5 * (alpha_bar * (x0.double().square() - 1.0) - math.log1p(-alpha_bar)).flatten(1).sum(dim=1)


@torch.no_grad()
def _terms_at(
    denoiser: Denoiser,
    x0: Data,
    condition: Condition | None,
    seeds: int | Sequence[int],
    process: ReverseProcess,
    levels: tuple[int, ...],
    decoder: Decoder,
) -> Float64[Tensor, "b some"]:
    """The terms of all rows at a few levels, in one call of the denoiser."""
    count, many = len(x0), len(levels)
    row, level = torch.arange(count).repeat(many), torch.tensor(levels).repeat_interleave(count)
    index = level if isinstance(seeds, Sequence) else level + (row << 32)
    repeated = list(seeds) * many if isinstance(seeds, Sequence) else seeds
    clean = x0.repeat(many, *(1,) * (x0.dim() - 1))
    eps = noise.normal(repeated, noise.LIKELIHOOD, index, tuple(x0.shape[1:]), x0.device, x0.dtype)
    asked = None if condition is None else condition.rows(row)
    prediction = denoiser(denoiser.schedule.q_sample(clean, level, eps), level, asked)
    terms = vlb_terms(process, prediction, clean.double(), level, decoder)
    return terms.view(many, count).T


def _tanh_cdf(z: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))


def _check_data(x0: Data, decoder: Decoder) -> None:
    finite = torch.isfinite(x0).flatten(1).all(dim=1)
    if not bool(finite.all()):
        raise NonFinite("the data holds NaN or infinity", tuple((~finite).nonzero().flatten().tolist()))
    grid = (x0.double() + 1.0) * 127.5
    if decoder != "gaussian" and bool(((grid - grid.round()).abs().amax() > 0.01) | (x0.abs().amax() > 1.0)):
        raise InvalidShape("found other numbers than u / 127.5 - 1 of 8-bit data: use decoder='gaussian' for those")


def _require_finite(terms: Tensor, levels: tuple[int, ...]) -> None:
    bad = ~torch.isfinite(terms)
    if bool(bad.any()):
        rows = tuple(bad.any(dim=1).nonzero().flatten().tolist())
        first = levels[int(bad.any(dim=0).nonzero()[0, 0])]
        raise NonFinite(
            f"the bound of rows {list(rows)} is not finite at level {first}: check the model's weights", rows
        )
