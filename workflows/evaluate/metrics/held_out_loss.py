"""How well a model knows pictures that it was not trained on: its loss on held-out ones, level by level.

    loss(level) = mean |v_model - v|^2 over the pixels, with v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0

The same pictures, captions, levels and noise are given to every model, so that two differ by what they learnt alone.
A loss that rises while training goes on says that a model begins to learn its training pictures by heart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import torch

from diffusion_core import noise
from diffusion_core.objective import simple_loss
from workflows.data.dataset import Split
from workflows.evaluate.metrics.estimate import Estimate, Floats, mean_of
from workflows.model.model import ModelPackage

LEVELS: Final = 8
LOSS_ROWS: Final = 128
"""Held-out samples on which the loss is measured at most."""
_AT_ONCE: Final = 64


@final
@dataclass(frozen=True)
class HeldOutLoss:
    """The loss of each held-out sample at each level.

    Attributes:
        levels: in 1 .. T.
        rows: (n, levels).
    """

    levels: tuple[int, ...]
    rows: Floats

    @property
    def per_row(self) -> Floats:
        """(n,) mean over the levels."""
        found: Floats = self.rows.mean(axis=1)
        return found

    def estimate(self) -> Estimate:
        """The mean over samples and levels."""
        return mean_of(self.per_row)

    def by_level(self) -> dict[str, float]:
        """The mean over samples at each level."""
        return {str(level): float(mean) for level, mean in zip(self.levels, self.rows.mean(axis=0), strict=True)}


@torch.no_grad()
def held_out_loss(package: ModelPackage, split: Split, seed: int) -> HeldOutLoss:
    """Measures it; one network evaluation for each sample and level.

    Args:
        package: the model.
        split: held-out samples; the first `LOSS_ROWS` are taken, with their first caption.
        seed: of the noise.
    """
    count, last = min(LOSS_ROWS, len(split)), package.schedule.num_levels
    levels = tuple(max(1, round(last * (place + 0.5) / LEVELS)) for place in range(LEVELS))
    found = [torch.cat([_losses(package, split, rows, level, seed) for rows in _parts(count)]) for level in levels]
    return HeldOutLoss(levels, torch.stack(found, dim=1).double().cpu().numpy())


def _losses(package: ModelPackage, split: Split, rows: range, level: int, seed: int) -> torch.Tensor:
    stored = torch.from_numpy(split.images[rows.start : rows.stop])
    x0 = package.codec.encode(package.rows.to_x(stored).to(package.device))
    draws = torch.arange(rows.start, rows.stop) + level * LOSS_ROWS
    eps = noise.normal(seed, noise.LIKELIHOOD, draws, x0.shape[1:]).to(x0)
    levels = torch.full((len(x0),), level, device=x0.device)
    kind = "direct" if package.reads_text else "none"
    texts = [split.captions[row][0] for row in rows]
    condition = package.condition(texts if kind == "direct" else len(texts), kind)
    prediction = package.denoiser(package.schedule.q_sample(x0, levels, eps), levels, condition)
    return simple_loss(prediction, x0, eps, "v")


def _parts(count: int) -> list[range]:
    return [range(start, min(start + _AT_ONCE, count)) for start in range(0, count, _AT_ONCE)]
