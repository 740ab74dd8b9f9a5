"""LoRA: small matrices beside the layers of an imported network, whose own weights are never written.

    y = W x + (alpha / rank) B A x

In a package they are a part of their own, `adapter/`, beside the untouched bundle of the base:

    adapter.safetensors   A and B by the name of their layer
    adapter.json          rank, alpha, targets, and the hash of the bundle that they go with

References:
    Hu et al., LoRA: Low-Rank Adaptation of Large Language Models (2021), eq. 3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion_core.errors import InvalidBundle
from workflows.errors import InvalidConfig

ADAPTER: Final = "adapter"
WEIGHTS: Final = "adapter.safetensors"
SETTINGS: Final = "adapter.json"
_NAME: Final = "default"
_KOHYA: Final = {"lora_A": "lora_down", "lora_B": "lora_up"}


@final
@dataclass(frozen=True)
class Lora:
    """Which matrices there are.

    Attributes:
        rank: of each.
        alpha: they count alpha / rank times.
        targets: ends of the names of the layers that get them.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def insert(self, network: nn.Module) -> None:
        """Puts fresh matrices beside the layers, B being zero; from then on only they are trained.

        Raises:
            InvalidConfig: peft is not installed, or no layer has such a name.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            raise InvalidConfig("LoRA needs peft: pip install 'raverse[diffusers]'") from None
        settings = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=list(self.targets))
        try:
            inject_adapter_in_model(settings, network, _NAME)
        except ValueError as error:
            first = str(error).splitlines()[0][:200]
            raise InvalidConfig(f"denoiser.lora.targets {list(self.targets)} fit no layer: {first}") from None


@final
@dataclass(frozen=True)
class Adapter:
    """Trained matrices.

    Attributes:
        lora: which.
        base: hash of the bundle that they go with.
        weights: by their names in the network.
    """

    lora: Lora
    base: str
    weights: Mapping[str, Tensor]

    def save(self, folder: Path) -> None:
        """Writes the part of a package."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().cpu().contiguous() for name, value in self.weights.items()}, folder / WEIGHTS)
        (folder / SETTINGS).write_text(json.dumps(asdict(self.lora) | {"base": self.base}, indent=2))

    @staticmethod
    def load(folder: Path) -> Adapter:
        """Reads the part of a package.

        Raises:
            InvalidBundle: it is broken.
        """
        try:
            values: dict[str, Any] = json.loads((folder / SETTINGS).read_text())
            lora = Lora(int(values["rank"]), float(values["alpha"]), tuple(values["targets"]))
            return Adapter(lora, str(values["base"]), load_file(folder / WEIGHTS))
        except (OSError, ValueError, KeyError) as error:
            raise InvalidBundle(f"{folder} holds no adapter ({error}): register the model again") from None

    def apply(self, network: nn.Module, base: str) -> None:
        """Puts the matrices into the network of the base.

        Args:
            network: with the base's weights.
            base: hash of its bundle.

        Raises:
            InvalidBundle: they belong to another base, or do not fit.
            InvalidConfig: peft is not installed.
        """
        if base != self.base:
            raise InvalidBundle(f"this adapter belongs to base {self.base[:12]}, not to {base[:12]}: take that one")
        device = next(network.parameters()).device
        self.lora.insert(network)
        wanted = {name for name, _ in adapter_parameters(network)}
        if wanted != set(self.weights):
            wrong = min(wanted ^ set(self.weights))
            raise InvalidBundle(f"this adapter does not fit its base: {wrong}")
        network.load_state_dict(self.weights, strict=False)
        network.to(device).eval().requires_grad_(False)


def adapter_parameters(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The matrices in a network, by name."""
    return [(name, value) for name, value in network.named_parameters() if f".{_NAME}." in name and "lora_" in name]


def merged(network: nn.Module) -> dict[str, Tensor]:
    """The weights of a network with the matrices added to them, under the names of the base."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in network.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    found = {name: value for name, value in network.state_dict().items() if ".lora_" not in name}
    return {name.replace(".base_layer.", "."): value for name, value in found.items()}


def for_diffusers(adapter: Adapter) -> dict[str, Tensor]:
    """The matrices under the names that `load_lora_weights` reads; what B counts is multiplied in."""
    factor = adapter.lora.alpha / adapter.lora.rank
    named = {name.replace(f".{_NAME}.", "."): value for name, value in adapter.weights.items()}
    return {f"unet.{name}": value * factor if ".lora_B." in name else value for name, value in named.items()}


def for_kohya(adapter: Adapter) -> dict[str, Tensor]:
    """The matrices under the names of kohya's trainer, which ComfyUI and A1111 read; alpha is a tensor of its own."""
    found: dict[str, Tensor] = {}
    for name, value in adapter.weights.items():
        layer, _, matrix = name.removesuffix(f".{_NAME}.weight").rpartition(".")
        key = f"lora_unet_{layer.replace('.', '_')}"
        found[f"{key}.{_KOHYA[matrix]}.weight"] = value
        found[f"{key}.alpha"] = torch.tensor(adapter.lora.alpha)
    return found
