"""From noise to data and back: what is built on the step of `row`: sampling, edits, inversion, interpolation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from diffusion_core import noise
from diffusion_core.condition import Condition
from diffusion_core.denoiser import Denoiser, check_settings
from diffusion_core.errors import InvalidCondition, InvalidPlan, InvalidShape
from diffusion_core.prediction import Prediction
from diffusion_core.row import Known, Trajectory, advance
from diffusion_core.sampler import SamplerPlan, step
from diffusion_core.strength import DEFAULT_STRENGTH, steps_of_strength
from diffusion_core.types import Data

OnStep: TypeAlias = "Callable[[int, Data], None]"
"""Called after each step with its number and the predicted x0 `(b, ...)` of all rows."""


def run(denoiser: Denoiser, rows: Sequence[Trajectory], on_step: OnStep | None = None) -> Data:
    """Advances rows to their ends and stacks the samples, `(b, ...)`.

    Raises:
        InvalidGuidance: a row asks for guidance that the denoiser does not offer.
    """
    if not rows:
        raise InvalidShape("no rows to sample: give at least one seed")
    state, number = list(rows), 0
    check_settings(denoiser, Condition.cat([row.condition for row in state]))
    active: list[int] = []
    while running := [place for place, row in enumerate(state) if not row.finished]:
        if running != active:
            active, condition = running, Condition.cat([state[place].condition for place in running])
        for place, row in zip(active, advance(denoiser, [state[place] for place in active], condition), strict=True):
            state[place] = row
        if on_step is not None:
            on_step(number, torch.stack([row.x if row.x0 is None else row.x0 for row in state]))
        number += 1
    return torch.stack([row.x for row in state])


def sample(
    denoiser: Denoiser,
    plan: SamplerPlan | Sequence[SamplerPlan],
    condition: Condition | None = None,
    *,
    seeds: Sequence[int],
    shape: Sequence[int],
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    on_step: OnStep | None = None,
    start: Data | None = None,
) -> Data:
    """Samples one row per seed.

    Args:
        denoiser: guided or plain.
        plan: one for all rows, or one per row.
        condition: one row per seed, or a single row for all; None: unconditional.
        seeds: 64-bit integers; the same seed gives the same sample beside any neighbours.
        shape: of one row.
        device: of the data.
        dtype: of the data.
        on_step: receives the predicted x0 along the way.
        start: rows at the first level, `(b, *shape)`, on the device; None: the noise of the seeds.

    Returns:
        `(b, *shape)`.

    Raises:
        InvalidCondition: conditions, plans and seeds of different numbers.
    """
    plans = [plan] * len(seeds) if isinstance(plan, SamplerPlan) else list(plan)
    if len(plans) != len(seeds):
        raise InvalidPlan(f"found {len(plans)} plans for {len(seeds)} seeds: give one, or one per seed")
    x = noise.normal(list(seeds), noise.INITIAL, 0, tuple(shape), device, dtype) if start is None else start
    starts = zip(plans, _split(condition, len(seeds)), x, seeds, strict=True)
    return run(denoiser, [Trajectory.start_at(p, c, row, seed=seed) for p, c, row, seed in starts], on_step)


def image_to_image(
    denoiser: Denoiser,
    plan: SamplerPlan,
    condition: Condition | None,
    x0: Data,
    *,
    strength: float = DEFAULT_STRENGTH,
    seeds: Sequence[int],
    on_step: OnStep | None = None,
) -> Data:
    """Noises given data part of the way and samples from there (SDEdit).

    Args:
        denoiser: guided or plain.
        plan: of the whole way; the first steps are skipped.
        condition: one row per seed, or a single row, or None.
        x0: `(b, ...)`, one row per seed.
        strength: share of the plan's steps to make, in (0, 1]; 1 forgets nearly all of `x0`.
        seeds: of the noise.
        on_step: receives the predicted x0 along the way.

    Raises:
        InvalidPlan: strength outside (0, 1].
    """
    index = plan.num_steps - steps_of_strength(strength, plan.num_steps)
    conditions = _split(condition, _same_count(x0, seeds))
    starts = zip(x0, conditions, seeds, strict=True)
    return run(denoiser, [Trajectory.start_from(plan, c, row, index, seed=seed) for row, c, seed in starts], on_step)


def inpaint(
    denoiser: Denoiser,
    plan: SamplerPlan,
    condition: Condition | None,
    x0: Data,
    mask: Data,
    *,
    seeds: Sequence[int],
    on_step: OnStep | None = None,
) -> Data:
    """Samples what the mask leaves open: the predicted x0 is replaced by the given one where the mask is 1.

    Args:
        denoiser: guided or plain.
        plan: any.
        condition: one row per seed, or a single row, or None.
        x0: the given data `(b, ...)`.
        mask: 1 where `x0` is kept, 0 where it is made, broadcastable to `x0`.
        seeds: one per row.
        on_step: receives the predicted x0 along the way.
    """
    conditions, masks = _split(condition, _same_count(x0, seeds)), mask.to(x0.dtype).expand_as(x0)
    x = noise.normal(list(seeds), noise.INITIAL, 0, tuple(x0.shape[1:]), x0.device, x0.dtype)
    starts = zip(x, x0, masks, conditions, seeds, strict=True)
    rows = [Trajectory.start_at(plan, c, row, seed=s, known=Known(given, kept)) for row, given, kept, c, s in starts]
    return run(denoiser, rows, on_step)


def invert(
    denoiser: Denoiser, plan: SamplerPlan, x0: Data, condition: Condition | None = None, *, refinements: int = 0
) -> Data:
    """The latent from which deterministic DDIM makes `x0`: the same table on ascending levels.

    Args:
        denoiser: must say something about level 0 (v or eps-prediction).
        plan: whose levels are visited upwards; the latent is at its first level.
        x0: `(b, ...)`.
        condition: `b` rows, or None.
        refinements: per step, fixed-point iterations of `x_s = step(x_t, eps(x_s))`, which make the inversion of
            the DDIM map exact (each costs one more evaluation); 0 is the plain inversion of DDIM, section 4.3.

    Returns:
        x at `plan.levels[0]`.
    """
    up, x = plan.ascending(), x0
    with torch.no_grad():
        for index in range(up.num_steps):
            here, there = (torch.full((len(x0),), up.levels[index + i]) for i in (0, 1))
            alpha_bar = up.alpha_bar[index].expand(len(x0))
            after = step(up, index, denoiser(x, here, condition))
            for _ in range(refinements):
                after = step(up, index, _seen_from(x, alpha_bar, denoiser(after, there, condition)))
            x = after.to(x0.dtype)
    return x


def interpolate(x_a: Data, x_b: Data, fraction: float) -> Data:
    """Spherical interpolation between two latents, row by row (DDIM, appendix D.5).

    Args:
        x_a: at fraction 0, `(b, ...)`.
        x_b: at fraction 1.
        fraction: in [0, 1].
    """
    if x_a.shape != x_b.shape:
        raise InvalidShape(f"found latents of shapes {tuple(x_a.shape)} and {tuple(x_b.shape)}: they must agree")
    a, b = x_a.flatten(1), x_b.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1, eps=0.0).clamp(-1.0, 1.0)
    angle = cosine.acos().clamp(min=1e-6)[:, None]
    mixed = ((1.0 - fraction) * angle).sin() * a + (fraction * angle).sin() * b
    return (mixed / angle.sin()).view_as(x_a)


def _seen_from(x: Data, alpha_bar: Tensor, ahead: Prediction) -> Prediction:
    """The prediction at x that agrees with the one a level above: in x0 where noise prevails, else in eps.

    Either makes the fixed point the same; this choice makes the iteration contract at both ends.
    """
    if float(alpha_bar[0]) < 0.5:
        return Prediction.from_x0(x, ahead.x0, alpha_bar)
    return Prediction.from_eps(x, ahead.eps, alpha_bar)


def _split(condition: Condition | None, num_rows: int) -> list[Condition | None]:
    if condition is None:
        return [None] * num_rows
    if condition.num_rows not in (1, num_rows):
        raise InvalidCondition(f"the condition has {condition.num_rows} rows, wanted 1 or {num_rows}, one per seed")
    return [condition.rows(slice(i, i + 1)) if condition.num_rows > 1 else condition for i in range(num_rows)]


def _same_count(x0: Data, seeds: Sequence[int]) -> int:
    if len(x0) != len(seeds):
        raise InvalidShape(f"found {len(x0)} rows of data for {len(seeds)} seeds: give one seed per row")
    return len(seeds)
