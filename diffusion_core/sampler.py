r"""Samplers as tables of coefficients, and the one step that they share.

From level t to level s every sampler here is

    x_s = A x0 + B eps + C x0_previous + D z,      z ~ N(0, I),

with (x0, eps) the denoiser's prediction at t, x0_previous that of the step before, and four numbers that
depend only on the schedule and on the list of levels. A `SamplerPlan` holds them, one row per step; `step`
applies row `index[i]` of `plans[i]` to row i of a batch, so samplers, lengths and progress mix freely.

References:
    Ho et al., Denoising Diffusion Probabilistic Models (2020), eq. 6-7; Song et al., Denoising Diffusion
    Implicit Models (2021), eq. 12 and 16; Nichol & Dhariwal (2021), eq. 15; Bao et al., Analytic-DPM (2022),
    theorem 1; Lu et al., DPM-Solver++ (2022), eq. 17 and algorithm 2.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from diffusion_core import noise
from diffusion_core.condition import Condition
from diffusion_core.denoiser import Denoiser
from diffusion_core.errors import InvalidLevels, InvalidPlan, InvalidShape
from diffusion_core.prediction import Prediction
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.spacing import checked_levels
from diffusion_core.types import Data

Variance: TypeAlias = Literal["posterior", "beta", "learned_range", "optimal"]
Column: TypeAlias = Float64[Tensor, "steps"]

_TOLERANCE = 1e-12


@dataclass(frozen=True, eq=False)
class SamplerPlan:
    """n steps over n + 1 levels.

    Attributes:
        levels: visited levels, strictly monotone: descending to sample, ascending to invert.
        alpha_bar: of those levels, float64 `(n + 1,)`: where the first step starts, then where each step goes.
        A: weight of x0, `(n,)`.
        B: weight of eps.
        C: weight of the previous step's x0.
        D: standard deviation of the fresh noise; with a learned range, its lower end.
        D_high: upper end of the learned range; else None.
        keeps_marginals: whether `B^2 + D^2 = 1 - alpha_bar_s`: true of DDIM, of DDPM's posterior variance
            and of DPM-Solver++; samplers with another variance declare that it is not.

    Raises:
        InvalidPlan: the columns break an invariant; the message names the step.
    """

    levels: tuple[int, ...]
    alpha_bar: Float64[Tensor, "visited"]
    A: Column
    B: Column
    C: Column
    D: Column
    D_high: Column | None = None
    keeps_marginals: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        _check_monotone(self.levels)
        columns = [self.A, self.B, self.C, self.D] + ([] if self.D_high is None else [self.D_high])
        if any(column.shape != (self.num_steps,) or column.dtype != torch.float64 for column in columns):
            raise InvalidPlan(f"every column must be float64 ({self.num_steps},), one entry per step")
        after = self.alpha_bar[1:]
        self._require(self.A + self.C, after.sqrt(), "A + C = sqrt(alpha_bar_s)")
        if self.keeps_marginals:
            self._require(self.B**2 + self.D**2, 1.0 - after, "B^2 + D^2 = 1 - alpha_bar_s")
        clean = self.levels[-1] == 0 and float(self.alpha_bar[-1]) == 1.0
        if clean and [float(column[-1]) for column in columns] != [1.0] + [0.0] * (len(columns) - 1):
            raise InvalidPlan("the step into level 0 must be x0 itself: A = 1, all else 0")

    @property
    def num_steps(self) -> int:
        """n: network evaluations without guidance."""
        return len(self.levels) - 1

    @cached_property
    def rows(self) -> tuple[tuple[float, float, float, float, float], ...]:
        """(A, B, C, D, D_high) of each step as plain numbers, D_high = D without a learned range."""
        high = self.D if self.D_high is None else self.D_high
        return tuple(zip(*(c.tolist() for c in (self.A, self.B, self.C, self.D, high)), strict=True))

    def ascending(self) -> SamplerPlan:
        """The deterministic DDIM table on the same levels in reverse: data to noise (DDIM, section 4.3)."""
        if self.levels[0] < self.levels[-1]:
            raise InvalidLevels("this plan ascends already")
        return _deterministic(tuple(reversed(self.levels)), self.alpha_bar.flip(0))

    def _require(self, found: Tensor, wanted: Tensor, rule: str) -> None:
        off = (found - wanted).abs()
        if not bool((off <= _TOLERANCE).all()):
            place = int(off.nan_to_num(nan=torch.inf).argmax())
            raise InvalidPlan(f"step {place} breaks {rule} by {float(off[place]):.2e}")


def ddim(
    schedule: NoiseSchedule, levels: Sequence[int], eta: float = 0.0, targets: Sequence[float] | None = None
) -> SamplerPlan:
    """`x_s = sqrt(ab_s) x0 + sqrt(1 - ab_s - D^2) eps + D z`, D = eta times DDPM's posterior deviation.

    Args:
        schedule: gives alpha_bar.
        levels: strictly descending, ending in 0 (see `spacing`).
        eta: stochasticity in [0, 1]; 0 is deterministic, 1 is DDPM.
        targets: alpha_bar that each step goes to; None: that of the next level. Published checkpoints may stop at
            alpha_bar_1, before clean data.

    Raises:
        InvalidLevels: the list is not such a list.
        InvalidPlan: eta outside [0, 1], or a target that is no less noisy than its level.
    """
    if not 0.0 <= eta <= 1.0:
        raise InvalidPlan(f"found eta={eta}, wanted a number in [0, 1]: 0 is deterministic, 1 is DDPM")
    visited, before, after = _visited(schedule, levels, targets)
    deviation = eta * _posterior_variance(before, after).sqrt()
    return SamplerPlan(
        visited,
        _table(before, after),
        after.sqrt(),
        (1.0 - after - deviation**2).clamp(min=0.0).sqrt(),
        torch.zeros_like(after),
        deviation,
    )


def ddpm(
    schedule: NoiseSchedule,
    levels: Sequence[int],
    variance: Variance = "posterior",
    x0_variance: Sequence[float] | None = None,
) -> SamplerPlan:
    """Ancestral sampling: the mean of q(x_s | x_t, x0) at the predicted x0, and a choice of variance.

    Args:
        schedule: gives alpha_bar.
        levels: strictly descending, ending in 0; variances are those of the list, not of the full chain.
        variance: `posterior`: beta (1 - ab_s) / (1 - ab_t), right for data at a point; `beta`:
            1 - ab_t / ab_s, right for Gaussian data; `learned_range`: between the two, by the network's
            fraction; `optimal`: posterior + (coefficient of x0)^2 Var[x0 | x_t].
        x0_variance: for `optimal`, the mean over dimensions and data of Var[x0 | x_t] at each visited noisy
            level, one number per step (see `estimate_x0_variance`).

    Raises:
        InvalidLevels: the list is not such a list.
        InvalidPlan: an unknown variance, or `x0_variance` missing, superfluous or of another length.
    """
    visited, before, after = _visited(schedule, levels)
    posterior = _posterior_variance(before, after)
    eps_weight = (1.0 - after - posterior).clamp(min=0.0).sqrt()
    beta = 1.0 - before / after
    beta[-1] = 0.0
    lower, upper = posterior, None
    if (variance == "optimal") != (x0_variance is not None):
        raise InvalidPlan("x0_variance goes with variance='optimal', and only with it: see estimate_x0_variance")
    if variance == "beta":
        lower = beta
    elif variance == "learned_range":
        upper = beta.sqrt()
    elif variance == "optimal":
        lower = posterior + _x0_weight(before, after, eps_weight) ** 2 * _checked_x0_variance(x0_variance, len(before))
        lower[-1] = 0.0
    elif variance != "posterior":
        raise InvalidPlan(f"found variance={variance!r}, wanted posterior, beta, learned_range or optimal")
    table, exact = _table(before, after), variance == "posterior"
    zeros = torch.zeros_like(after)
    return SamplerPlan(visited, table, after.sqrt(), eps_weight, zeros, lower.sqrt(), upper, keeps_marginals=exact)


def dpm_solver(
    schedule: NoiseSchedule,
    levels: Sequence[int],
    stochastic: bool = False,
    targets: Sequence[float] | None = None,
    last_order: Literal[1, 2] = 1,
) -> SamplerPlan:
    """DPM-Solver++(2M), or its SDE form; second order except in the first step and (by default) the last.

    With lambda = log(sqrt(ab) / sqrt(1 - ab)), h = lambda_s - lambda_t and r = h_previous / h, the x0 used is
    (1 + 1 / 2r) x0 - (1 / 2r) x0_previous.

    Args:
        schedule: gives alpha_bar.
        levels: strictly descending, ending in 0.
        stochastic: SDE-DPM-Solver++(2M), midpoint form.
        targets: as of `ddim`.
        last_order: of the last step; the one onto clean data, where h is infinite, is first order in any case.

    Raises:
        InvalidLevels: the list is not such a list.
        InvalidPlan: a target that is no less noisy than its level.
    """
    visited, before, after = _visited(schedule, levels, targets)
    size = 0.5 * torch.diff((_table(before, after) / (1.0 - _table(before, after))).log())
    half = torch.zeros_like(after)
    half[1:] = 0.5 * size[1:] / size[:-1]
    if last_order == 1 or float(after[-1]) == 1.0:
        half[-1] = 0.0
    sigma_s, sigma_t = (1.0 - after).sqrt(), (1.0 - before).sqrt()
    ratio = sigma_s * before.sqrt() / (sigma_t * after.sqrt())
    decay = ratio**2 if stochastic else ratio
    gain = after.sqrt() * (1.0 - decay)
    return SamplerPlan(
        visited,
        _table(before, after),
        after.sqrt() * decay + gain * (1.0 + half),
        sigma_s * ratio if stochastic else sigma_s,
        -gain * half,
        sigma_s * (1.0 - ratio**2).clamp(min=0.0).sqrt() if stochastic else torch.zeros_like(after),
    )


def step(
    plans: SamplerPlan | Sequence[SamplerPlan],
    index: int | Sequence[int] | Int[Tensor, "b"],
    prediction: Prediction,
    x0_previous: Data | None = None,
    z: Data | None = None,
) -> Data:
    """One step of each row: `A x0 + B eps + C x0_previous + D z`, in at least float32.

    Args:
        plans: one for all rows, or one per row.
        index: which step of its plan each row is at; one for all rows, or one per row.
        prediction: `b` rows at `plans[i].levels[index[i]]`.
        x0_previous: the x0 of each row's step before, `(b, ...)`; None only where every C is 0. A row
            that has not made a step yet may hold any finite number there.
        z: standard normal `(b, ...)`; None only where every D is 0.

    Returns:
        x_s, `(b, ...)`.

    Raises:
        InvalidPlan: a row has no such step, or needs `x0_previous`, `z` or a variance fraction that is not there.
    """
    rows = _gather(plans, index, len(prediction.x_t))
    kind = torch.promote_types(prediction.x0.dtype, torch.float32)
    table = torch.tensor(rows, dtype=kind).to(prediction.x0.device)
    a, b, c, d, d_high = table.view(-1, 5, *(1,) * (prediction.x0.dim() - 1)).unbind(dim=1)
    x_s = (a * prediction.x0).addcmul_(b, prediction.eps.to(kind))
    if any(row[2] for row in rows):
        x_s.addcmul_(c, _needed(x0_previous, prediction, "x0_previous, the previous step's x0").to(kind))
    if any(row[4] for row in rows):
        fresh = _needed(z, prediction, "z, standard normal noise")
        ranged = any(row[3] != row[4] for row in rows)
        x_s.addcmul_(_ranged(d, d_high, prediction).to(kind) if ranged else d, fresh.to(kind))
    return x_s


def noisy_rows(plans: Sequence[SamplerPlan], index: Sequence[int]) -> list[int]:
    """The rows whose next step draws noise."""
    return [row for row, (plan, here) in enumerate(zip(plans, index, strict=True)) if plan.rows[here][4] > 0.0]


def estimate_x0_variance(
    denoiser: Denoiser,
    levels: Sequence[int],
    x0: Data,
    condition: Condition | None = None,
    seed: int = 0,
) -> list[float]:
    """Mean squared error of the predicted x0 at each noisy level: E[Var(x0 | x_t)] / dimensions, if it is exact.

    Args:
        denoiser: whose variance is wanted.
        levels: the list that a sampler will visit, ending in 0.
        x0: a sample of data, `(b, ...)`; all rows are used at each level.
        condition: `b` rows, or None.
        seed: of the noise.

    Returns:
        One number per step, for `ddpm(.., variance="optimal", x0_variance=..)`.

    References:
        Bao et al., Analytic-DPM (2022), theorem 1 with eq. 8, in terms of x0.
    """
    visited = checked_levels(denoiser.schedule, levels)
    eps = noise.normal([seed] * len(x0), noise.STEP, list(range(len(x0))), tuple(x0.shape[1:]), x0.device, x0.dtype)
    errors = []
    for level in visited[:-1]:
        rows = torch.full((len(x0),), level)
        with torch.no_grad():
            found = denoiser(denoiser.schedule.q_sample(x0, rows, eps), rows, condition).x0
        errors.append(float((found - x0).double().square().mean()))
    return errors


def _visited(
    schedule: NoiseSchedule, levels: Sequence[int], targets: Sequence[float] | None = None
) -> tuple[tuple[int, ...], Tensor, Tensor]:
    """The checked levels, and alpha_bar at both ends of each step."""
    visited = checked_levels(schedule, levels)
    table = schedule.alpha_bar[list(visited)]
    before, after = table[:-1].clone(), table[1:].clone()
    if targets is not None:
        after = torch.tensor(list(targets), dtype=torch.float64)
        if after.shape != before.shape or not bool(((after > before) & (after <= 1.0)).all()):
            raise InvalidPlan(f"targets must be {len(before)} numbers in (alpha_bar of the step's level, 1]")
    return visited, before, after


def _table(before: Tensor, after: Tensor) -> Tensor:
    return torch.cat([before[:1], after])


def _posterior_variance(before: Tensor, after: Tensor) -> Tensor:
    return (1.0 - after) / (1.0 - before) * (1.0 - before / after)


def _x0_weight(before: Tensor, after: Tensor, eps_weight: Tensor) -> Tensor:
    """Weight of x0 once eps is written as (x_t - sqrt(ab_t) x0) / sqrt(1 - ab_t)."""
    return after.sqrt() - eps_weight * (before / (1.0 - before)).sqrt()


def _checked_x0_variance(values: Sequence[float] | None, num_steps: int) -> Tensor:
    table = torch.as_tensor(values, dtype=torch.float64)
    if table.shape != (num_steps,) or not bool((table >= 0).all()):
        raise InvalidPlan(f"x0_variance has shape {tuple(table.shape)}, wanted {num_steps} numbers >= 0, one per step")
    return table


def _deterministic(levels: tuple[int, ...], alpha_bar: Tensor) -> SamplerPlan:
    after = alpha_bar[1:]
    zeros = torch.zeros_like(after)
    return SamplerPlan(levels, alpha_bar, after.sqrt(), (1.0 - after).sqrt(), zeros, zeros)


def _check_monotone(levels: tuple[int, ...]) -> None:
    signs = {(after > before) - (after < before) for before, after in itertools.pairwise(levels)}
    if signs not in ({1}, {-1}):
        raise InvalidLevels("a plan's levels must be strictly monotone, and at least two")


def _gather(
    plans: SamplerPlan | Sequence[SamplerPlan], index: int | Sequence[int] | Tensor, num_rows: int
) -> list[tuple[float, ...]]:
    places = index.tolist() if isinstance(index, Tensor) else index
    per_row = [plans] * num_rows if isinstance(plans, SamplerPlan) else plans
    positions = [places] * num_rows if isinstance(places, int) else places
    if len(per_row) != num_rows or len(positions) != num_rows:
        raise InvalidPlan(f"found {len(per_row)} plans and {len(positions)} indices for {num_rows} rows: one per row")
    for row, (plan, place) in enumerate(zip(per_row, positions, strict=True)):
        if not 0 <= place < plan.num_steps:
            raise InvalidPlan(f"row {row} asks for step {place} of a plan with steps 0..{plan.num_steps - 1}")
    return [plan.rows[place] for plan, place in zip(per_row, positions, strict=True)]


def _needed(value: Tensor | None, prediction: Prediction, name: str) -> Tensor:
    if value is None:
        raise InvalidPlan(f"some row's step needs {name}: none was given")
    if value.shape != prediction.x0.shape:
        raise InvalidShape(f"{name} has shape {tuple(value.shape)}, wanted {tuple(prediction.x0.shape)}")
    return value


def _ranged(low: Tensor, high: Tensor, prediction: Prediction) -> Tensor:
    """`D = low^(1 - f) high^f`, log-linear in the variance (Nichol & Dhariwal, eq. 15); rows of one D keep it."""
    fraction = prediction.variance_fraction
    if fraction is None:
        raise InvalidPlan("a plan with learned_range needs a network with a learned variance")
    ratio = torch.where((low != high) & (low > 0), high / torch.where(low > 0, low, 1.0), 1.0)
    return low * (ratio.log() * fraction).exp()
