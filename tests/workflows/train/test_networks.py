"""Which network a configuration gives for which rows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from diffusion_core.networks import DiTConfig, MLPConfig, UNetConfig
from workflows.config.schema import NetworkConfig
from workflows.data.rows import Pictures, Vectors, rows_of
from workflows.train.networks import _DENOISERS, denoiser_network


@pytest.mark.parametrize(
    ("shape", "kind", "wanted"),
    [
        ((3, 8, 8), "dit", DiTConfig),
        ((3, 8, 8), "unet", UNetConfig),
        ((5,), "dit", MLPConfig),
        ((5,), "unet", MLPConfig),
    ],
)
def test_the_network_fits_the_rows(shape: tuple[int, ...], kind: str, wanted: type) -> None:
    captions = SimpleNamespace(tokens=torch.zeros(1, 2, 16), pooled=torch.zeros(1, 8))
    cache = SimpleNamespace(shape=shape, rows=rows_of(shape), captions=captions)
    network = denoiser_network(NetworkConfig(kind=kind, width=32, depth=1, num_heads=2), cache)  # type: ignore[arg-type]
    assert isinstance(network, wanted)
    assert (network.shape, network.width, network.token_dim, network.pooled_dim) == (shape, 32, 16, 8)


def test_every_network_that_fits_some_rows_can_be_made() -> None:
    assert set(_DENOISERS) == {*Pictures.networks, *Vectors.networks}
