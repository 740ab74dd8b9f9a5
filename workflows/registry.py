"""The MLflow model registry: from a finished job to a version under an alias.

`register_model` is the stage: it logs the run and the model, makes a version, and moves the alias. `resolve`
goes the other way, from a reference to the folder of a package (see `workflows.model_reference`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from workflows.artifact import Artifact
from workflows.config import RunConfig
from workflows.model_reference import PACKAGE, ModelVersion, ResolvedModel, find_version, resolve
from workflows.package_files import PackageCard, verify
from workflows.progress import Progress
from workflows.pyfunc_logging import log_package
from workflows.report import git_state
from workflows.tracking import TrackedRun, tracked_run
from workflows.tracking_store import reaching

__all__ = ["ModelVersion", "ResolvedModel", "find_version", "promote", "register_model", "resolve"]

_CURVES: Final = ("denoiser", "classifier")
_PICTURES: Final = (("evaluate", "samples.png"), ("evaluate", "curves.png"), ("evaluate", "metrics.json"))


def register_model(config: RunConfig, inputs: dict[str, Artifact], folder: Path, progress: Progress) -> dict[str, Any]:
    """Registers what the job made, and gives the version the configured alias.

    Args:
        config: the job.
        inputs: the artifacts `data`, `clip`, `embed`, `denoiser`, `classifier`, `evaluate`.
        folder: for `registry.json`.
        progress: told about finished parts.

    Returns:
        `model`, `version`, `alias`, `run_id`, `package_hash`.

    Raises:
        TrackingUnreachable: the MLflow store cannot be used; the evaluated package stays where it is.
        InvalidBundle: the evaluated package was changed.
    """
    package = inputs["evaluate"].folder / PACKAGE
    card, _ = verify(package)
    progress.start(2, "parts")
    with tracked_run(config, folder / "mlflow_run.json") as run:
        _log_run(run, config, inputs)
        progress.advance(1)
        version = _version(run, config.register_.model_name, _tags(config, inputs, card), package, card)
        promote(run, version, config.register_.alias)
    progress.advance(2)
    values = {
        "model": version.name,
        "version": version.version,
        "alias": config.register_.alias,
        "run_id": version.run_id,
        "package_hash": card.hash,
    }
    (folder / "registry.json").write_text(json.dumps(values | {"tracking_uri": run.uri}, indent=2))
    return values


def promote(run: TrackedRun, version: ModelVersion, alias: str) -> None:
    """Moves the alias to a version: the only place that does.

    A gate that compares the version with the alias's present holder belongs before the move; today each new
    version gets it.
    """
    with reaching(run.uri):
        run.client.set_registered_model_alias(version.name, alias, version.version)


def _tags(config: RunConfig, inputs: dict[str, Artifact], card: PackageCard) -> dict[str, str]:
    return {
        "package_hash": card.hash,
        "data_hash": card.data_hash,
        "denoiser_hash": card.parts["denoiser"],
        "classifier_hash": card.parts["classifier"],
        "clip_weights_sha256": str(inputs["clip"].metrics.get("weights_sha256", "")),
        "cache_key": inputs["embed"].key,
        "git_commit": _git_commit(),
        "config": config.model_dump_json(by_alias=True),
    }


def _git_commit() -> str:
    """Commit of the code, with `-dirty` where it was changed; `unknown` outside a checkout."""
    state = git_state()
    return f"{state['commit']}{'-dirty' if state['changed'] else ''}" if state else "unknown"


def _log_run(run: TrackedRun, config: RunConfig, inputs: dict[str, Artifact]) -> None:
    run.log_params(config.model_dump(mode="json", by_alias=True))
    run.log_metrics({name: artifact.metrics | {"seconds": artifact.seconds} for name, artifact in inputs.items()})
    for stage in _CURVES:
        run.log_curves(stage, inputs[stage].folder / "losses.csv")
        run.log_file(inputs[stage].folder / "losses.png", stage)
    for stage, name in _PICTURES:
        if (file := inputs[stage].folder / name).is_file():
            run.log_file(file, stage)


def _version(run: TrackedRun, name: str, tags: dict[str, str], package: Path, card: PackageCard) -> ModelVersion:
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
