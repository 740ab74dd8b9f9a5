"""Which network a configuration gives for which rows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from diffusion_core.networks import DiTConfig, MLPConfig, UNetConfig
from diffusion_core.networks.registry import network_kind
from workflows.config.schema import NetworkConfig
from workflows.data.rows import Pictures, Vectors, rows_of
from workflows.options.networks import NETWORKS
from workflows.train.networks import denoiser_network


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
    manifest = SimpleNamespace(clip={"width": 16, "embed_dim": 8})
    cache = SimpleNamespace(shape=shape, rows=rows_of(shape), manifest=manifest)
    network = denoiser_network(NetworkConfig(kind=kind, width=32, depth=1, num_heads=2), cache)  # type: ignore[arg-type]
    assert isinstance(network, wanted)
    assert (network.shape, network.width, network.token_dim, network.pooled_dim) == (shape, 32, 16, 8)


def test_every_network_fits_a_type_of_rows_and_is_one_that_bundles_know() -> None:
    assert {network.rows for network in NETWORKS.values()} == {Pictures.name, Vectors.name}
    for network in NETWORKS.values():
        assert network_kind(network.name).name == network.name
        assert {*network.sizes.values()} <= set(NetworkConfig.model_fields)
