"""Stored samples as networks see them."""

from __future__ import annotations

import torch
from torch import Tensor


def to_x(stored: Tensor) -> Tensor:
    """uint8 pixels as numbers in [-1, 1]; vectors, which are stored as they are trained on, unchanged."""
    return stored.float() / 127.5 - 1.0 if stored.dtype == torch.uint8 else stored.float()
