"""One row's state, and the function that advances many.

A `Trajectory` is all there is to know about a row: (plan, index, x, x0_previous, seed, condition). It is frozen;
`advance` takes rows and returns new ones. The noise of a step is a pure function of (seed, index), so a row can
stop anywhere, move to another process, and end in the same sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core import noise
from diffusion_core.condition import Condition
from diffusion_core.denoiser import Denoiser
from diffusion_core.errors import InvalidCondition, InvalidPlan
from diffusion_core.prediction import Prediction
from diffusion_core.sampler import SamplerPlan, noisy_rows, step
from diffusion_core.types import Data

# Rows and numbers of noise per draw, below which its cost is that of the calls and not of the numbers.
_ROWS_AT_ONCE = 16
_NUMBERS_AT_ONCE = 1 << 13


@dataclass(frozen=True, eq=False)
class Known:
    """A part of the data that is given (inpainting).

    Attributes:
        x0: the given data, of one row's shape.
        mask: where it is given: 1; where it is to be made: 0; broadcastable to `x0`.
    """

    x0: Float[Tensor, "..."]
    mask: Float[Tensor, "..."]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One row on its way.

    Attributes:
        plan: the coefficients.
        index: the next step.
        x: the row at `plan.levels[index]`, its shape without the batch.
        seed: of the row's noise, 64 bits.
        condition: one row.
        x0: the last predicted x0; None before the first step.
        known: the given part, when inpainting.
        ahead: noise of the next steps that is drawn already; it may be left out when a row moves.
    """

    plan: SamplerPlan
    index: int
    x: Float[Tensor, "..."]
    seed: int
    condition: Condition
    x0: Float[Tensor, "..."] | None = None
    known: Known | None = None
    ahead: tuple[Float[Tensor, "..."], ...] = ()

    @classmethod
    def start(
        cls,
        plan: SamplerPlan,
        condition: Condition | None,
        *,
        seed: int,
        shape: Sequence[int],
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        known: Known | None = None,
    ) -> Trajectory:
        """A row of pure noise at the plan's first level."""
        x = noise.normal(seed, noise.INITIAL, 0, tuple(shape), device, dtype)
        return cls.start_at(plan, condition, x, seed=seed, known=known)

    @classmethod
    def start_at(
        cls,
        plan: SamplerPlan,
        condition: Condition | None,
        x: Float[Tensor, "..."],
        *,
        seed: int,
        known: Known | None = None,
    ) -> Trajectory:
        """A row at the plan's first level that is there already: noise drawn for many at once, or a latent."""
        return cls(plan, 0, x, seed, _one_row(condition, x), known=known)

    @classmethod
    def start_from(
        cls, plan: SamplerPlan, condition: Condition | None, x0: Float[Tensor, "..."], index: int, *, seed: int
    ) -> Trajectory:
        """A row that starts in the middle: clean data, noised to the level of step `index` (image-to-image).

        Raises:
            InvalidPlan: the plan has no such step.
        """
        if not 0 <= index < plan.num_steps:
            raise InvalidPlan(f"found start index {index}, wanted 0..{plan.num_steps - 1} of this plan")
        alpha_bar = float(plan.alpha_bar[index])
        eps = noise.normal(seed, noise.INITIAL, 0, tuple(x0.shape), x0.device, x0.dtype)
        return cls(plan, index, alpha_bar**0.5 * x0 + (1.0 - alpha_bar) ** 0.5 * eps, seed, _one_row(condition, x0))

    def moved(
        self, x: Float[Tensor, "..."], x0: Float[Tensor, "..."], ahead: tuple[Float[Tensor, "..."], ...]
    ) -> Trajectory:
        """The row after its next step."""
        return Trajectory(self.plan, self.index + 1, x, self.seed, self.condition, x0, self.known, ahead)

    @property
    def level(self) -> int:
        """Where the row is."""
        return self.plan.levels[self.index]

    @property
    def remaining(self) -> int:
        """Steps still to make."""
        return self.plan.num_steps - self.index

    @property
    def finished(self) -> bool:
        """Whether `x` is the sample."""
        return self.remaining == 0


def advance(denoiser: Denoiser, rows: Sequence[Trajectory], condition: Condition | None = None) -> list[Trajectory]:
    """Makes one step of each row, in one call of the denoiser.

    Args:
        denoiser: guided or plain.
        rows: unfinished, of one data shape; plans, progress and seeds as they please.
        condition: `Condition.cat` of the rows' conditions, if the caller has it already.

    Returns:
        The rows after their step, in order.
    """
    asked = Condition.cat([row.condition for row in rows]) if condition is None else condition
    return advance_batch(denoiser, Batch.of(rows, asked)).rows


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows that step together, stacked; as long as the same rows do, nothing has to be stacked anew.

    Attributes:
        rows: unfinished when they are to be advanced.
        condition: theirs.
        x: theirs, `(b, ...)`.
        x0: their last predicted x0, or x where there is none yet.
    """

    rows: list[Trajectory]
    condition: Condition
    x: Data
    x0: Data

    @classmethod
    def of(cls, rows: Sequence[Trajectory], condition: Condition) -> Batch:
        """Stacks the rows."""
        x0 = torch.stack([row.x if row.x0 is None else row.x0 for row in rows])
        return cls(list(rows), condition, torch.stack([row.x for row in rows]), x0)


def advance_batch(denoiser: Denoiser, batch: Batch) -> Batch:
    """See `advance`."""
    rows, x = batch.rows, batch.x
    level = torch.tensor([row.level for row in rows])
    with torch.no_grad():
        prediction = _fill_known(denoiser(x, level, batch.condition), rows)
        ahead = _drawn_ahead(rows, x)
        plans, index = [row.plan for row in rows], [row.index for row in rows]
        after = step(plans, index, prediction, batch.x0, _stacked_noise(ahead, rows[0].x)).to(x.dtype)
    told = zip(rows, after.unbind(), prediction.x0.unbind(), ahead, strict=True)
    moved = [row.moved(x_s, x0, drawn[1:]) for row, x_s, x0, drawn in told]
    return Batch(moved, batch.condition, after, prediction.x0)


def _fill_known(prediction: Prediction, rows: Sequence[Trajectory]) -> Prediction:
    filled = [place for place, row in enumerate(rows) if row.known is not None]
    if not filled:
        return prediction
    x0 = prediction.x0.clone()
    for place in filled:
        known = rows[place].known
        x0[place] = torch.lerp(x0[place], known.x0.to(x0), known.mask.to(x0).expand_as(x0[place]))  # type: ignore[union-attr]
    mask = torch.zeros(len(rows), dtype=torch.bool)
    mask[filled] = True
    return prediction.with_x0(x0, mask)


def _stacked_noise(ahead: Sequence[tuple[Tensor, ...]], like: Tensor) -> Data | None:
    """The noise of this step, zero for the rows that draw none; None if no row does."""
    if not any(ahead):
        return None
    nothing = torch.zeros_like(like)
    return torch.stack([drawn[0] if drawn else nothing for drawn in ahead])


def _drawn_ahead(rows: Sequence[Trajectory], x: Data) -> list[tuple[Tensor, ...]]:
    """Each row's noise for this step and the next; few rows draw several steps at once, at about the same cost."""
    ahead = [row.ahead for row in rows]
    dry = [place for place in noisy_rows([row.plan for row in rows], [row.index for row in rows]) if not ahead[place]]
    if dry:
        count = max(1, max(_ROWS_AT_ONCE, _NUMBERS_AT_ONCE // rows[0].x.numel()) // len(dry))
        steps = [range(rows[place].index, rows[place].index + min(count, rows[place].remaining)) for place in dry]
        seeds = [rows[place].seed for place, here in zip(dry, steps, strict=True) for _ in here]
        index = [number for here in steps for number in here]
        drawn = iter(noise.normal(seeds, noise.STEP, index, tuple(x.shape[1:]), x.device, x.dtype).unbind())
        for place, here in zip(dry, steps, strict=True):
            ahead[place] = tuple(islice(drawn, len(here)))
    return ahead


def _one_row(condition: Condition | None, x: Tensor) -> Condition:
    row = Condition.null(1, x.device) if condition is None else condition
    if row.num_rows != 1:
        raise InvalidCondition(f"a trajectory is one row: its condition has {row.num_rows}")
    return row
