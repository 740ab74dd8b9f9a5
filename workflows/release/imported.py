"""Registers a package that was imported: one run, one version, and the alias where nobody holds it."""

from __future__ import annotations

from pathlib import Path

from workflows.config.schema import RunConfig
from workflows.package.files import PackageCard, verify
from workflows.package.reference import ModelVersion
from workflows.release.card import model_card
from workflows.release.promote import CHALLENGER, holder_of, move_alias
from workflows.release.register import make_version
from workflows.runtime.git import git_commit
from workflows.tracking.run import FINISHED, tracked_run
from workflows.tracking.store import open_client, reaching, tracking_uri


def register_package(config: RunConfig, name: str, folder: Path) -> tuple[ModelVersion, str]:
    """Makes a version of a package, or finds the one that has been made of it.

    Args:
        config: names the store and the alias.
        name: of the registered model.
        folder: of the package.

    Returns:
        The version and its alias: the configured one if nobody holds it, else `challenger`.

    Raises:
        TrackingUnreachable: the store cannot be used.
    """
    card, _ = verify(folder)
    known = _registered(config, name, card)
    if known is not None:
        return known, _alias(config, known)
    run_file = config.root_folder / "imports" / f"{name}.json"
    with tracked_run(config, run_file, card.hash) as run:
        run.log_params({"source": card.source, "name": name})
        version = make_version(run, name, _tags(card), folder, card)
        with reaching(run.uri):
            text = model_card(name, card, {}, version.tags)
            run.client.update_model_version(name, version.version, description=text)
    return version, _alias(config, version)


def _registered(config: RunConfig, name: str, card: PackageCard) -> ModelVersion | None:
    """The newest version of this very package whose run came to its end."""
    uri = tracking_uri(config)
    with reaching(uri):
        client = open_client(uri)
        versions = client.search_model_versions(f"name = '{name}'", order_by=["version_number DESC"])
        for found in versions:
            if found.tags.get("package_hash") == card.hash and client.get_run(found.run_id).info.status == FINISHED:
                return ModelVersion(name, str(found.version), found.run_id, dict(found.tags))
    return None


def _alias(config: RunConfig, version: ModelVersion) -> str:
    uri, alias = tracking_uri(config), config.register_.alias
    holder = holder_of(uri, version.name, alias)
    if holder is None:
        move_alias(config, version, alias, expected=None, tags={"promoted_because": "first"})
        return alias
    if holder.version == version.version:
        return alias
    with reaching(uri):
        open_client(uri).set_registered_model_alias(version.name, CHALLENGER, version.version)
    return CHALLENGER


def _tags(card: PackageCard) -> dict[str, str]:
    return {
        "package_hash": card.hash,
        "data_hash": card.data_hash,
        "denoiser_hash": card.parts["denoiser"],
        "git_commit": git_commit(),
        "imported": card.source,
    }
