"""Pixels and data in [-1, 1]: one line each way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_core.errors import InvalidShape
from diffusion_core.likelihood import _check_data
from workflows.data.pixels import to_data, to_pixels

EVERY = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)


@pytest.mark.parametrize("pixels", [EVERY, torch.from_numpy(EVERY)], ids=["numpy", "torch"])
def test_every_pixel_comes_back(pixels: np.ndarray | torch.Tensor) -> None:
    x = to_data(pixels)
    assert (x.dtype, x.shape) == (torch.float32, (4, 8, 8))
    np.testing.assert_allclose(x.flatten().numpy(), np.linspace(-1, 1, 256), rtol=0, atol=1e-7)
    found = to_pixels(x)
    assert found.dtype == torch.uint8
    assert torch.equal(found, torch.from_numpy(EVERY))


def test_data_between_and_beyond_pixels_goes_to_the_nearest() -> None:
    x = torch.tensor([[-1.0, 1.0], [0.0, 5.0], [-7.0, -0.998]])
    assert to_pixels(x).tolist() == [[0, 255], [128, 255], [0, 0]]
    nudged = to_data(EVERY) + 0.4 / 127.5
    assert torch.equal(to_pixels(nudged), torch.from_numpy(EVERY))
    assert not torch.equal(to_pixels(to_data(EVERY) + 0.6 / 127.5), torch.from_numpy(EVERY)), "negative control"


def test_the_core_counts_bits_on_the_same_grid() -> None:
    """The core knows the formula too: its discretized decoder refuses data that lie elsewhere."""
    _check_data(to_data(EVERY), "discretized")
    with pytest.raises(InvalidShape, match="8-bit data"):
        _check_data(to_data(EVERY) * 0.99, "discretized")
