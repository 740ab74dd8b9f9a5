"""The imported model that a fine-tune starts from: `denoiser.base` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from diffusion_core.bundle import ModelBundle
from diffusion_core.errors import InvalidBundle
from diffusion_core.prediction import Parameterization
from diffusion_core.schedule import NoiseSchedule
from workflows.config.schema import RunConfig
from workflows.data.rows import RowType
from workflows.errors import InvalidConfig
from workflows.package.files import AUTOENCODER, CLIP, PIPELINE, PackageCard
from workflows.package.kinds import register
from workflows.package.lora import ADAPTER
from workflows.package.source import find_model
from workflows.towers.latent_format import LatentFormat


@final
@dataclass(frozen=True)
class Base:
    """A package that is fine-tuned.

    Attributes:
        folder: of the package.
        card: what it draws.
        bundle: its denoiser.
    """

    folder: Path
    card: PackageCard
    bundle: ModelBundle

    @property
    def parameterization(self) -> Parameterization:
        """What its denoiser predicts.

        Raises:
            InvalidBundle: it is no denoiser.
        """
        if self.bundle.parameterization is None:
            raise InvalidBundle(f"{self.folder} holds no denoiser: import the model again")
        return self.bundle.parameterization

    @property
    def text_folder(self) -> Path:
        """The folder of its text tower."""
        return self.folder / CLIP

    @property
    def autoencoder(self) -> Path | None:
        """Folder of its autoencoder; None: it denoises pixels."""
        folder = self.folder / AUTOENCODER
        return folder if folder.is_dir() else None

    def latents(self, *, flips: bool) -> LatentFormat | None:
        """How pictures are cached for it."""
        if self.autoencoder is None:
            return None
        weights = "".join(sorted(value for name, value in self.card.parts.items() if name.startswith(AUTOENCODER)))
        z, height, width = self.bundle.shape
        return LatentFormat(weights, (z, height, width), flips)


def base_of(config: RunConfig) -> Base | None:
    """The base of a job, or None where a network is trained from nothing.

    Raises:
        ModelNotFound: no such model.
        InvalidConfig: it cannot be fine-tuned; says why.
        InvalidBundle: its package is broken.
    """
    if config.denoiser.base is None:
        return None
    source = find_model(config, config.denoiser.base)
    card = PackageCard.load(source.folder)
    if not (source.folder / PIPELINE).is_dir() or not (source.folder / CLIP).is_dir():
        raise InvalidConfig(f"denoiser.base {source.label} is no imported text model: `raverse import` makes one")
    if (source.folder / ADAPTER).is_dir():
        raise InvalidConfig(
            f"denoiser.base {source.label} is a LoRA version: start from its base, or export it whole and import that"
        )
    register()
    return Base(source.folder, card, ModelBundle.load(source.folder / "denoiser"))


def base_key(config: RunConfig) -> dict[str, Any]:
    """What a stage's key says of the base: its hash, so that a moved alias is another base."""
    if config.denoiser.base is None:
        return {}
    return {"base": PackageCard.load(find_model(config, config.denoiser.base).folder).hash}


def schedule_of(base: Base | None, own: NoiseSchedule) -> NoiseSchedule:
    """The schedule of a job's denoiser and classifier."""
    return own if base is None else base.bundle.schedule


def check_rows(base: Base, rows: RowType, where: str) -> None:
    """Compares what a base draws with the rows of the data.

    Raises:
        InvalidConfig: they differ.
    """
    drawn = base.card.rows
    if drawn.name != rows.name:
        raise InvalidConfig(f"denoiser.base draws {drawn.name}, {where} holds {rows.name}: leave denoiser.base out")
    if drawn.shape != rows.shape:
        raise InvalidConfig(
            f"denoiser.base draws {drawn.name} of shape {drawn.shape}, {where} holds {rows.shape}: set "
            f"data.image_size={drawn.shape[-1]} and data.channels={drawn.shape[0]}"
        )
