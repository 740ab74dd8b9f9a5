"""Data of 256 values, as the discretised decoder wants it, and the plain formula of its bins."""

from __future__ import annotations

import math

import scipy.stats
import torch

from diffusion_core import noise


def eight_bit(num_rows: int, shape: tuple[int, ...] = (3, 4), dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """`(num_rows, *shape)` of the values k / 127.5 - 1, k in 0 .. 255."""
    drawn = noise.uniform(range(num_rows), 50, 0, shape, dtype=torch.float64)
    return (drawn * 256).floor().to(dtype) / 127.5 - 1


def plain_bin(x: float, mean: float, deviation: float) -> float:
    """log P(bin of x) by scipy's distribution function and, in the upper half, its survival function."""
    low = -math.inf if x < -0.999 else (x - 1 / 255 - mean) / deviation
    high = math.inf if x > 0.999 else (x + 1 / 255 - mean) / deviation
    if low + high > 0:
        low, high = -high, -low
    return math.log(scipy.stats.norm.cdf(high) - scipy.stats.norm.cdf(low))
