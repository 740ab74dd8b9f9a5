"""The MLflow model registry: from a finished job to a version under an alias.

`register_model` is the stage: it logs the run and the model, makes a version, and promotes it: the first version
gets the alias, later ones through the gate of `workflows.release`. `workflows.package.reference` goes the other way,
from a reference to the folder of a package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from workflows.config.schema import RunConfig
from workflows.data.dataset import Dataset
from workflows.package.files import PackageCard, verify
from workflows.package.reference import PACKAGE, ModelVersion
from workflows.release.card import model_card
from workflows.release.logging import log_package
from workflows.release.promote import CHALLENGER, CONFIG_TAG, DATA_TAG, Promotion, promote
from workflows.runtime.artifact import Artifact
from workflows.runtime.git import git_commit
from workflows.runtime.progress import Progress
from workflows.tracking.run import TrackedRun, config_key, job_run_file, tracked_run
from workflows.tracking.store import reaching

_CURVES: Final = (("clip", "training"), ("denoiser", ""), ("classifier", ""))
"""Stages that train, and where in their folders the curves are; a CLIP that was loaded has none."""
_PICTURES: Final = (
    ("evaluate", "samples.png"),
    ("evaluate", "curves.png"),
    ("evaluate", "metrics.json"),
    ("evaluate", "neighbours.png"),
)


def register_model(config: RunConfig, inputs: dict[str, Artifact], folder: Path, progress: Progress) -> dict[str, Any]:
    """Registers what the job made, and gives the version the configured alias.

    Args:
        config: the job.
        inputs: the artifacts `data`, `clip`, `embed`, `denoiser`, `classifier`, `evaluate`.
        folder: for `registry.json`.
        progress: told about finished parts.

    Returns:
        `model`, `version`, `alias` (that it got), `run_id`, `package_hash`, `promoted` and why.

    Raises:
        TrackingUnreachable: the MLflow store cannot be used; the evaluated package stays where it is.
        InvalidBundle: the evaluated package was changed.
    """
    package = inputs["evaluate"].folder / PACKAGE
    card, _ = verify(package)
    progress.start(2, "parts")
    with tracked_run(config, job_run_file(config), config_key(config)) as run:
        _log_run(run, config, inputs)
        progress.advance(1)
        version = make_version(run, config.register_.model_name, _tags(config, inputs, card), package, card)
        _log_card(run, version, card, inputs, folder)
        promotion = promote(config, version, lambda: Dataset.open(inputs["data"].folder), progress)
        _tell(promotion, config, progress)
    values = {
        "model": version.name,
        "version": version.version,
        "alias": config.register_.alias if promotion.moved else CHALLENGER,
        "run_id": version.run_id,
        "package_hash": card.hash,
        "promoted": promotion.moved,
        "promoted_because": promotion.reason if promotion.moved else "refused by the gate",
    }
    (folder / "registry.json").write_text(json.dumps(values | {"tracking_uri": run.uri}, indent=2))
    return values


def _log_card(
    run: TrackedRun, version: ModelVersion, card: PackageCard, inputs: dict[str, Artifact], folder: Path
) -> None:
    text = model_card(version.name, card, inputs["evaluate"].metrics, version.tags)
    (folder / "README.md").write_text(text)
    run.log_file(folder / "README.md", "model_card")
    for name in ("samples.png", "neighbours.png"):
        if (inputs["evaluate"].folder / name).is_file():
            run.log_file(inputs["evaluate"].folder / name, "model_card")
    with reaching(run.uri):
        run.client.update_model_version(version.name, version.version, description=text)


def _tell(promotion: Promotion, config: RunConfig, progress: Progress) -> None:
    if promotion.comparison is not None:
        for line in promotion.comparison.text().splitlines():
            progress.log(line)
    version, alias = promotion.version, config.register_.alias
    if not promotion.moved:
        progress.log(
            f"version {version.version} does not pass the gate: {promotion.reason}. Version {promotion.previous} "
            f"stays `{alias}`, the new one is `{CHALLENGER}`; "
            f"`raverse promote {version.name}/{version.version} --force` overrides it"
        )


def _tags(config: RunConfig, inputs: dict[str, Artifact], card: PackageCard) -> dict[str, str]:
    return {
        "package_hash": card.hash,
        "data_hash": card.data_hash,
        "denoiser_hash": card.parts["denoiser"],
        "classifier_hash": card.parts.get("classifier", ""),
        "clip_weights_sha256": str(inputs["clip"].metrics.get("weights_sha256", "")),
        "cache_key": inputs["embed"].key,
        DATA_TAG: str(inputs["data"].folder),
        "git_commit": git_commit(),
        CONFIG_TAG: config.model_dump_json(by_alias=True),
    }


def _log_run(run: TrackedRun, config: RunConfig, inputs: dict[str, Artifact]) -> None:
    run.log_params(config.model_dump(mode="json", by_alias=True))
    run.log_metrics({name: artifact.metrics | {"seconds": artifact.seconds} for name, artifact in inputs.items()})
    for stage, below in _CURVES:
        if (losses := inputs[stage].folder / below / "losses.csv").is_file():
            run.log_curves(stage, losses, after=run.last_step(f"{stage}.loss"))
            run.log_file(losses.with_suffix(".png"), stage)
    for stage, name in _PICTURES:
        if (file := inputs[stage].folder / name).is_file():
            run.log_file(file, stage)


def make_version(run: TrackedRun, name: str, tags: dict[str, str], package: Path, card: PackageCard) -> ModelVersion:
    """Makes a version, or finds the one that an interrupted attempt of the same run has made."""
    from mlflow.exceptions import MlflowException

    with reaching(run.uri):
        try:
            run.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for known in run.client.search_model_versions(f"run_id = '{run.run_id}'"):
            if known.name == name and known.tags.get("package_hash") == tags["package_hash"]:
                return ModelVersion(name, str(known.version), run.run_id, dict(known.tags))
        model_uri, model_id = log_package(run, package, card)
        made = run.client.create_model_version(name, model_uri, run.run_id, tags, model_id=model_id)
    return ModelVersion(name, str(made.version), run.run_id, tags)
