"""Exponential moving averages of weights.

    average <- beta_t average + (1 - beta_t) weights,      t = 1, 2, ...

`ConstantDecay` is the classic; `PowerFunction` keeps the average's width proportional to training's length. Several
averages of one network are several `EMA`s. Sharded weights (DTensor) are averaged shard by shard.

References:
    Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models (2024), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from diffusion_core.errors import InvalidShape


@runtime_checkable
class Decay(Protocol):
    """How much of the average is kept at each update."""

    def beta(self, update: int) -> float:
        """Of update 1, 2, ..., in [0, 1); 0 at the first, so that the initial weights are forgotten."""
        ...


@dataclass(frozen=True)
class ConstantDecay:
    """`beta_t = min(decay, (t - 1) / (t + 9))`: rises to its constant, and starts as a plain mean of recent weights.

    Args:
        decay: in [0, 1).
        warm_up: whether it rises; otherwise it is `decay` from the second update on.

    Raises:
        InvalidShape: a decay out of range.
    """

    decay: float = 0.999
    warm_up: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise InvalidShape(f"found decay {self.decay}, wanted a number in [0, 1)")

    def beta(self, update: int) -> float:
        """See `Decay.beta`."""
        if self.warm_up:
            return min(self.decay, (update - 1) / (update + 9))
        return self.decay if update > 1 else 0.0


@dataclass(frozen=True)
class PowerFunction:
    """`beta_t = (1 - 1/t)^(gamma + 1)`: the weight of update tau is proportional to tau^gamma.

    Args:
        sigma_rel: the profile's standard deviation relative to training's length, in (0, 0.28].

    Raises:
        InvalidShape: a width out of range.

    References:
        Karras et al. (2024), eq. 5-7: `sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))`.
    """

    sigma_rel: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_rel <= 0.28:
            raise InvalidShape(f"found sigma_rel {self.sigma_rel}, wanted a number in (0, 0.28]")

    @property
    def gamma(self) -> float:
        """The profile's exponent, by bisection: the width falls as it rises."""
        low, high = 0.0, 1.0 / self.sigma_rel + 1.0
        for _ in range(100):
            middle = (low + high) / 2.0
            width = (middle + 1.0) / ((middle + 2.0) ** 2 * (middle + 3.0))
            low, high = (middle, high) if width > self.sigma_rel**2 else (low, middle)
        return low

    def beta(self, update: int) -> float:
        """See `Decay.beta`."""
        return float((1.0 - 1.0 / update) ** (self.gamma + 1.0))


def reconstruction(snapshots: Sequence[tuple[int, float]], update: int, sigma_rel: float) -> list[float]:
    """How to add up stored power-function averages so that they come nearest to an average of another width.

    Least squares between profiles, whose inner products have a closed form.

    Args:
        snapshots: (update, sigma_rel) of each stored average.
        update: at which the wanted average ends.
        sigma_rel: its width.

    Returns:
        The factor of each snapshot.

    Raises:
        InvalidShape: no snapshots, or a width out of range.

    References:
        Karras et al. (2024), algorithm 3.
    """
    if not snapshots:
        raise InvalidShape("found no snapshots, wanted at least one stored average")
    stored = torch.tensor([(t, PowerFunction(width).gamma) for t, width in snapshots], dtype=torch.float64)
    wanted = torch.tensor([(update, PowerFunction(sigma_rel).gamma)], dtype=torch.float64)
    factors = torch.linalg.lstsq(_overlap(stored, stored), _overlap(stored, wanted), driver="gelsd").solution
    return [float(factor) for factor in factors[:, 0]]


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of profiles given as rows (update, gamma)."""
    t_a, gamma_a = a[:, None].unbind(-1)
    t_b, gamma_b = b[None].unbind(-1)
    ratio = (t_a / t_b) ** torch.where(t_a < t_b, gamma_b, -gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) * ratio / ((gamma_a + gamma_b + 1) * torch.maximum(t_a, t_b))


@final
class EMA:
    """The moving average of a network's trained parameters, in at least single precision, sharded as they are.

    Args:
        network: whose parameters are averaged; buffers and frozen ones are not, `weights` takes them as they are.
        decay: how much is kept at each update.
    """

    def __init__(self, network: nn.Module, decay: Decay | None = None) -> None:
        self.decay: Decay = ConstantDecay() if decay is None else decay
        self.num_updates = 0
        self.averages = {
            name: parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
            for name, parameter in _trained(network).items()
        }

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes the network's parameters into the average: after each optimizer step.

        Raises:
            InvalidShape: parameters of other names or shapes than at the start.
        """
        parameters = self._matched(network)
        self.num_updates += 1
        averages = [_local(average) for average in self.averages.values()]
        current = [_local(parameter).to(average) for parameter, average in zip(parameters, averages, strict=True)]
        torch._foreach_lerp_(averages, current, 1.0 - self.decay.beta(self.num_updates))

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Overwrites the network's parameters with the average.

        Raises:
            InvalidShape: parameters of other names or shapes.
        """
        for parameter, average in zip(self._matched(network), self.averages.values(), strict=True):
            _local(parameter).copy_(_local(average))

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        """The network's `state_dict` with averages for parameters, as a bundle wants it."""
        return {name: self.averages.get(name, value).detach() for name, value in network.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Averages, sharded as they are, and the number of updates: what a distributed checkpoint saves."""
        return {"num_updates": self.num_updates, "averages": dict(self.averages)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`, into a network sharded alike.

        Raises:
            InvalidShape: averages of other names or shapes.
        """
        averages: Mapping[str, Tensor] = state["averages"]
        _check_same(self.averages, averages)
        for name, average in self.averages.items():
            _local(average).copy_(_local(averages[name]))
        self.num_updates = int(state["num_updates"])

    def _matched(self, network: nn.Module) -> list[nn.Parameter]:
        parameters = _trained(network)
        _check_same(self.averages, parameters)
        return [parameters[name] for name in self.averages]


def _trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that change: of a network that is frozen as a whole, all of them."""
    every = dict(network.named_parameters())
    return {name: value for name, value in every.items() if value.requires_grad} or every


def _local(tensor: Tensor) -> Tensor:
    """The shard of this process: averaging is elementwise, so nothing is gathered."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _check_same(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for name in {**wanted, **found}:
        shapes = [tuple(part[name].shape) if name in part else None for part in (found, wanted)]
        if shapes[0] != shapes[1]:
            raise InvalidShape(
                f"found {name} of shape {shapes[0]}, this average has {shapes[1]}: use one network for both"
            )
