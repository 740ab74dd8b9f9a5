"""Latents instead of pixels: a frozen autoencoder whose mean and deviation can be cached, and that decodes samples.

A diffusers `AutoencoderKL` in a local directory, of the extra `raverse[diffusers]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from workflows.data.pixels import to_data
from workflows.errors import InvalidConfig


@final
class Autoencoder:
    """Pictures to latents and back; latents have about unit variance.

    Args:
        model: a diffusers `AutoencoderKL`.
        device: where it computes.
    """

    def __init__(self, model: Any, device: torch.device | str = "cpu") -> None:
        self._model = model.to(device).eval().requires_grad_(False)
        self._scale = float(model.config.scaling_factor)
        self._shift = float(model.config.shift_factor or 0.0)
        self._device = torch.device(device)

    @staticmethod
    def load(folder: Path, device: torch.device | str = "cpu") -> Autoencoder:
        """Loads safetensors weights from a local directory; nothing is downloaded.

        Raises:
            InvalidConfig: diffusers is not installed, or no autoencoder lies there.
        """
        try:
            from diffusers import AutoencoderKL
        except ImportError:
            raise InvalidConfig("latents need diffusers: pip install 'raverse[diffusers]'") from None
        try:
            model, found = AutoencoderKL.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0][:200]
            raise InvalidConfig(f"{folder} holds no AutoencoderKL with safetensors weights ({first})") from None
        if wrong := [*found["missing_keys"], *found["mismatched_keys"]]:
            raise InvalidConfig(f"the weights in {folder} do not fit its config.json: {wrong[0]}")
        return Autoencoder(model, device)

    @property
    def factor(self) -> int:
        """Pixels of a picture's side per latent."""
        return int(2 ** (len(self._model.config.block_out_channels) - 1))

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior of each picture: what is cached.

        Args:
            images: uint8 `(b, c, h, w)`.

        Returns:
            Mean and standard deviation of the latents, each float32 `(b, z, h', w')`.
        """
        return self.encode_pictures(to_data(images.to(self._device)))

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """As `encode`, of pictures in [-1, 1]."""
        posterior = self._model.encode(pictures.to(self._device).float()).latent_dist
        return (posterior.mean - self._shift) * self._scale, posterior.std * self._scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures in about [-1, 1] `(b, c, h, w)`."""
        found: Tensor = self._model.decode(latents.to(self._device).float() / self._scale + self._shift).sample
        return found
