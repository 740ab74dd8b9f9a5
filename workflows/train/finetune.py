"""What a fine-tune begins with: the weights of a base, and LoRA matrices where those are asked for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from diffusion_core.bundle import ModelBundle, link_or_copy
from workflows.config.schema import LoraConfig
from workflows.package.base import Base
from workflows.package.kinds import register
from workflows.package.lora import ADAPTER, Adapter, Lora


@final
@dataclass(frozen=True)
class Start:
    """The beginning of a fine-tune, as plain data that travels to the workers.

    Attributes:
        package: folder of the base, in storage that every worker reads.
        hash: of its denoiser's bundle.
        lora: matrices that are trained; None: all weights are.
    """

    package: Path
    hash: str
    lora: Lora | None = None

    @staticmethod
    def of(base: Base, section: LoraConfig) -> Start:
        """The beginning that a configuration asks for."""
        lora = Lora(section.rank, section.alpha, section.targets) if section.rank else None
        return Start(base.folder.absolute(), base.bundle.hash, lora)

    def describe(self) -> dict[str, Any]:
        """What determines the weights."""
        return {"start": self.hash, "lora": None if self.lora is None else asdict(self.lora)}

    def network(self) -> nn.Module:
        """The network; what is trained requires a gradient. LoRA's A is drawn from torch's global generator."""
        register()
        network = ModelBundle.load(self.package / "denoiser").network().train().requires_grad_(True)
        if self.lora is not None:
            self.lora.insert(network)
        return network

    def pictures(self, x0: Tensor) -> Tensor:
        """Samples as pictures in [-1, 1]."""
        from workflows.model.latents import Latents
        from workflows.package.files import AUTOENCODER, PackageCard

        if not (self.package / AUTOENCODER).is_dir():
            return x0
        return Latents.load(self.package / AUTOENCODER, PackageCard.load(self.package).shape).decode(x0)


def save_tuned(
    folder: Path, base: Base, start: Start, weights: Mapping[str, Tensor], ema: Mapping[str, Tensor]
) -> ModelBundle:
    """Writes `bundle/` and, of LoRA, `adapter/`; then the bundle is the base's own, linked.

    Args:
        folder: of the stage.
        base: that was fine-tuned.
        start: of the run.
        weights: that were trained.
        ema: their moving average.
    """
    if start.lora is None:
        return ModelBundle.save(
            folder / "bundle",
            base.bundle.config,
            weights,
            schedule=base.bundle.schedule,
            parameterization=base.bundle.parameterization,
            ema=ema,
            clip=base.bundle.clip,
        )
    shutil.rmtree(folder / "bundle", ignore_errors=True)
    shutil.copytree(base.bundle.folder, folder / "bundle", copy_function=link_or_copy)
    Adapter(start.lora, base.bundle.hash, ema).save(folder / ADAPTER)
    return ModelBundle.load(folder / "bundle")
