"""Where a command's model comes from: a reference to the registry, or the folder of a package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from workflows.config.schema import RunConfig
from workflows.errors import ModelNotFound
from workflows.package.files import CARD_FILE
from workflows.package.reference import ModelVersion, resolve
from workflows.tracking.store import tracking_uri


@final
@dataclass(frozen=True)
class ModelSource:
    """A package on this machine.

    Attributes:
        label: how the user knows it; fit for a file name.
        folder: of the package.
        version: in the registry; None for a folder.
    """

    label: str
    folder: Path
    version: ModelVersion | None = None


def find_model(config: RunConfig, model: str | None) -> ModelSource:
    """Finds a model package.

    Args:
        config: names the MLflow store, and the model where none is given.
        model: NAME@ALIAS, NAME/VERSION, or the folder of a package; None: what the configuration registers.

    Raises:
        ModelNotFound: no such model, version, alias or folder.
        InvalidBundle: the registry describes another package than the one that is stored.
        TrackingUnreachable: the store cannot be used.
    """
    reference = model or f"{config.register_.model_name}@{config.register_.alias}"
    folder = Path(reference).absolute()
    if folder.is_dir():
        if not (folder / CARD_FILE).is_file():
            raise ModelNotFound(f"{folder} holds no {CARD_FILE}: give NAME@ALIAS, NAME/VERSION or a package's folder")
        return ModelSource(folder.name, folder)
    found = resolve(tracking_uri(config), reference)
    return ModelSource(f"{found.version.name}-{found.version.version}", found.folder, found.version)
