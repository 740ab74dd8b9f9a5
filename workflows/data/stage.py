"""The data stage: captioned images in, the parts of two splits and `data.json` out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from workflows.config.schema import DataConfig, RunConfig
from workflows.data.builtin import digits, shapes
from workflows.data.builtin.wording import product
from workflows.data.dataset import DataInfo, Split, write_split
from workflows.errors import InvalidData
from workflows.options.sources import BUILT_IN_DATA
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.storage.shelf import Shelf


def build_data(
    config: RunConfig,
    inputs: dict[str, Artifact],  # noqa: ARG001 -- the first stage reads none
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Builds the configured set and writes its splits.

    Args:
        config: the job; its `data` section is read.
        inputs: none.
        folder: where the files go.
        progress: told about written samples.

    Returns:
        `num_train`, `num_held_out`, `num_unseen_combinations`, `data_hash`; with own data also `num_rejected` and
        `num_joined`.

    Raises:
        InvalidData: fractions that leave nothing to train on or nothing to hold out, or own data that cannot be used.
        StorageUnwritable: the folder or the store is full or read-only.
    """
    if config.data.source not in BUILT_IN_DATA:
        from workflows.data.own.importing import import_own

        info, counted = import_own(config.data, folder, progress)
        return _figures(info) | counted
    train, held_out, info = _build(config.data)
    if not len(train) or not len(held_out):
        raise InvalidData(
            f"{len(train)} samples to train on and {len(held_out)} held out: set data.held_out between 0 and 1"
        )
    progress.start(len(train) + len(held_out), "samples")
    store = Shelf.of(folder, config.data.store, info.data_hash).store
    parts = {"train": write_split(train, folder, "train", store)}
    progress.advance(len(train))
    parts["held_out"] = write_split(held_out, folder, "held_out", store)
    progress.advance(len(train) + len(held_out))
    info = replace(info, parts=parts, store=None if store is None else store.url)
    info.save(folder)
    return _figures(info)


def _figures(info: DataInfo) -> dict[str, Any]:
    return {
        "num_train": info.num_train,
        "num_held_out": info.num_held_out,
        "num_unseen_combinations": len(info.unseen_combinations),
        "data_hash": info.data_hash,
    }


def _build(config: DataConfig) -> tuple[Split, Split, DataInfo]:
    if config.source == "digits":
        train, held_out = digits.digits(config.held_out, config.seed)
        return train, held_out, _describe(config.source, train, held_out, digits.ATTRIBUTES, digits.TEMPLATES[0], ())
    train, held_out, unseen = shapes.shapes(
        config.num_samples, config.held_out, config.unseen_combinations, config.seed
    )
    return train, held_out, _describe(config.source, train, held_out, shapes.ATTRIBUTES, shapes.TEMPLATES[0], unseen)


def _describe(
    source: str,
    train: Split,
    held_out: Split,
    attributes: Mapping[str, tuple[str, ...]],
    template: str,
    unseen: tuple[int, ...],
) -> DataInfo:
    c, h, w = train.images.shape[1:]
    return DataInfo(
        source=source,
        shape=(c, h, w),
        class_names=next(iter(attributes.values())),
        attributes=dict(attributes),
        num_train=len(train),
        num_held_out=len(held_out),
        data_hash=hashlib.sha256((train.digest() + held_out.digest()).encode()).hexdigest(),
        candidate_captions=tuple(template.format(**values) for values in product(attributes)),
        unseen_combinations=unseen,
    )
