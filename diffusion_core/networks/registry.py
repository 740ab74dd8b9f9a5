"""Networks by name, so that a file can say which one it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn

from diffusion_core.errors import InvalidBundle
from diffusion_core.networks.dit import DiT, DiTConfig
from diffusion_core.networks.mlp import MLP, MLPConfig
from diffusion_core.networks.noisy_classifier import NoisyClassifier, NoisyClassifierConfig
from diffusion_core.networks.unet import UNet, UNetConfig


@runtime_checkable
class NetworkConfig(Protocol):
    """A frozen dataclass of plain numbers, texts and tuples, that builds one network."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row."""
        ...


@dataclass(frozen=True)
class NetworkKind:
    """A name, the dataclass that holds a network's size, and what builds the network from it."""

    name: str
    config: type[Any]
    build: Callable[[Any], nn.Module]


_KINDS: dict[str, NetworkKind] = {
    kind.name: kind
    for kind in (
        NetworkKind("dit", DiTConfig, DiT),
        NetworkKind("unet", UNetConfig, UNet),
        NetworkKind("mlp", MLPConfig, MLP),
        NetworkKind("noisy_classifier", NoisyClassifierConfig, NoisyClassifier),
    )
}


def register_network(kind: NetworkKind) -> None:
    """Makes a network from outside the core known to bundles; doing it twice is harmless.

    Raises:
        InvalidBundle: the name or the configuration's class belongs to another kind.
    """
    for known in _KINDS.values():
        if known != kind and (known.name == kind.name or known.config is kind.config):
            raise InvalidBundle(f"network kind {kind.name!r} collides with {known.name!r}: choose another name")
    _KINDS[kind.name] = kind


def network_kind(name: str) -> NetworkKind:
    """The kind of that name.

    Raises:
        InvalidBundle: there is none.
    """
    if name not in _KINDS:
        raise InvalidBundle(f"unknown network kind {name!r}: wanted one of {sorted(_KINDS)}, or register_network first")
    return _KINDS[name]


def kind_of(config: NetworkConfig) -> NetworkKind:
    """The kind whose configuration this is.

    Raises:
        InvalidBundle: there is none.
    """
    for kind in _KINDS.values():
        if type(config) is kind.config:
            return kind
    raise InvalidBundle(f"no network kind has configuration {type(config).__name__}: register_network adds one")


def config_from(kind: NetworkKind, values: Mapping[str, Any]) -> NetworkConfig:
    """A configuration from plain values, as JSON gives them.

    Raises:
        InvalidBundle: unknown, missing or ill-typed values.
    """
    try:
        config: NetworkConfig = kind.config(**{name: _frozen(value) for name, value in values.items()})
    except TypeError as error:
        raise InvalidBundle(f"the configuration of network kind {kind.name!r} does not fit: {error}") from None
    return config


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
