r"""Tables fitted to one model: few steps that end where many would.

A deterministic table of n steps is free in its inner levels and in the weights C_k of the previous prediction, for

    x_s = (sqrt(ab_s) - C_k) x0 + sqrt(1 - ab_s) eps + C_k x0_previous

keeps every invariant of `SamplerPlan` whatever C_k is. DPM-Solver++(2M) chooses C_k by an expansion around small steps.
`tune` starts there and minimises

    sum_i rho(|x0(table, x_T_i) - x0(DDIM of many steps, x_T_i)|^2),      rho(e) = e / (1 + e / median(e))

over rows i: Gauss-Newton steps for the weights, and a search along each level. rho limits what one row counts, since
a row near the border between two pictures may end in the other one.

References:
    Frankel et al., S4S: Solving for a Diffusion Model Solver (2025), of which this is the deterministic table without
    the relaxed x_T.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core.condition import Condition
from diffusion_core.denoiser import Denoiser
from diffusion_core.errors import InvalidLevels
from diffusion_core.sampler import SamplerPlan, ddim, dpm_solver
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.spacing import checked_levels, quadratic, trailing
from diffusion_core.trajectory import sample
from diffusion_core.types import Data, Rows

OnTrial: TypeAlias = Callable[[float], None]
"""Told the loss of each table that is tried."""

REFERENCE_STEPS: Final = 200
_ROUNDS: Final = 2
_NEWTON_STEPS: Final = 3
_NUDGE: Final = 0.05
_DAMPING: Final = (1e-3, 1e-1, 1.0)
_STRIDES: Final = (4, 16, 64)
"""A level moves by these parts of the gap to its neighbour."""


@final
@dataclass(frozen=True)
class TunedTable:
    """A table that was fitted.

    Attributes:
        levels: visited levels, descending to 0, n + 1 of them.
        gains: C of each step, relative to that of DPM-Solver++(2M) on the same levels, n of them; 1: as there.
    """

    levels: tuple[int, ...]
    gains: tuple[float, ...]

    def plan(self, schedule: NoiseSchedule) -> SamplerPlan:
        """The table on a schedule.

        Raises:
            InvalidLevels: the levels do not fit the schedule, or there is another number of gains.
        """
        levels = checked_levels(schedule, self.levels)
        if len(self.gains) != len(levels) - 1:
            raise InvalidLevels(f"found {len(self.gains)} gains for {len(levels) - 1} steps: one for each")
        start = dpm_solver(schedule, levels)
        weight = torch.tensor(self.gains, dtype=torch.float64) * start.C
        return replace(start, A=start.alpha_bar[1:].sqrt() - weight, C=weight)


def tune(
    denoiser: Denoiser,
    condition: Condition | None,
    *,
    num_steps: int,
    seeds: Sequence[int],
    shape: Sequence[int],
    device: torch.device | str | None = None,
    reference_steps: int = REFERENCE_STEPS,
    on_trial: OnTrial | None = None,
) -> TunedTable:
    """Fits a table to a denoiser, with the guidance that its conditions ask for.

    Memory: three times the rows' data, and one row of weights per gain.

    Args:
        denoiser: guided or plain.
        condition: one row per seed, or a single row; None: unconditional.
        num_steps: n, at least 2.
        seeds: of the rows that it is fitted on.
        shape: of one row.
        device: of the data.
        reference_steps: of the DDIM whose ends are the target.
        on_trial: see `OnTrial`.

    Raises:
        InvalidLevels: fewer than 2 steps, or more than the schedule has levels.
    """
    schedule = denoiser.schedule
    if not 2 <= num_steps <= schedule.num_levels:
        raise InvalidLevels(f"found num_steps={num_steps}, wanted 2..{schedule.num_levels}")

    def end(plan: SamplerPlan) -> Data:
        return sample(denoiser, plan, condition, seeds=seeds, shape=shape, device=device).flatten(1)

    many = min(reference_steps, schedule.num_levels)
    fit = _Fit(end, schedule, end(ddim(schedule, trailing(schedule, many))), on_trial or (lambda _: None))
    best = min((fit.tried(table) for table in _starts(schedule, num_steps)), key=lambda trial: trial.loss)
    for _ in range(_ROUNDS):
        best = fit.search_levels(fit.search_gains(best))
    return best.table


def _starts(schedule: NoiseSchedule, num_steps: int) -> Iterator[TunedTable]:
    """DPM-Solver++ on three spacings; the third is even in log-SNR."""
    ones = (1.0,) * num_steps
    for levels in (
        trailing(schedule, num_steps),
        quadratic(schedule, num_steps),
        _even_in_log_snr(schedule, num_steps),
    ):
        yield TunedTable(levels, ones)


def _even_in_log_snr(schedule: NoiseSchedule, num_steps: int) -> tuple[int, ...]:
    first = schedule.num_levels
    table = schedule.log_snr(range(1, first + 1)).clamp(min=-10.0, max=10.0)
    wanted = torch.linspace(float(table[-1]), float(table[0]), num_steps + 1, dtype=torch.float64)[1:-1]
    inner = [1 + int((table - value).abs().argmin()) for value in wanted]
    levels = [first, *inner]
    for place in range(1, num_steps):  # neighbours must differ, and leave room for the levels that follow
        levels[place] = max(min(levels[place], levels[place - 1] - 1), num_steps - place)
    return (*levels, 0)


@dataclass(frozen=True, eq=False)
class _Trial:
    table: TunedTable
    errors: Rows
    loss: float
    residual: Data


class _Fit:
    """Tries tables against the target.

    Args:
        end: x0 that a table ends at, `(b, d)`.
        schedule: of the tables.
        target: `(b, d)`.
        on_trial: see `OnTrial`.
    """

    def __init__(
        self, end: Callable[[SamplerPlan], Data], schedule: NoiseSchedule, target: Data, on_trial: OnTrial
    ) -> None:
        self._end, self._schedule, self._target, self._on_trial = end, schedule, target, on_trial
        self._bound: float | None = None

    def tried(self, table: TunedTable) -> _Trial:
        """The table's ends, compared."""
        residual = self._end(table.plan(self._schedule)) - self._target
        errors = residual.double().square().mean(dim=1)
        if self._bound is None:
            self._bound = max(float(errors.median()), 1e-12)
        trial = _Trial(table, errors, float((errors / (1.0 + errors / self._bound)).mean()), residual)
        self._on_trial(trial.loss)
        return trial

    def search_gains(self, best: _Trial) -> _Trial:
        """Gauss-Newton steps on the gains that act: not the first step's, nor that onto clean data."""
        free = range(1, len(best.table.gains) - 1)
        for _ in range(_NEWTON_STEPS if free else 0):
            slopes = torch.stack([self._slope(best, place) for place in free])
            weight = (1.0 + best.errors / float(self._bound or 1.0)).pow(-2).to(slopes)[:, None]
            curvature = torch.einsum("ibd,jbd->ij", slopes * weight, slopes).double()
            downhill = -torch.einsum("ibd,bd->i", slopes * weight, best.residual.to(slopes)).double()
            trials = (self._moved(best, free, curvature, downhill, damping) for damping in _DAMPING)
            better = next((trial for trial in trials if trial.loss < best.loss), None)
            if better is None:
                break
            best = better
        return best

    def _slope(self, trial: _Trial, place: int) -> Float[Tensor, "b d"]:
        moved = self.tried(_with_gain(trial.table, place, trial.table.gains[place] + _NUDGE))
        return (moved.residual - trial.residual) / _NUDGE

    def _moved(self, trial: _Trial, free: range, curvature: Tensor, downhill: Tensor, damping: float) -> _Trial:
        ridge = damping * torch.diag(curvature.diagonal().clamp(min=1e-12))
        table = trial.table
        for place, change in zip(free, torch.linalg.solve(curvature + ridge, downhill).tolist(), strict=True):
            table = _with_gain(table, place, table.gains[place] + change)
        return self.tried(table)

    def search_levels(self, best: _Trial) -> _Trial:
        """Moves each inner level up and down, by smaller and smaller strides, as long as it helps."""
        for part, place in itertools.product(_STRIDES, range(1, len(best.table.levels) - 1)):
            for sign in (1, -1):
                while (moved := _with_level(best.table, place, sign, part)) is not None:
                    trial = self.tried(moved)
                    if trial.loss >= best.loss:
                        break
                    best = trial
        return best


def _with_gain(table: TunedTable, place: int, gain: float) -> TunedTable:
    return replace(table, gains=(*table.gains[:place], gain, *table.gains[place + 1 :]))


def _with_level(table: TunedTable, place: int, sign: int, part: int) -> TunedTable | None:
    """The table with a level nearer to a neighbour; None where they would meet."""
    levels = table.levels
    gap = abs(levels[place] - levels[place - sign])
    level = levels[place] + sign * max(1, gap // part)
    if not levels[place + 1] < level < levels[place - 1]:
        return None
    return replace(table, levels=(*levels[:place], level, *levels[place + 1 :]))
