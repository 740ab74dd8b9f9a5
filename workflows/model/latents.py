"""The codec of a latent model: its autoencoder, and a linear map that previews latents without it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from diffusion_core import noise
from diffusion_core.types import Data
from workflows.towers.autoencoder import Autoencoder

PREVIEW_FILE: Final = "preview.safetensors"
_ROWS: Final = 4
_SIDE: Final = 8
_RIDGE: Final = 1e-4


@final
class Latents:
    """Pictures as latents of an autoencoder.

    Args:
        autoencoder: encodes and decodes.
        preview: from (1, latent channels) to picture channels, `(c, 1 + z)`.
        shape: (c, h, w) of a picture.
    """

    def __init__(self, autoencoder: Autoencoder, preview: Tensor, shape: tuple[int, ...]) -> None:
        self._autoencoder, self._preview, self._shape = autoencoder, preview, shape

    @staticmethod
    def load(folder: Path, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Latents:
        """Loads the `autoencoder` part of a package.

        Raises:
            InvalidConfig: diffusers is not installed, or no autoencoder lies there.
        """
        preview = load_file(folder / PREVIEW_FILE)["preview"]
        return Latents(Autoencoder.load(folder, device), preview.to(device), shape)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Data:
        """See `workflows.model.codec.Codec.encode`; the mean of the posterior."""
        return self._autoencoder.encode_pictures(pictures)[0]

    def decode(self, x0: Data) -> Tensor:
        """See `workflows.model.codec.Codec.decode`."""
        return self._autoencoder.decode(x0)

    def preview(self, x0: Data) -> Tensor:
        """See `workflows.model.codec.Codec.preview`: a linear map of each latent, enlarged."""
        weights = self._preview.to(x0)
        colours = torch.einsum("cz,bzhw->bchw", weights[:, 1:], x0) + weights[:, 0, None, None]
        return functional.interpolate(colours, self._shape[1:], mode="bilinear")

    def mask(self, kept: Tensor) -> Tensor:
        """See `workflows.model.codec.Codec.mask`."""
        factor = self._autoencoder.factor
        return -functional.max_pool2d(-kept[None].float(), factor)[0]


def fit_preview(autoencoder: Autoencoder, channels: int) -> Tensor:
    """The linear map from latents to the mean colours of their pixels, by least squares on decoded latents.

    Args:
        autoencoder: whose latents are mapped.
        channels: of a latent, z.

    Returns:
        `(c, 1 + z)`, the constant first.
    """
    shape = (channels, _SIDE, _SIDE)
    fine = noise.normal(list(range(_ROWS)), noise.INITIAL, 0, shape)
    # Neighbouring latents of real pictures are alike; so are those of a coarse grid, enlarged.
    coarse = noise.normal(list(range(_ROWS)), noise.INITIAL, 1, (channels, 2, 2))
    z = torch.cat([fine, functional.interpolate(coarse, _SIDE, mode="bilinear")])
    pictures = functional.avg_pool2d(autoencoder.decode(z).clamp(-1, 1).cpu(), autoencoder.factor)
    rows = z.permute(0, 2, 3, 1).reshape(-1, channels).double()
    design = torch.cat([torch.ones(len(rows), 1, dtype=torch.float64), rows], dim=1)
    colours = pictures.permute(0, 2, 3, 1).reshape(len(rows), -1).double()
    normal = design.T @ design + _RIDGE * torch.eye(design.shape[1], dtype=torch.float64)
    solution: Tensor = torch.linalg.solve(normal, design.T @ colours)
    return solution.T.float().contiguous()


def save_preview(folder: Path, preview: Tensor) -> None:
    """Writes the map beside the autoencoder."""
    save_file({"preview": preview}, folder / PREVIEW_FILE)
