"""Which shards a cache consists of: a pure function of the input, so that any run cuts the same ones.

A work item is a row for Ray Data: the shard's `path`, the `key` of what it is made from, and either the range of
samples (`split`, `start`, `stop`) with the positions of their captions (`captions`), or where the text of its captions
is (`CaptionIndex.item`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeAlias, final

from workflows.config.schema import EmbedConfig
from workflows.data.dataset import SPLITS, Dataset
from workflows.data.rows import RowType
from workflows.embed.caption_index import CaptionIndex
from workflows.embed.manifest import Manifest, cache_key, encoder_key
from workflows.storage.mapped import ENDING
from workflows.storage.place import Place
from workflows.storage.shards import Shard
from workflows.towers.identity import ClipIdentity
from workflows.towers.latent_format import LatentFormat

Item: TypeAlias = dict[str, Any]

_SHARD_BYTES: Final = 64 << 20
"""Data of one shard at most: what a worker holds in memory."""
_BYTES_PER_FEATURE: Final = 4
_TEXT_FEATURES: Final = 64
"""So many features take the place of a caption's text."""


@final
@dataclass(frozen=True)
class EmbedPlan:
    """The shards of one cache.

    Attributes:
        key: of the cache.
        encoder: key of the text tower.
        images: work items of the image shards.
        captions: work items of the caption shards.
        rows: samples per split, and distinct `captions`.
        shard_rows: see `Manifest.shard_rows`.
        index: of the captions.
        latents: how images are stored; None: as pixels.
    """

    key: str
    encoder: str
    images: tuple[Item, ...]
    captions: tuple[Item, ...]
    rows: dict[str, int]
    shard_rows: dict[str, int]
    index: CaptionIndex = field(compare=False)
    latents: LatentFormat | None = None

    def manifest(
        self,
        dataset: Dataset,
        identity: ClipIdentity,
        dtype: str,
        shards: Iterable[Shard],
        store: Place | None = None,
        towers: str | None = None,
    ) -> Manifest:
        """What is written when every shard is there; for `store` and `towers` see `Manifest`."""
        return Manifest(
            key=self.key,
            encoder_key=self.encoder,
            data_hash=dataset.info.data_hash,
            clip=asdict(identity),
            dtype=dtype,
            shape=dataset.info.shape if self.latents is None else self.latents.shape,
            rows=self.rows,
            shard_rows=self.shard_rows,
            # Beyond a million, numbers have more digits.
            files=tuple(sorted(shards, key=lambda shard: (len(shard.path), shard.path))),
            latents=None if self.latents is None else self.latents.describe(),
            store=None if store is None else store.url,
            towers=towers,
        )


def plan_shards(
    dataset: Dataset, identity: ClipIdentity, config: EmbedConfig, latents: LatentFormat | None = None
) -> EmbedPlan:
    """Cuts images, in order, and distinct captions, in order of first use, into shards.

    Args:
        dataset: the samples.
        identity: of the towers.
        config: `dtype` and `rows_per_shard`; a shard has fewer rows where those would be over 64 MiB.
        latents: how images are stored; None: as pixels.
    """
    encoder = encoder_key(asdict(identity), config.dtype)
    form = None if latents is None else latents.describe()
    key = cache_key(encoder, dataset.info.data_hash, form, config.mode)
    row_bytes = _row_bytes(dataset.info.rows) if latents is None else latents.row_bytes
    index = CaptionIndex.read(dataset, encoder)
    features = identity.context_length * identity.width if config.mode == "cached" else _TEXT_FEATURES
    token_bytes = features * _BYTES_PER_FEATURE
    rows = {"train": dataset.info.num_train, "held_out": dataset.info.num_held_out, "captions": len(index)}
    sizes = {
        "images": _shard_rows(config.rows_per_shard, row_bytes),
        "captions": _shard_rows(config.rows_per_shard, token_bytes),
    }
    return EmbedPlan(
        key=key,
        encoder=encoder,
        images=tuple(_image_items(dataset, index, key, sizes["images"])),
        captions=tuple(_caption_items(index, encoder, sizes["captions"])),
        rows=rows,
        shard_rows=sizes,
        index=index,
        latents=latents,
    )


def _image_items(dataset: Dataset, index: CaptionIndex, key: str, size: int) -> Iterator[Item]:
    first = 0
    for split in SPLITS:
        count = dataset.info.num_samples(split)
        for start in range(0, count, size):
            stop = min(start + size, count)
            yield {
                "split": split,
                "start": start,
                "stop": stop,
                "captions": index.uses(first + start, first + stop).tobytes(),
                "path": f"{split}/images/shard-{start // size:06d}{ENDING}",
                "key": f"{key}/{split}/{start}/{size}",
            }
        first += count


def _caption_items(index: CaptionIndex, encoder: str, size: int) -> Iterator[Item]:
    for start in range(0, len(index), size):
        stop = min(start + size, len(index))
        yield index.item(start, stop) | {
            "first": start,
            "path": f"captions/shard-{start // size:06d}{ENDING}",
            "key": f"{encoder}/{index.key(start, stop)}",
        }


def _row_bytes(rows: RowType) -> int:
    """Of a stored row."""
    return math.prod(rows.shape) * rows.dtype.itemsize


def _shard_rows(wanted: int, bytes_per_row: int) -> int:
    return max(1, min(wanted, _SHARD_BYTES // bytes_per_row))
