"""The networks that a denoiser can be, by name.

A new network is a module of `diffusion_core.networks`, a row of its registry, and a row here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, final


@final
@dataclass(frozen=True)
class NetworkOption:
    """One network.

    Attributes:
        name: its name in the configuration, and in `diffusion_core.networks.registry`.
        rows: the name of the type of rows that it denoises.
        sizes: for each argument of its configuration in the core, the field of `denoiser.network` that sets it.
    """

    name: str
    rows: Literal["pictures", "vectors"]
    sizes: Mapping[str, str]


NETWORKS: Final[Mapping[str, NetworkOption]] = {
    network.name: network
    for network in (
        NetworkOption(
            "dit",
            "pictures",
            {
                "patch": "patch_size",
                "stem": "stem",
                "width": "width",
                "depth": "depth",
                "num_heads": "num_heads",
                "mlp_ratio": "mlp_ratio",
            },
        ),
        NetworkOption("unet", "pictures", {"width": "width", "num_blocks": "depth", "num_heads": "num_heads"}),
        NetworkOption("mlp", "vectors", {"width": "width", "depth": "depth"}),
    )
}
"""The networks by name; the first one that fits the rows is the default."""


def networks_for(rows: str) -> tuple[str, ...]:
    """The names of the networks that denoise rows of a type.

    Args:
        rows: the type's name, as in `NetworkOption.rows`.
    """
    return tuple(network.name for network in NETWORKS.values() if network.rows == rows)


if TYPE_CHECKING:
    NetworkName: TypeAlias = str
else:
    NetworkName = Literal[networks_for("pictures")]
