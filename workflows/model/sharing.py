"""One copy of equal weights in a process: versions that were tuned beside the same base hold its tensors together."""

from __future__ import annotations

from typing import Final, final
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn


@final
class _Held(dict[str, Tensor]):
    """Tensors by name; unlike a plain dictionary it can be referred to weakly."""

    __slots__ = ("__weakref__",)


_HELD: Final[WeakValueDictionary[tuple[str, str], _Held]] = WeakValueDictionary()
_ATTRIBUTE: Final = "shared_weights"


def share_weights(network: nn.Module, bundle: str, device: torch.device | str) -> None:
    """Lets a network that was just loaded hold the tensors of an earlier one, whose bundle is the same.

    Call it before anything is put beside its layers. The tensors live as long as one of the networks.

    Args:
        network: frozen, with the bundle's weights.
        bundle: hash of the bundle.
        device: where the network is.
    """
    own = _Held((name, value.data) for name, value in network.named_parameters())
    held = _HELD.setdefault((bundle, str(device)), own)
    if held is not own:
        for name, value in network.named_parameters():
            value.data = held[name]
    object.__setattr__(network, _ATTRIBUTE, held)
