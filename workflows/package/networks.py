"""diffusers networks that speak the network protocol: a level per row, and the row's condition.

Each is the diffusers class itself with another `forward`, so its tensors keep the names of the published files.
"""

from __future__ import annotations

from typing import Any, Final, final

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from diffusion_core.condition import Condition
from diffusion_core.errors import InvalidCondition
from workflows.package.network_config import DiffusersConfig


@final
class TextUNet(UNet2DConditionModel):  # type: ignore[misc]
    """The U-Net of Stable Diffusion."""

    def prepare(self, config: DiffusersConfig) -> None:
        """Takes what its own configuration does not say."""
        null = config.null
        self.num_times, self.masked = config.num_times, config.masked
        self.register_buffer("null_tokens", torch.zeros(1, config.token_dim or 1) if null is None else null, False)

    def forward(self, x: Tensor, level: Tensor, condition: Condition | None = None) -> Tensor:
        """See `diffusion_core.denoiser.Network`; rows without a condition read the empty prompt."""
        tokens, mask = _text(condition, self.null_tokens.to(x.device), len(x))
        mask = mask if self.masked else None
        time = times(level, self.num_times)
        output: Tensor = super().forward(x, time, tokens.to(x.dtype), encoder_attention_mask=mask).sample
        return output

    @property
    def blocks(self) -> list[nn.Module]:
        """What is compiled, sharded and recomputed as one."""
        return unet_blocks(self)


@final
class PlainUNet(UNet2DModel):  # type: ignore[misc]
    """The unconditional U-Net of DDPM."""

    def prepare(self, config: DiffusersConfig) -> None:
        """See `TextUNet.prepare`."""
        self.num_times = config.num_times

    def forward(self, x: Tensor, level: Tensor, condition: Condition | None = None) -> Tensor:  # noqa: ARG002
        """See `diffusion_core.denoiser.Network`; it reads no condition."""
        output: Tensor = super().forward(x, times(level, self.num_times)).sample
        return output

    @property
    def blocks(self) -> list[nn.Module]:
        """See `TextUNet.blocks`."""
        return unet_blocks(self)


@final
class LabelDiT(DiTTransformer2DModel):  # type: ignore[misc]
    """The class-conditional transformer of DiT; its last class is "no class"."""

    def prepare(self, config: DiffusersConfig) -> None:
        """See `TextUNet.prepare`."""
        self.num_times, self.num_classes = config.num_times, int(config.num_classes or 0)
        for module in self.modules():
            # The loop hides conditions itself, by each row's own draw.
            if type(module).__name__ == "LabelEmbedding":
                module.dropout_prob = 0.0

    def forward(self, x: Tensor, level: Tensor, condition: Condition | None = None) -> Tensor:
        """See `diffusion_core.denoiser.Network`."""
        time = times(level, self.num_times)
        output: Tensor = super().forward(x, timestep=time, class_labels=self._labels(x, condition)).sample
        return output

    @property
    def blocks(self) -> list[nn.Module]:
        """See `TextUNet.blocks`."""
        return list(self.transformer_blocks)

    def _labels(self, x: Tensor, condition: Condition | None) -> Tensor:
        absent = torch.full((len(x),), self.num_classes, device=x.device)
        if condition is None or condition.label is None:
            return absent
        label = condition.label.to(x.device)
        if bool((label >= self.num_classes).any()):
            raise InvalidCondition(f"found label {int(label.max())}, this network knows 0..{self.num_classes - 1}")
        return torch.where(condition.present.to(x.device) & (label >= 0), label, absent)


ARCHITECTURES: Final[dict[str, type[Any]]] = {
    "UNet2DConditionModel": TextUNet,
    "UNet2DModel": PlainUNet,
    "DiTTransformer2DModel": LabelDiT,
}


def build(config: DiffusersConfig) -> nn.Module:
    """The network, with random weights."""
    network: Any = ARCHITECTURES[config.architecture].from_config(config.model_config)
    network.prepare(config)
    built: nn.Module = network
    return built


def times(level: Tensor, num_times: int) -> Tensor:
    """The checkpoint's own times of levels: level t is its time t - 1."""
    return (level - 1).clamp(0, num_times - 1)


def unet_blocks(network: Any) -> list[nn.Module]:
    """The stages of a U-Net, in order."""
    return [*network.down_blocks, network.mid_block, *network.up_blocks]


def _text(condition: Condition | None, null: Tensor, num_rows: int) -> tuple[Tensor, Tensor | None]:
    """Tokens and mask of every row, those of the empty prompt where a row shows no condition."""
    absent = null.expand(num_rows, *null.shape)
    if condition is None or condition.tokens is None:
        return absent, None
    tokens, mask = condition.tokens, condition.mask
    if tokens.shape[1:] != null.shape:
        raise InvalidCondition(
            f"found tokens of shape {tuple(tokens.shape[1:])}, this network reads {tuple(null.shape)}: encode prompts "
            "with the model's own text tower"
        )
    seen = condition.present
    chosen = torch.where(seen[:, None, None], tokens.to(null.dtype), absent)
    return chosen, None if mask is None else mask | ~seen[:, None]
