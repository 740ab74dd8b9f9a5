"""Puts a job's parts together to the package that is evaluated, registered and served."""

from __future__ import annotations

from pathlib import Path

from workflows.config.schema import RunConfig
from workflows.data.dataset import DataInfo
from workflows.package.base import base_of
from workflows.package.files import AUTOENCODER, PIPELINE, SCORER, Defaults, PackageCard, assemble
from workflows.package.lora import ADAPTER
from workflows.runtime.artifact import Artifact


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
        defaults=Defaults(asked.num_steps, asked.guidance_settings),
    )
    parts = inputs["denoiser"].folder
    classifier, base = inputs["classifier"].folder / "bundle", base_of(config)
    if base is None:
        return assemble(folder, card, denoiser=parts / "bundle", classifier=classifier, clip=inputs["clip"].folder)
    # Pictures are scored with the job's towers: a pipeline has none that looks at pictures.
    more = {AUTOENCODER: base.autoencoder, PIPELINE: base.folder / PIPELINE, SCORER: inputs["clip"].folder}
    more[ADAPTER] = parts / ADAPTER if (parts / ADAPTER).is_dir() else None
    given = {name: part for name, part in more.items() if part is not None}
    return assemble(
        folder,
        card,
        denoiser=parts / "bundle",
        classifier=classifier,
        clip=base.text_folder,
        more=given,
        link=True,
    )
