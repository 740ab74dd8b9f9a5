"""The shards of the next window are fetched while rows of the present one are read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, final

import numpy as np

from workflows.embed.row_reader import RowReader
from workflows.storage.shards import Shard
from workflows.train.order import Order

_FETCHERS: Final = 8
_IMAGES: Final = "train/images"
_log = logging.getLogger(__name__)


@final
class FetchAhead:
    """Fetches the shards of the present window of an `Order`, and those of the next one where there is room for both.

    A shard that cannot be fetched is left to the reader, which meets the same error when it wants a row of it.
    Memory: a chunk of each shard that is being fetched, 8 times 16 MiB.

    Args:
        reader: of the cache.
        order: of the rows.
        limit: bytes of copies that the node may have.
    """

    def __init__(self, reader: RowReader, order: Order, limit: int) -> None:
        self._reader, self._order, self._limit = reader, order, limit
        self._turns = ThreadPoolExecutor(1, thread_name_prefix="windows")
        self._pool = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="fetch")
        self._begun: tuple[int, int] | None = None

    def at(self, samples_seen: int) -> None:
        """Says how far training is."""
        epoch, place = divmod(samples_seen, self._order.num_samples)
        window = epoch, self._order.window_at(place)
        if window != self._begun:
            self._begun = window
            self._turns.submit(self._fetch, *window)

    def close(self) -> None:
        """Fetches no more than what is under way."""
        for pool in (self._turns, self._pool):
            pool.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, epoch: int, window: int) -> None:
        size = self._fetched(epoch, window)
        if size > self._limit:
            _log.warning(
                "a window of %d rows takes %d bytes of copies, more than train.cache_bytes %d: shards are fetched "
                "again and again; raise train.cache_bytes, or lower train.shuffle_rows",
                self._order.shuffle_rows,
                size,
                self._limit,
            )
        elif 2 * size <= self._limit and self._begun == (epoch, window):
            last = window + 1 == self._order.num_windows
            self._fetched(*((epoch + 1, 0) if last else (epoch, window + 1)))

    def _fetched(self, epoch: int, window: int) -> int:
        """Fetches what a window needs; returns its bytes."""
        shards = self._reader.shards(_IMAGES)
        images = [shards[number] for number in self._order.shards(epoch, window)]
        return self._all(images) + self._all(self._captions_of(images))

    def _all(self, shards: Iterable[Shard]) -> int:
        return sum(self._pool.map(self._one, shards))

    def _one(self, shard: Shard) -> int:
        try:
            return self._reader.opened.open(shard).nbytes
        except Exception:  # noqa: BLE001 - the reader of its rows meets the same error, and raises it
            return 0

    def _captions_of(self, images: Sequence[Shard]) -> list[Shard]:
        """The shards with the captions of some shards of images."""
        numbers: set[int] = set()
        for shard in images:
            try:
                captions = self._reader.opened.open(shard).column("captions").values.to_numpy()
            except Exception:  # noqa: BLE001, S112 - as above
                continue
            numbers |= set(np.unique(captions // self._reader.shard_rows("captions")).tolist())
        shards = self._reader.shards("captions")
        return [shards[number] for number in sorted(numbers) if number < len(shards)]
