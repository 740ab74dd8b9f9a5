"""Puts a job's parts together to the package that is evaluated, registered and served."""

from __future__ import annotations

from pathlib import Path

from workflows.artifact import Artifact
from workflows.config import RunConfig
from workflows.data.dataset import DataInfo
from workflows.package_files import Defaults, PackageCard, assemble


def assemble_package(config: RunConfig, inputs: dict[str, Artifact], folder: Path) -> PackageCard:
    """Makes the package of a job.

    Args:
        config: gives the defaults of requests.
        inputs: the artifacts `data`, `clip`, `denoiser`, `classifier`.
        folder: of the package.

    Raises:
        InvalidBundle: a part that is broken, or parts that do not belong together.
    """
    info, asked = DataInfo.load(inputs["data"].folder), config.evaluate
    card = PackageCard(
        source=info.source,
        shape=info.shape,
        class_names=info.class_names,
        candidate_captions=info.candidate_captions,
        data_hash=info.data_hash,
        scale=info.scale,
        defaults=Defaults(asked.num_steps, asked.guidance_scale, asked.classifier_scale, asked.clip_scale),
    )
    return assemble(
        folder,
        card,
        denoiser=inputs["denoiser"].folder / "bundle",
        classifier=inputs["classifier"].folder / "bundle",
        clip=inputs["clip"].folder,
    )
