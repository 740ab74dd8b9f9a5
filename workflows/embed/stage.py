"""The embed stage: captioned images and towers in, the embedding cache out.

Two passes of Ray Data over lists of shards, each shard made and written where it is computed, so that
only its name and hash travel: tasks decode images, and a pool of actors encodes distinct captions. The
layout of the shards depends on the input alone, so any number of workers writes the same cache, and a run
that was killed goes on with the shards that are missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset as RayDataset
from ray.exceptions import RayError

from diffusion_core.errors import RaverseError
from workflows.artifact import Artifact
from workflows.config import RunConfig
from workflows.data.dataset import SPLITS, Dataset
from workflows.embed.captions import CaptionShardWriter, distinct_captions
from workflows.embed.clip import ClipIdentity
from workflows.embed.images import ImageShardWriter
from workflows.embed.manifest import Manifest, cache_key, encoder_key
from workflows.embed.shards import Shard, find_shard, remove_partial
from workflows.errors import MissingArtifact
from workflows.progress import Progress

_SHARD_BYTES: Final = 128 << 20
"""A shard's data at most: what a worker holds in memory."""


def embed(config: RunConfig, inputs: dict[str, Artifact], folder: Path, progress: Progress) -> dict[str, Any]:
    """Fills the embedding cache.

    Args:
        config: the job; its `embed` section is read.
        inputs: the `data` and `clip` artifacts.
        folder: of the cache; shards that an earlier run made from the same input are kept.
        progress: told about finished shards.

    Returns:
        `num_captions`, `encoded_captions` (by this run), `num_train`, `num_held_out`, `cache_key`.

    Raises:
        InvalidData: a picture that does not fit.
        InvalidClip: towers that do not load.
        StorageUnwritable: the folder is full or read-only.
    """
    dataset = Dataset.open(inputs["data"].folder)
    identity = ClipIdentity.load(inputs["clip"].folder)
    encoder = encoder_key(asdict(identity), config.embed.dtype)
    key = cache_key(encoder, dataset.info.data_hash)
    _drop_damaged(folder)
    remove_partial(folder)
    captions = distinct_captions(map(dataset.path, SPLITS), dataset.info.candidate_captions)
    image_items = _image_items(dataset, key, config.embed.rows_per_shard)
    token_bytes = identity.context_length * identity.width * 4
    caption_items = _caption_items(captions, encoder, _rows(config.embed.rows_per_shard, token_bytes))
    done = _finished(folder, image_items + caption_items)
    todo_images = [item for item in image_items if item["path"] not in done]
    todo_captions = [item for item in caption_items if item["path"] not in done]
    progress.start(len(image_items) + len(caption_items), "shards")
    progress.advance(len(done))
    write_image = ImageShardWriter(dataset.folder, folder, dataset.info.shape, encoder)
    arguments = (inputs["clip"].folder, folder, encoder, config.embed.dtype, config.embed.batch_size)
    for shard in _run(todo_captions, lambda items: _encode_pass(items, arguments, config.embed.workers)):
        done[shard.path] = shard
        progress.advance(len(done))
    for shard in _run(todo_images, lambda items: items.map(write_image)):
        done[shard.path] = shard
        progress.advance(len(done))
    files = tuple(done[path] for path in sorted(done))
    rows = {"train": dataset.info.num_train, "held_out": dataset.info.num_held_out, "captions": len(captions)}
    Manifest(
        key, encoder, dataset.info.data_hash, asdict(identity), config.embed.dtype, dataset.info.shape, rows, files
    ).save(folder)
    return {
        "num_captions": len(captions),
        "encoded_captions": sum(len(item["captions"]) for item in todo_captions),
        "num_train": rows["train"],
        "num_held_out": rows["held_out"],
        "cache_key": key,
    }


def _drop_damaged(folder: Path) -> None:
    try:
        manifest = Manifest.load(folder)
    except MissingArtifact:
        return
    for path in manifest.damaged(folder):
        (folder / path).unlink(missing_ok=True)


def _rows(wanted: int, bytes_per_row: int) -> int:
    return max(1, min(wanted, _SHARD_BYTES // bytes_per_row))


def _image_items(dataset: Dataset, key: str, rows_per_shard: int) -> list[dict[str, Any]]:
    c, h, w = dataset.info.shape
    size = _rows(rows_per_shard, c * h * w)
    counts = {"train": dataset.info.num_train, "held_out": dataset.info.num_held_out}
    return [
        {
            "split": split,
            "start": start,
            "stop": min(start + size, counts[split]),
            "path": f"{split}/images/shard-{start // size:05d}.parquet",
            "key": f"{key}/{split}/{start}/{size}",
        }
        for split in SPLITS
        for start in range(0, counts[split], size)
    ]


def _caption_items(captions: list[str], encoder: str, size: int) -> list[dict[str, Any]]:
    groups = [captions[start : start + size] for start in range(0, len(captions), size)]
    return [
        {
            "path": f"captions/shard-{index:05d}.parquet",
            "key": f"{encoder}/{hashlib.sha256(chr(0).join(group).encode()).hexdigest()}",
            "captions": group,
        }
        for index, group in enumerate(groups)
    ]


def _finished(folder: Path, items: list[dict[str, Any]]) -> dict[str, Shard]:
    shards = (find_shard(folder, item["path"], item["key"]) for item in items)
    return {shard.path: shard for shard in shards if shard is not None}


def _encode_pass(items: RayDataset, arguments: tuple[Any, ...], workers: int) -> RayDataset:
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= workers else 0
    return items.map_batches(
        CaptionShardWriter,
        fn_constructor_args=arguments,
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=gpus,
    )


def _run(items: list[dict[str, Any]], build: Callable[[RayDataset], RayDataset]) -> Iterator[Shard]:
    """Runs one pass over work items, one block each; yields shards in the order in which they finish."""
    if not items:
        return
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Otherwise our own error arrives inside Ray Data's, and the user reads a traceback.
    context.raise_original_map_exception = True
    with DataContext.current(context):
        try:
            for row in build(ray.data.from_items(items, override_num_blocks=len(items))).iter_rows():
                yield Shard(**row)
        except RayError as error:
            cause = getattr(error, "cause", None)
            raise cause if isinstance(cause, RaverseError) else error from None
