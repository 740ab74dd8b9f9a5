"""The table of stages: what each reads, which configuration it depends on, and where its function is.

Functions are imported when they run, so that the command line answers before torch and Ray are loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from workflows.config.schema import RunConfig
from workflows.job.pipeline import Stage, StageFunction
from workflows.options.sources import BUILT_IN_DATA
from workflows.runtime.preflight import check_port
from workflows.tracking.store import check_tracking, tracking_uri


def _data() -> StageFunction:
    from workflows.data.stage import build_data

    return build_data


def _clip() -> StageFunction:
    from workflows.train.clip.stage import train_clip

    return train_clip


def _embed() -> StageFunction:
    from workflows.embed.stage import embed

    return embed


def _denoiser() -> StageFunction:
    from workflows.train.stage import train_denoiser

    return train_denoiser


def _classifier() -> StageFunction:
    from workflows.train.stage import train_classifier

    return train_classifier


def _evaluate() -> StageFunction:
    from workflows.evaluate.stage import evaluate

    return evaluate


def _register() -> StageFunction:
    from workflows.release.register import register_model

    return register_model


def _serve_check() -> StageFunction:
    from workflows.serve.check import check_service

    return check_service


def _check_tracking(config: RunConfig) -> None:
    check_tracking(tracking_uri(config))


def _check_training_tracked(config: RunConfig) -> None:
    if config.storage.track_training:
        _check_tracking(config)


def _check_data_store(config: RunConfig) -> None:
    _check_bucket(config.data.store)


def _check_store(config: RunConfig) -> None:
    _check_bucket(config.embed.store)


def _check_bucket(url: str | None) -> None:
    if url is not None:
        from workflows.deploy.doctor.findings import refuse_problems
        from workflows.deploy.doctor.stores import check_bucket

        refuse_problems([check_bucket(url)])


def _check_clip_tracked(config: RunConfig) -> None:
    if config.clip.source == "train":
        _check_training_tracked(config)


def _data_section(config: RunConfig) -> dict[str, Any]:
    """A user's own files may change under the same path."""
    if config.data.source in BUILT_IN_DATA:
        return config.data.keyed()
    from workflows.data.sources.location import Location

    return {"data": config.data.keyed(), "files": Location(config.data.path or "").stamp()}


def _clip_section(config: RunConfig) -> dict[str, Any]:
    folder = config.clip.source.removeprefix("local-dir:")
    files = _stamps(Path(folder)) if folder != config.clip.source else {}
    return {"clip": config.clip.keyed(), "files": files}


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Size and modification time of a folder's files: a user's towers may change under the same path."""
    stats = {path.name: path.stat() for path in sorted(folder.glob("*")) if path.is_file()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _embed_section(config: RunConfig) -> dict[str, Any]:
    """Only a base has latents, which `flips` mirrors."""
    values, base = config.embed.keyed(), _base(config)
    return values | base if base else {name: value for name, value in values.items() if name != "flips"}


def _base(config: RunConfig) -> dict[str, Any]:
    """What is fine-tuned; nothing where a network is trained from nothing."""
    if config.denoiser.base is None:
        return {}
    from workflows.package.base import base_key

    return base_key(config)


def _denoiser_section(config: RunConfig) -> dict[str, Any]:
    return config.denoiser.keyed() | _base(config)


def _classifier_section(config: RunConfig) -> dict[str, Any]:
    """The classifier judges the denoiser's x_t, so it depends on the denoiser's schedule too."""
    schedule = config.denoiser.keyed().get("schedule")
    return config.classifier.keyed() | {"schedule": schedule} | _base(config)


STAGES: Final = (
    Stage(
        name="data",
        help="Builds the captioned images and splits them into training and held-out.",
        load=_data,
        sections=_data_section,
        checks=(_check_data_store,),
        version=2,
    ),
    Stage(
        name="clip",
        help="Trains or loads the CLIP towers.",
        load=_clip,
        sections=_clip_section,
        inputs=("data",),
        checks=(_check_clip_tracked,),
        version=2,
    ),
    Stage(
        name="embed",
        help="Writes images and cached CLIP embeddings to shards with Ray Data.",
        load=_embed,
        sections=_embed_section,
        inputs=("data", "clip"),
        checks=(_check_store,),
        version=2,
    ),
    Stage(
        name="denoiser",
        help="Trains the denoiser with Ray Train.",
        load=_denoiser,
        sections=_denoiser_section,
        inputs=("data", "embed"),
        checks=(_check_training_tracked,),
    ),
    Stage(
        name="classifier",
        help="Trains the noisy-image classifier with Ray Train.",
        load=_classifier,
        sections=_classifier_section,
        inputs=("data", "clip", "embed"),
        checks=(_check_training_tracked,),
    ),
    Stage(
        name="evaluate",
        help="Samples with every kind of guidance and judges the pictures.",
        load=_evaluate,
        sections=lambda config: config.evaluate.keyed(),
        inputs=("data", "clip", "embed", "denoiser", "classifier"),
        version=4,
    ),
    Stage(
        name="register",
        help="Registers the model version, which gets its alias if it passes the gate.",
        load=_register,
        sections=lambda config: {"register": config.register_.keyed(), "store": config.storage.tracking_uri},
        inputs=("data", "clip", "embed", "denoiser", "classifier", "evaluate"),
        checks=(_check_tracking,),
    ),
    Stage(
        name="serve-check",
        help="Serves the registered version and asks for one picture of each kind over HTTP.",
        load=_serve_check,
        sections=lambda config: config.serve.keyed(),
        inputs=("data", "clip", "embed", "denoiser", "classifier", "evaluate", "register"),
        checks=(_check_tracking, check_port),
    ),
)


def stage(name: str) -> Stage:
    """The stage of this name."""
    return next(row for row in STAGES if row.name == name)
