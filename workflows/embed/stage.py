"""The embed stage: captioned images and towers in, the embedding cache out.

Two passes of Ray Data over lists of shards: a pool of actors encodes the distinct captions, and tasks
decode the images. Each shard is written where it is computed, so that only its name and hash travel and
memory does not grow with the data. The plan of the shards depends on the input alone, so any number of
workers writes the same cache, and a run that was killed goes on with the shards that are missing.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data import Dataset as RayDataset
from ray.exceptions import RayError

from diffusion_core.errors import RaverseError
from workflows.artifact import Artifact
from workflows.config import RunConfig
from workflows.data.dataset import Dataset
from workflows.embed.captions import CaptionShardWriter
from workflows.embed.identity import ClipIdentity
from workflows.embed.images import ImageShardWriter
from workflows.embed.manifest import discard_damaged
from workflows.embed.plan import Item, plan_shards
from workflows.embed.shards import Shard, remove_partial
from workflows.progress import Progress


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
    clip_folder = inputs["clip"].folder
    identity = ClipIdentity.load(clip_folder)
    plan = plan_shards(dataset, identity, config.embed)
    discard_damaged(folder)
    remove_partial(folder)
    shards = plan.finished(folder)
    captions, images = (
        [item for item in items if item["path"] not in shards] for items in (plan.captions, plan.images)
    )
    progress.start(len(plan.captions) + len(plan.images), "shards")
    progress.advance(len(shards))
    encode = (clip_folder, folder, plan.encoder, config.embed.dtype, config.embed.batch_size)
    workers = _num_workers(config.embed.workers, len(captions))
    write_image = ImageShardWriter(dataset.folder, folder, dataset.info.shape, plan.encoder)
    for pass_items, build in (
        (captions, lambda rows: _encoded(rows, encode, workers)),
        (images, lambda rows: rows.map(write_image)),
    ):
        for shard in _run(pass_items, build):
            shards[shard.path] = shard
            progress.advance(len(shards))
    plan.manifest(dataset, identity, config.embed.dtype, shards.values()).save(folder)
    encoded = sum(len(item["captions"]) for item in captions)
    counts = {f"num_{name}": count for name, count in plan.rows.items()}
    return counts | {"encoded_captions": encoded, "cache_key": plan.key}


def _encoded(items: RayDataset, arguments: tuple[Any, ...], workers: int) -> RayDataset:
    num_gpus = 1 if _total("GPU") >= workers else 0
    return items.map_batches(
        CaptionShardWriter,
        fn_constructor_args=(*arguments, num_gpus),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=num_gpus,
    )


def _num_workers(wanted: int, num_shards: int) -> int:
    """No more actors than can run at once, or than have something to do: each loads the tower."""
    return max(1, min(wanted, num_shards, int(_total("CPU"))))


def _total(resource: str) -> float:
    return float(ray.cluster_resources().get(resource, 0))


def _run(items: Sequence[Item], build: Callable[[RayDataset], RayDataset]) -> Iterator[Shard]:
    """Runs one pass over work items, one block each; yields shards as they are finished."""
    if not items:
        return
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Our own errors would otherwise arrive inside Ray Data's.
    context.raise_original_map_exception = True
    failure = None
    with DataContext.current(context):
        try:
            for row in build(ray.data.from_items(list(items), override_num_blocks=len(items))).iter_rows():
                yield Shard(**row)
        except RayError as error:
            cause = getattr(error, "cause", None)
            failure = cause if isinstance(cause, RaverseError) else error
    if failure is not None:
        # Ray Data's actors live as long as a reference to them, and the error's frames hold some in a cycle.
        failure = failure.with_traceback(None)
        gc.collect()
        raise failure
