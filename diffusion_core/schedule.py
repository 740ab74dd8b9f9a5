r"""The forward process: how much signal is left at each level.

    q(x_t | x0) = N(sqrt(alpha_bar_t) x0, (1 - alpha_bar_t) I),      t = 0 .. T

There are T + 1 levels. Level 0 is clean data (`alpha_bar[0] = 1`); level t is the notes' step t, with
`alpha_bar_t = prod_{i <= t} (1 - beta_i)`. Tables are float64; use casts them to the data's type.

References:
    Lecture Notes in Probabilistic Diffusion Models (arXiv 2312.10393), forward process;
    Ho et al., Denoising Diffusion Probabilistic Models (2020); Nichol & Dhariwal (2021), cosine;
    Lin et al., Common Diffusion Noise Schedules and Sample Steps are Flawed (2023), zero terminal SNR.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffusion_core.errors import InvalidLevels, InvalidSchedule
from diffusion_core.types import Data, Levels, Rows, expand


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """A table of `alpha_bar` over levels 0 .. T.

    Args:
        alpha_bar: float64, `(T + 1,)`, starts at 1, strictly decreasing, ends in `[0, 1)`.

    Raises:
        InvalidSchedule: the table is anything else.
    """

    alpha_bar: Float64[Tensor, "levels"]

    def __post_init__(self) -> None:
        table = self.alpha_bar
        if table.dtype != torch.float64 or table.dim() != 1 or len(table) < 2:
            raise InvalidSchedule(
                f"found alpha_bar {table.dtype} {tuple(table.shape)}, wanted float64 (T + 1,), T >= 1"
            )
        if not bool(torch.isfinite(table).all()) or table[0] != 1.0 or table[-1] < 0.0:
            raise InvalidSchedule("alpha_bar must be finite, start at exactly 1 (level 0 is clean) and end in [0, 1)")
        if not bool((table[1:] < table[:-1]).all()):
            level = int((table[1:] >= table[:-1]).nonzero()[0, 0]) + 1
            raise InvalidSchedule(f"alpha_bar does not decrease at level {level}: every level must add noise")

    @classmethod
    def from_betas(cls, betas: Float[Tensor, "steps"] | Sequence[float]) -> NoiseSchedule:
        """`alpha_bar_t = prod_{i <= t} (1 - beta_i)`.

        Args:
            betas: `beta_1 .. beta_T`, each in `(0, 1]`; only the last may be 1.

        Raises:
            InvalidSchedule: a beta outside that range.
        """
        table = torch.as_tensor(betas, dtype=torch.float64).cpu()
        if table.dim() != 1 or len(table) == 0 or not bool(((table > 0) & (table <= 1)).all()):
            raise InvalidSchedule("betas must be a non-empty list of numbers in (0, 1]")
        return cls(torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1.0 - table, dim=0)]))

    @classmethod
    def linear(cls, num_levels: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """Betas on a line from `beta_start` to `beta_end` (DDPM, section 4)."""
        return cls.from_betas(torch.linspace(beta_start, beta_end, _checked(num_levels), dtype=torch.float64))

    @classmethod
    def scaled_linear(
        cls, num_levels: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> NoiseSchedule:
        """Square roots of the betas on a line (latent diffusion)."""
        roots = torch.linspace(beta_start**0.5, beta_end**0.5, _checked(num_levels), dtype=torch.float64)
        return cls.from_betas(roots**2)

    @classmethod
    def cosine(cls, num_levels: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
        """`alpha_bar(u) = cos^2((u + offset) / (1 + offset) pi / 2)`, betas capped (Improved DDPM, eq. 17)."""
        return cls._from_curve(num_levels, lambda u: math.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2, max_beta)

    @classmethod
    def sigmoid(cls, num_levels: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """Betas on a sigmoid between `beta_start` and `beta_end` over `[-6, 6]` (GeoDiff)."""
        curve = torch.sigmoid(torch.linspace(-6.0, 6.0, _checked(num_levels), dtype=torch.float64))
        return cls.from_betas(beta_start + (beta_end - beta_start) * curve)

    @classmethod
    def flow(cls, num_levels: int = 1000, shift: float = 1.0) -> NoiseSchedule:
        r"""`alpha_bar(t) = (1 - t)^2 / ((1 - t)^2 + t^2)`, t = level / T: the straight path from data to noise.

        Flow matching adds noise as `z = (1 - t) x0 + t eps`. Divided by its deviation, z keeps the variance, as x_t
        does. Euler's step on the velocity u = eps - x0 is then DDIM's with eta 0. alpha_bar is 0 at level T, so
        eps-prediction is undefined there.

        Args:
            num_levels: T.
            shift: s > 0; time t becomes `s t / (1 + (s - 1) t)`, so above 1 more levels are noisy.

        Raises:
            InvalidSchedule: `shift` is not positive.

        References:
            Lipman et al., Flow Matching (2023); Esser et al., Scaling Rectified Flow Transformers (2024), eq. 23.
        """
        if not shift > 0.0:
            raise InvalidSchedule(f"found shift={shift}, wanted a positive number")
        place = torch.arange(_checked(num_levels) + 1, dtype=torch.float64) / num_levels
        t = shift * place / (1.0 + (shift - 1.0) * place)
        return cls((1.0 - t) ** 2 / ((1.0 - t) ** 2 + t**2))

    @classmethod
    def _from_curve(cls, num_levels: int, curve: Callable[[float], float], max_beta: float) -> NoiseSchedule:
        values = [curve(level / _checked(num_levels)) for level in range(num_levels + 1)]
        return cls.from_betas([min(1 - after / before, max_beta) for before, after in itertools.pairwise(values)])

    def with_zero_terminal_snr(self) -> NoiseSchedule:
        """Shifts and scales `sqrt(alpha_bar)` so that level T is pure noise and level 1 stays (Lin et al., alg. 1)."""
        roots = self.alpha_bar[1:].sqrt()
        first, last = roots[0], roots[-1]
        roots = (roots - last) * (first / (first - last))
        return NoiseSchedule(torch.cat([self.alpha_bar[:1], roots**2]))

    @property
    def num_levels(self) -> int:
        """T, the last level."""
        return len(self.alpha_bar) - 1

    @property
    def betas(self) -> Float64[Tensor, "steps"]:
        """`beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}` for t = 1 .. T."""
        return 1.0 - self.alpha_bar[1:] / self.alpha_bar[:-1]

    def at(self, level: Levels | Sequence[int]) -> Float64[Tensor, "b"]:
        """`alpha_bar` of each row's level, float64, on the levels' device.

        Raises:
            InvalidLevels: a level outside `0 .. T`, or not an integer.
        """
        index = torch.as_tensor(level)
        if index.is_floating_point() or index.dtype == torch.bool:
            raise InvalidLevels(f"found levels of type {index.dtype}, wanted integers in 0..{self.num_levels}")
        # Plain numbers are looked at faster than a small tensor; those of an accelerator would have to be waited for.
        asked = index.flatten().tolist() if index.device.type == "cpu" else []
        if asked and not 0 <= min(asked) <= max(asked) <= self.num_levels:
            raise InvalidLevels(f"found levels {min(asked)}..{max(asked)}, wanted 0..{self.num_levels}")
        return self.alpha_bar.to(index.device)[index]

    def snr(self, level: Levels | Sequence[int]) -> Float64[Tensor, "b"]:
        """Signal-to-noise ratio `alpha_bar / (1 - alpha_bar)`: infinite at level 0, 0 at zero terminal SNR."""
        alpha_bar = self.at(level)
        return alpha_bar / (1.0 - alpha_bar)

    def log_snr(self, level: Levels | Sequence[int]) -> Float64[Tensor, "b"]:
        """`log(alpha_bar / (1 - alpha_bar))`."""
        return self.snr(level).log()

    def sigma(self, level: Levels | Sequence[int]) -> Float64[Tensor, "b"]:
        """Noise relative to signal, `sqrt((1 - alpha_bar) / alpha_bar)`: the unit of guidance intervals."""
        return self.snr(level).rsqrt()

    def q_sample(self, x0: Data, level: Levels, eps: Data) -> Data:
        """Draws x_t from q(x_t | x0): `sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps`.

        Args:
            x0: clean data `(b, ...)`.
            level: `(b,)`.
            eps: standard normal, the shape of `x0`.
        """
        alpha_bar = self.at(level)
        signal, noise = alpha_bar.sqrt().to(x0), (1.0 - alpha_bar).sqrt().to(x0)
        return expand(signal, x0) * x0 + expand(noise, x0) * eps

    def posterior(self, x0: Data, x_t: Data, level: Levels, previous: Levels | None = None) -> tuple[Data, Rows]:
        """Mean and variance of q(x_s | x_t, x0), s < t (DDPM, eq. 6-7, for any pair of levels).

        Args:
            x0: clean data `(b, ...)`.
            x_t: the same at `level`.
            level: t, `(b,)`, at least 1.
            previous: s, `(b,)`, below t; default `t - 1`.

        Returns:
            The mean, `(b, ...)`, and the variance, `(b,)` in float64.

        Raises:
            InvalidLevels: some `previous` is not below its `level`.
        """
        earlier = level - 1 if previous is None else previous
        if not bool((earlier < level).all()):
            raise InvalidLevels("the posterior q(x_s | x_t, x0) needs s < t in every row, and t >= 1")
        a_t, a_s = self.at(level), self.at(earlier)
        beta = 1.0 - a_t / a_s
        to_x0 = a_s.sqrt() * beta / (1.0 - a_t)
        to_x_t = (a_t / a_s).sqrt() * (1.0 - a_s) / (1.0 - a_t)
        mean = expand(to_x0.to(x0), x0) * x0 + expand(to_x_t.to(x0), x0) * x_t
        return mean, (1.0 - a_s) / (1.0 - a_t) * beta

    def to_config(self) -> dict[str, Any]:
        """The table as plain numbers: exact, so a bundle needs no family name."""
        return {"alpha_bar": self.alpha_bar.tolist()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> NoiseSchedule:
        """The inverse of `to_config`."""
        return cls(torch.tensor(config["alpha_bar"], dtype=torch.float64))


def _checked(num_levels: int) -> int:
    if num_levels < 1:
        raise InvalidSchedule(f"found num_levels={num_levels}, wanted at least 1")
    return num_levels
