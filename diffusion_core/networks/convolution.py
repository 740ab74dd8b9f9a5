"""Convolutions over one to three axes."""

from __future__ import annotations

import math

from torch import nn


def convolution(rank: int, channels: int, wanted: int, size: int = 3, stride: int = 1) -> nn.Module:
    """A convolution over `rank` axes that keeps their lengths, or divides them by the stride."""
    kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    return kinds[rank](channels, wanted, size, stride=stride, padding=size // 2)


def num_groups(channels: int) -> int:
    """At most 32 groups of at least 4 channels."""
    return math.gcd(channels, max(1, min(32, channels // 4)))
