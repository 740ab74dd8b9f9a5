"""uint8 pixels as data in [-1, 1], `x = u / 127.5 - 1`, and back."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_data(pixels: Tensor | NDArray[Any]) -> Tensor:
    """Pixels as data: `x = u / 127.5 - 1`.

    Args:
        pixels: uint8, of any shape: a tensor on any device, or a NumPy array.

    Returns:
        float32 in [-1, 1], of the same shape on the same device.
    """
    return torch.as_tensor(pixels).float() / 127.5 - 1.0


def to_pixels(x: Tensor) -> Tensor:
    """Data as pixels: `u = round(127.5 (x + 1))`, with x clipped to [-1, 1].

    Args:
        x: finite floating-point data of any shape, on any device.

    Returns:
        uint8, of the same shape on the same device.
    """
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
