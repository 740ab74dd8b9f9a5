"""The embed stage: captioned images and towers in, the embedding cache out.

Two passes of Ray Data over lists of shards: tasks decode the images, and a pool of actors, for which Ray takes the
processes that the tasks have left, encodes the distinct captions. Each shard is written where it is computed, and goes
from there to `embed.store`, so that only its name and hash travel and memory does not grow with the data. The plan of
the shards depends on the input alone, so any number of workers writes the same cache, and a run that was killed goes on
with the shards that are missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy
from ray.data import Dataset as RayDataset

from workflows.config.schema import RunConfig
from workflows.data.dataset import Dataset
from workflows.embed.caption_index import CaptionIndex
from workflows.embed.captions import CaptionShardWriter, TextShardWriter
from workflows.embed.images import ImageShardWriter
from workflows.embed.latents import LatentShardWriter
from workflows.embed.manifest import discard_damaged, discard_unlisted
from workflows.embed.plan import plan_shards
from workflows.embed.store import CaptionStore
from workflows.package.base import Base, base_of, check_rows
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.runtime.ray_pass import run_pass
from workflows.storage.atomic import remove_partial
from workflows.storage.shards import Shard
from workflows.storage.shelf import Shelf
from workflows.towers.identity import ClipIdentity
from workflows.towers.latent_format import LatentFormat


def embed(config: RunConfig, inputs: dict[str, Artifact], folder: Path, progress: Progress) -> dict[str, Any]:
    """Fills the embedding cache.

    Args:
        config: the job; its `embed` section and the denoiser's base are read.
        inputs: the `data` and `clip` artifacts.
        folder: of the cache; shards that an earlier run made from the same input are kept.
        progress: told about finished shards.

    Returns:
        `num_captions`, `encoded_captions` (by this run), `num_train`, `num_held_out`, `cache_key`.

    Raises:
        InvalidData: a picture that does not fit, or a store that cannot be read.
        InvalidClip: towers that do not load.
        StorageUnwritable: the folder or the store is full or read-only.
    """
    dataset = Dataset.open(inputs["data"].folder)
    base = base_of(config)
    latents = _latents(config, base, dataset)
    clip_folder = inputs["clip"].folder if base is None else base.text_folder
    identity = ClipIdentity.load(clip_folder)
    plan = plan_shards(dataset, identity, config.embed, latents)
    discard_damaged(folder)
    remove_partial(folder)
    shelf = Shelf.of(folder, config.embed.store, plan.key)
    finished = shelf.find((*plan.captions, *plan.images))
    shards = list(finished.values())
    captions, images = (
        [item for item in items if item["path"] not in finished] for items in (plan.captions, plan.images)
    )
    progress.start(len(plan.captions) + len(plan.images), "shards")
    progress.advance(len(shards))
    online = config.embed.mode == "online"
    store = CaptionStore.of(config.root_folder, plan.encoder) if config.embed.share_captions and not online else None
    captions = with_parts(captions, store, plan.index, plan.shard_rows["captions"])
    encode = (dataset, clip_folder, shelf, plan.encoder, config.embed.dtype, config.embed.batch_size)
    workers = _num_workers(config.embed.workers, len(captions))
    encoded = 0
    build_images = _images(dataset, shelf, base, latents, config.embed.workers)
    write_text = TextShardWriter(dataset, shelf, plan.encoder)
    build_captions = (
        (lambda rows: rows.map(write_text)) if online else (lambda rows: _encoded(rows, encode, workers, store))
    )
    for pass_items, build in ((images, build_images), (captions, build_captions)):
        for row in run_pass(pass_items, build):
            encoded += row.pop("encoded", 0)
            shards.append(Shard(**row))
            progress.advance(len(shards))
    towers = os.path.relpath(clip_folder, folder) if online else None
    manifest = plan.manifest(dataset, identity, config.embed.dtype, shards, shelf.store, towers)
    manifest.save(folder)
    discard_unlisted(folder, manifest)
    if store is not None:
        store.describe(asdict(identity), config.embed.dtype)
    counts = {f"num_{name}": count for name, count in plan.rows.items()}
    return counts | {"encoded_captions": encoded, "cache_key": plan.key}


def with_parts(
    items: Sequence[dict[str, Any]], store: CaptionStore | None, index: CaptionIndex, size: int
) -> list[dict[str, Any]]:
    """Work items of captions, `size` in each, with the names of the parts of the store that hold some of them."""
    if store is None or not items:
        return [item | {"parts": []} for item in items]
    names, found = store.find(index.ids)
    held = ((item, np.unique(found[item["first"] : item["first"] + size])) for item in items)
    return [item | {"parts": [names[part] for part in parts if part >= 0]} for item, parts in held]


def _encoded(items: RayDataset, arguments: tuple[Any, ...], workers: int, store: CaptionStore | None) -> RayDataset:
    num_gpus = 1 if _total("GPU") >= workers else 0
    return items.map_batches(
        CaptionShardWriter,
        fn_constructor_args=(*arguments, num_gpus, store),
        batch_size=None,
        batch_format="pyarrow",
        # No more than the next shard waits at an actor, so that all of them end at about the same time.
        compute=ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
        num_cpus=1,
        num_gpus=num_gpus,
    )


def _latents(config: RunConfig, base: Base | None, dataset: Dataset) -> LatentFormat | None:
    if base is None:
        return None
    check_rows(base, dataset.info.rows, dataset.info.source)
    return base.latents(flips=config.embed.flips)


def _images(
    dataset: Dataset, shelf: Shelf, base: Base | None, latents: LatentFormat | None, workers: int
) -> Callable[[RayDataset], RayDataset]:
    """How image shards are made: decoded by tasks, and encoded to latents by actors where a base wants those."""
    if base is None or latents is None or base.autoencoder is None:
        write_image = ImageShardWriter(dataset, shelf, dataset.info.rows)
        return lambda rows: rows.map(write_image)
    num_gpus = 1 if _total("GPU") >= workers else 0
    device = "cuda" if num_gpus else "cpu"
    arguments = (dataset, shelf, dataset.info.rows, base.autoencoder, latents, device)
    compute = ActorPoolStrategy(size=_num_workers(workers, workers))
    return lambda rows: rows.map(
        LatentShardWriter, fn_constructor_args=arguments, compute=compute, num_cpus=1, num_gpus=num_gpus
    )


def _num_workers(wanted: int, num_shards: int) -> int:
    """No more actors than can run at once, or than have something to do: each loads the tower."""
    return max(1, min(wanted, num_shards, int(_total("CPU"))))


def _total(resource: str) -> float:
    return float(ray.cluster_resources().get(resource, 0))
