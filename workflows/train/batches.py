"""Planned rows, read from the embedding cache and noised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

import torch
from torch import Tensor

from diffusion_core import noise
from diffusion_core.condition import Condition
from diffusion_core.objective import TrainingDraws
from workflows.config.schema import TrainConfig
from workflows.embed.cache import EmbeddingCache
from workflows.storage.copies import CopySettings
from workflows.train.fetch_ahead import FetchAhead
from workflows.train.plan import Plan, PlannedRows


def open_cache(folder: Path, config: TrainConfig, device: torch.device | None = None) -> EmbeddingCache:
    """The cache in a folder, with copies of a store's shards where the training has them."""
    return EmbeddingCache.open(folder, CopySettings(config.cache_folder, config.cache_bytes), device)


@final
@dataclass(frozen=True)
class Share:
    """Which rows of a batch this worker takes: `rank`, `rank + size`, `rank + 2 size`, ..."""

    rank: int = 0
    size: int = 1

    @property
    def rows(self) -> slice:
        """As a slice of the batch."""
        return slice(self.rank, None, self.size)


class Batch(Protocol):
    """One worker's rows; `sample_ids` as the data names them, `(b,)` int64, on the CPU."""

    @property
    def sample_ids(self) -> Tensor: ...  # noqa: D102

    def __len__(self) -> int: ...


class Batches(Protocol):
    """All global batches of a training run: a pure function of the number of rows seen, at any number of workers."""

    @property
    def num_tokens(self) -> int:
        """Of a caption."""
        ...

    def read(self, samples_seen: int, part: int, share: Share) -> Batch:
        """This worker's share of the batch that follows after this many rows; `part` counts what is accumulated."""
        ...

    def close(self) -> None:
        """Ends what runs beside the training."""
        ...


@final
@dataclass(frozen=True, eq=False)
class TrainBatch:
    """One worker's rows.

    Attributes:
        sample_ids: as the data names them, `(b,)` int64, on the CPU.
        x0: clean data in [-1, 1], `(b, ...)`.
        draws: level, noise, and whether the condition is hidden.
        condition: caption and label, none of them hidden yet.
        share: which rows of the batch are this worker's.
        num_all: rows of all workers, B.
    """

    sample_ids: Tensor
    x0: Tensor
    draws: TrainingDraws
    condition: Condition
    share: Share
    num_all: int

    def __len__(self) -> int:
        return len(self.x0)


@final
class BatchReader:
    """Reads rows by position, so that no worker depends on what the others read.

    Args:
        cache: of images and captions.
        num_levels: T.
        seed: of the noise.
        device: where batches go.
    """

    def __init__(self, cache: EmbeddingCache, num_levels: int, seed: int, device: torch.device) -> None:
        self._cache, self._num_levels, self._seed, self._device = cache, num_levels, seed, device

    def read(self, planned: PlannedRows, share: Share) -> TrainBatch:
        """This worker's share of the planned rows."""
        own = planned.rows(share.rows)
        found = self._cache.batch("train", own.samples)
        tokens, mask, pooled = self._cache.captions.take(found.pick(own.wordings))
        stored = self._cache.images("train", own.samples).to(self._device)
        x0 = self._cache.to_x0(stored, self._seed, own.numbers)
        eps = noise.normal(self._seed, noise.TRAIN_NOISE, own.numbers, x0.shape[1:], self._device)
        level = 1 + (own.level_draws * self._num_levels).long()
        return TrainBatch(
            found.sample_ids,
            x0,
            TrainingDraws(level, eps, own.dropped),
            Condition.of(tokens, mask, pooled, found.labels).to(self._device),
            share,
            len(planned),
        )


@final
class CachedBatches:
    """Batches of an embedding cache, in the order of a `Plan`.

    Args:
        cache: of images and captions.
        num_levels: T.
        config: of the training.
        device: where batches go.

    Raises:
        InvalidData: the training split is empty.
    """

    def __init__(self, cache: EmbeddingCache, num_levels: int, config: TrainConfig, device: torch.device) -> None:
        self._plan = Plan(
            config.seed,
            cache.num_samples("train"),
            config.batch_size,
            config.condition_dropout,
            config.level_shift,
            cache.manifest.shard_rows["images"],
            config.shuffle_rows,
            config.level_density,
        )
        self._reader = BatchReader(cache, num_levels, config.seed, device)
        opened = cache.reader.opened
        self._ahead = FetchAhead(cache.reader, self._plan.order, opened.limit) if opened.fetches else None
        self._parts, self._num_tokens = config.accumulate, int(cache.manifest.clip["context_length"])
        self.captions = cache.captions

    @property
    def num_tokens(self) -> int:
        """See `Batches.num_tokens`."""
        return self._num_tokens

    def close(self) -> None:
        """Ends the fetching, as `Batches.close` says."""
        if self._ahead is not None:
            self._ahead.close()

    def read(self, samples_seen: int, part: int, share: Share) -> TrainBatch:
        """See `Batches.read`."""
        if self._ahead is not None:
            self._ahead.at(samples_seen)
        return self._reader.read(self._plan.batch(samples_seen).rows(slice(part, None, self._parts)), share)
