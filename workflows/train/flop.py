"""How many floating-point operations a sample costs, and which share of the hardware's rate training reaches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, cast, final

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusion_core.condition import Condition
from diffusion_core.networks import NetworkConfig, NoisyClassifierConfig
from diffusion_core.networks.registry import kind_of
from workflows.train.batches import Share

_FORWARD_AND_BACKWARD: Final = 3
"""The backward pass multiplies twice as much as the forward pass."""
_SIZE: Final = {"cpu": 512, "cuda": 8192}
_REPEATS: Final = 5


@final
@dataclass(frozen=True)
class Speed:
    """What utilisation is computed from.

    Attributes:
        flop_per_sample: of one training step, forward and backward.
        rate: FLOP/s of a large matrix product in the type of the training, over all workers.
    """

    flop_per_sample: float
    rate: float

    @staticmethod
    def measured(flop_per_sample: float, device: torch.device, share: Share) -> Speed:
        """Times matrix products on this worker's own device."""
        return Speed(flop_per_sample, matrix_rate(device.type) * share.size)

    def figures(self, samples_per_second: float) -> Mapping[str, float]:
        """`mfu`: the share of the matrix rate that useful operations take (recomputation does not count)."""
        return {"mfu": self.flop_per_sample * samples_per_second / self.rate}


def training_flop(forward: Callable[[], object]) -> float:
    """Of a row's forward and backward pass, counted operator by operator without computing it.

    Args:
        forward: makes a network and calls it with one row, on the default device.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward()
    return _FORWARD_AND_BACKWARD * float(counter.get_total_flops())


def flop_per_sample(config: NetworkConfig, num_tokens: int) -> float:
    """`training_flop` of one of the core's networks.

    Args:
        config: of the network.
        num_tokens: text tokens that a denoiser reads.
    """
    return training_flop(lambda: _forward_row(config, num_tokens))


def _forward_row(config: NetworkConfig, num_tokens: int) -> None:
    network, condition = kind_of(config).build(config), None
    x, level = torch.zeros(1, *config.shape), torch.ones(1)
    if isinstance(config, NoisyClassifierConfig):
        network(x, level)
        return
    sizes = cast(Any, config)
    if sizes.token_dim is not None:
        condition = Condition.of(
            torch.zeros(1, num_tokens, sizes.token_dim), torch.ones(1, num_tokens, dtype=torch.bool)
        )
    network(x, level, condition)


@lru_cache(maxsize=4)
def matrix_rate(device: str) -> float:
    """FLOP/s of a square matrix product on one device with the threads of this process: the fastest of some."""
    size, dtype = _SIZE.get(device, 512), torch.bfloat16 if device == "cuda" else torch.float32
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(_REPEATS):
        started = time.perf_counter()
        product = a @ b
        float(product[0, 0])
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best
