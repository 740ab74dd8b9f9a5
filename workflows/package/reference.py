"""References to registered models: `NAME@ALIAS` or `NAME/VERSION`, with or without `models:/`."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from diffusion_core.errors import InvalidBundle
from workflows.errors import ModelNotFound
from workflows.package.files import PackageCard
from workflows.tracking.store import open_client, reaching

if TYPE_CHECKING:
    from mlflow import MlflowClient

PACKAGE: Final = "package"
"""Name of the package among a registered model's artifacts."""
_REFERENCE: Final = re.compile(r"(?:models:/)?(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")


@final
@dataclass(frozen=True)
class ModelVersion:
    """A registered version.

    Attributes:
        name: of the registered model.
        version: its number, as MLflow writes it.
        run_id: of the run that made it.
        tags: of the version: hashes, configuration, git commit.
    """

    name: str
    version: str
    run_id: str
    tags: dict[str, str]


@final
@dataclass(frozen=True)
class ResolvedModel:
    """A version, and the folder of its package on this machine."""

    version: ModelVersion
    folder: Path


def find_version(uri: str, reference: str) -> ModelVersion:
    """Looks a version up, without fetching it: a millisecond, so a service may ask often.

    Args:
        uri: of the MLflow store.
        reference: `NAME@ALIAS` or `NAME/VERSION`, with or without `models:/`.

    Raises:
        ModelNotFound: no such model, version or alias, or not a reference.
        TrackingUnreachable: the store cannot be used.
    """
    return _find(open_client(uri), uri, reference)


def resolve(uri: str, reference: str, cache: Path | None = None) -> ResolvedModel:
    """Finds a version and the folder of its package; a package in a remote store is downloaded.

    Args:
        uri: of the MLflow store.
        reference: see `find_version`.
        cache: where a download goes, once per package; default: a new temporary folder.

    Raises:
        ModelNotFound: as `find_version`, or a version without a package.
        InvalidBundle: the package is not the one that the version was registered with.
        TrackingUnreachable: the store cannot be used.
    """
    client = open_client(uri)
    version = _find(client, uri, reference)
    if cache is None:
        return _checked(version, _fetch(client, uri, version, None))
    target = cache / version.tags.get("package_hash", f"{version.name}-{version.version}")
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as partial:
            fetched = _fetch(client, uri, version, Path(partial))
            try:
                fetched.rename(target)
            except OSError:
                # Another process was quicker with the same content.
                if not target.exists():
                    raise
    return _checked(version, target)


def parse_reference(reference: str) -> tuple[str, str | None, str | None]:
    """Name, alias and version of a reference; one of the last two is None.

    Raises:
        ModelNotFound: neither NAME@ALIAS nor NAME/VERSION.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ModelNotFound(f"{reference!r} is no model reference: give NAME@ALIAS or NAME/VERSION")
    return match["name"], match["alias"], match["version"]


def _checked(version: ModelVersion, folder: Path) -> ResolvedModel:
    """Compares the package's card with the version's tag; who loads the package compares its parts with the card."""
    wanted, found = version.tags.get("package_hash"), PackageCard.load(folder).hash
    if wanted is None:
        raise ModelNotFound(
            f"{version.name} version {version.version} is half-written (no package_hash): register the model again"
        )
    if found != wanted:
        raise InvalidBundle(
            f"{folder} is not the package that {version.name} version {version.version} was registered with: "
            f"found hash {found[:16]}, wanted {wanted[:16]}; register the model again"
        )
    return ResolvedModel(version, folder)


def _fetch(client: MlflowClient, uri: str, version: ModelVersion, target: Path | None) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        source = client.get_model_version_download_uri(version.name, version.version)
        source = f"{source.rstrip('/')}/artifacts/{PACKAGE}"
        path = download_artifacts(source, dst_path=None if target is None else str(target), tracking_uri=uri)
    except (MlflowException, OSError) as error:
        raise ModelNotFound(
            f"{version.name} version {version.version} has no package to fetch ({error}): register it again"
        ) from error
    return Path(path)


def _find(client: MlflowClient, uri: str, reference: str) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    name, alias, version = parse_reference(reference)
    with reaching(uri):
        try:
            if alias is not None:
                found = client.get_model_version_by_alias(name, alias)
            else:
                found = client.get_model_version(name, str(version))
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise ModelNotFound(
                f"no model {reference!r} in {uri}: register one with `raverse run` or `raverse register`"
            ) from None
    return ModelVersion(found.name, str(found.version), found.run_id, dict(found.tags))
