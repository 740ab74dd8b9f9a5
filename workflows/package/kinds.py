"""diffusers networks as one more kind of network, known to bundles without importing diffusers."""

from __future__ import annotations

from typing import Final

from torch import nn

from diffusion_core.networks.registry import NetworkKind, register_network
from workflows.package.network_config import DiffusersConfig


def register() -> None:
    """Makes the kind known to bundles; doing it twice is harmless."""
    register_network(_DIFFUSERS)


def _build(config: DiffusersConfig) -> nn.Module:
    from workflows.package.networks import build

    return build(config)


_DIFFUSERS: Final = NetworkKind("diffusers", DiffusersConfig, _build)
