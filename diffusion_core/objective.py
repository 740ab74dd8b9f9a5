r"""What a denoiser is trained to minimise, row by row: the caller averages over however many rows there are.

    L_simple = mean (target - prediction)^2,  on eps, x0, v or u
    L_vlb    = T L_{t-1},                               a term of the variational bound (see `likelihood`)
    L_hybrid = L_simple + weight L_vlb,                 with the mean held fixed in L_vlb

References:
    Lecture Notes in Probabilistic Diffusion Models (arXiv 2312.10393), ELBO and L_simple; Ho et al. (2020), eq. 5-14;
    Nichol & Dhariwal, Improved DDPM (2021), eq. 15-18; Hang et al. (2023), min-SNR; Choi et al. (2022), P2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, final

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from diffusion_core import noise
from diffusion_core.condition import Condition
from diffusion_core.denoiser import Denoiser
from diffusion_core.errors import InvalidShape
from diffusion_core.likelihood import Decoder, ReverseProcess, vlb_terms
from diffusion_core.prediction import Parameterization, Prediction
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.types import Data, Levels, RowMask, Rows

Weighting: TypeAlias = Literal["simple", "min_snr", "snr_plus_one", "p2"]
Column: TypeAlias = Float64[Tensor, "steps"]


class TrainingDraws(NamedTuple):
    """What chance decides about each training sample.

    Attributes:
        level: in 1 .. T, int64 `(b,)`, on the CPU.
        eps: standard normal, `(b, ...)`.
        drop: whether the condition is hidden, `(b,)`, on the CPU.
    """

    level: Levels
    eps: Data
    drop: RowMask


def training_draws(
    seed: int,
    sample_numbers: Sequence[int] | Int[Tensor, "b"],
    shape: Sequence[int],
    num_levels: int,
    dropout: float = 0.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> TrainingDraws:
    """Uniform level, noise and condition dropout of each sample, as a function of (seed, sample number) alone.

    Args:
        seed: of the run.
        sample_numbers: e.g. epoch times samples plus position, one per row.
        shape: of one row.
        num_levels: T.
        dropout: share of hidden conditions, in [0, 1].
        device: of the noise.
        dtype: of the noise.

    Raises:
        InvalidShape: dropout outside [0, 1].
    """
    if not 0.0 <= dropout <= 1.0:
        raise InvalidShape(f"found dropout={dropout}, wanted a share in [0, 1]")
    place = noise.uniform(seed, noise.TRAIN_LEVEL, sample_numbers, (), "cpu", torch.float64)
    eps = noise.normal(seed, noise.TRAIN_NOISE, sample_numbers, shape, device, dtype)
    drop = noise.uniform(seed, noise.TRAIN_DROP, sample_numbers, (), "cpu", torch.float64) < dropout
    return TrainingDraws(1 + (place * num_levels).long(), eps, drop)


@final
@dataclass(frozen=True, eq=False)
class LossHistory:
    """Draws levels where the loss is large: `p(t) ~ sqrt(E[L_t^2])` of the last losses of each level.

    It is plain data: save its two tensors. Until every level has a full history, levels are uniform.

    Attributes:
        losses: the last n losses of level t in row t - 1, float64 `(T, n)`.
        counts: how many there are, `(T,)`.
        floor: share of uniform draws, so that no level is forgotten.

    References:
        Nichol & Dhariwal (2021), eq. 18.
    """

    losses: Float64[Tensor, "levels kept"]
    counts: Int[Tensor, "levels"]
    floor: float = 0.001

    @classmethod
    def empty(cls, num_levels: int, keep: int = 10) -> LossHistory:
        """Of no losses yet."""
        return cls(torch.zeros(num_levels, keep, dtype=torch.float64), torch.zeros(num_levels, dtype=torch.int64))

    @property
    def probabilities(self) -> Column:
        """Of levels 1 .. T."""
        uniform = torch.full_like(self.losses[:, 0], 1.0 / len(self.losses))
        size = self.losses.square().mean(dim=1).sqrt()
        if not bool((self.counts >= self.losses.shape[1]).all()) or float(size.sum()) == 0.0:
            return uniform
        return torch.lerp(size / size.sum(), uniform, self.floor)

    def draw(self, seed: int, sample_numbers: Sequence[int] | Int[Tensor, "b"]) -> tuple[Levels, Rows]:
        """Levels, and the weights `1 / (T p(t))` that keep the mean loss unbiased; both `(b,)`, on the CPU."""
        share = self.probabilities
        place = noise.uniform(seed, noise.TRAIN_LEVEL, sample_numbers, (), "cpu", torch.float64)
        index = torch.bucketize(place, share.cumsum(0)[:-1], right=True)
        return 1 + index, 1.0 / (len(share) * share[index])

    def with_losses(self, level: Levels, loss: Rows) -> LossHistory:
        """Takes in the losses of a batch; the oldest of a level make room."""
        losses, counts = self.losses.clone(), self.counts.clone()
        for index, value in zip((level - 1).tolist(), loss.tolist(), strict=True):
            losses[index] = losses[index].roll(-1)
            losses[index, -1] = value
            counts[index] = (counts[index] + 1).clamp(max=losses.shape[1])
        return LossHistory(losses, counts, self.floor)


def level_weight(
    schedule: NoiseSchedule,
    level: Levels,
    parameterization: Parameterization,
    weighting: Weighting,
    gamma: float | None = None,
) -> Rows:
    """Weight of the squared error at each level, so that one weighting means the same on eps, x0, v and u.

    `min_snr`: min(snr, gamma) on x0. `snr_plus_one`: min(snr + 1, gamma) on x0, which is 1 on v until gamma caps it:
    with it, a network that predicts x0 learns from the error of v. `p2`: 1 / (1 + snr)^gamma on eps. With the same
    x_t, squared errors of x0, eps, v and u are as 1 : snr : snr + 1 : (sqrt(snr) + 1)^2. `simple`: 1, whatever is
    predicted.

    Args:
        schedule: gives the signal-to-noise ratio.
        level: in 1 .. T, `(b,)`.
        parameterization: what the squared error is of.
        weighting: which.
        gamma: default 5 for `min_snr`, 25 for `snr_plus_one`, 1 for `p2`.

    References:
        Hang et al. (2023), min-SNR; Salimans & Ho, Progressive Distillation (2022), section 4; Choi et al. (2022), P2.
    """
    snr = schedule.snr(level)
    if weighting == "simple":
        return torch.ones_like(snr)
    if weighting == "min_snr":
        on_x0 = snr.clamp(max=5.0 if gamma is None else gamma)
    elif weighting == "snr_plus_one":
        on_x0 = (snr + 1.0).clamp(max=25.0 if gamma is None else gamma)
    else:
        on_x0 = snr * (1.0 + snr) ** -(1.0 if gamma is None else gamma)
    if parameterization == "eps":
        return torch.where(snr > 0, on_x0 / snr, 1.0)
    if parameterization == "u":
        return on_x0 / (snr.sqrt() + 1.0) ** 2
    return on_x0 if parameterization == "x0" else on_x0 / (snr + 1.0)


def simple_loss(prediction: Prediction, x0: Data, eps: Data, parameterization: Parameterization) -> Rows:
    """L_simple of each row: the mean squared error of what the network predicts."""
    truth = Prediction(prediction.x_t, x0, eps, prediction.alpha_bar)
    found: Tensor = getattr(prediction, parameterization)
    wanted: Tensor = getattr(truth, parameterization)
    return (found - wanted).square().flatten(1).mean(dim=1)


def training_loss(
    denoiser: Denoiser,
    x0: Data,
    draws: TrainingDraws,
    condition: Condition | None = None,
    *,
    parameterization: Parameterization,
    objective: Literal["simple", "vlb", "hybrid"] = "simple",
    weighting: Weighting = "simple",
    process: ReverseProcess | None = None,
    decoder: Decoder = "discretized",
    vlb_weight: float = 0.001,
) -> Rows:
    """The loss of each row.

    Args:
        denoiser: over the network that is trained.
        x0: clean data `(b, ...)`.
        draws: level, noise and dropout of each row.
        condition: `b` rows, or None.
        parameterization: what `simple` compares.
        objective: `simple`; `vlb`: T L_{t-1} in bits per dimension, whose mean over uniform levels is the whole bound
            but for L_T; `hybrid`: `simple` plus `vlb_weight` times `vlb`, which then trains the variance only.
        weighting: of `simple` over levels.
        process: variances of `vlb`; None: all levels, learned range.
        decoder: of `vlb`.
        vlb_weight: lambda of `hybrid`.

    Returns:
        `(b,)`; importance-sampled levels still want their weights.
    """
    seen = condition if condition is None else condition.hidden(draws.drop)
    prediction = denoiser(denoiser.schedule.q_sample(x0, draws.level, draws.eps), draws.level, seen)
    loss = torch.zeros(len(x0), device=x0.device)
    if objective != "vlb":
        weight = level_weight(denoiser.schedule, draws.level, parameterization, weighting)
        loss = weight.to(x0) * simple_loss(prediction, x0, draws.eps, parameterization)
    if objective == "simple":
        return loss
    chain = ReverseProcess.of(denoiser.schedule, None, "learned_range") if process is None else process
    judged = prediction if objective == "vlb" else _mean_held(prediction)
    in_bits = (len(chain.levels) - 1) / (x0[0].numel() * math.log(2.0))
    share = 1.0 if objective == "vlb" else vlb_weight
    return loss + share * in_bits * vlb_terms(chain, judged, x0, draws.level, decoder)


def _mean_held(prediction: Prediction) -> Prediction:
    held = prediction.detach()
    return Prediction(held.x_t, held.x0, held.eps, held.alpha_bar, prediction.variance_fraction)
