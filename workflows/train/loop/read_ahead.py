"""The next batch is read while one is trained on."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

from workflows.config.schema import TrainConfig
from workflows.train.batches import Batch, Batches, Share


@final
class ReadAhead:
    """Reads batches in the order of training; the next one is read on a thread while one is trained on.

    Memory: one more batch of this worker. An error of the thread is raised where its batch is asked for.

    Args:
        batches: that are read.
        config: of the training.
        share: of this worker.
    """

    def __init__(self, batches: Batches, config: TrainConfig, share: Share) -> None:
        self._batches, self._config, self._share = batches, config, share
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._coming: tuple[tuple[int, int], Future[Batch]] | None = None

    def read(self, samples_seen: int, part: int) -> Batch:
        """This worker's share of the batch that follows after this many rows; see `Batches.read`."""
        place, coming = (samples_seen, part), self._coming
        batch = coming[1].result() if coming is not None and coming[0] == place else self._read(place)
        following = self._after(place)
        self._coming = None if following is None else (following, self._thread.submit(self._read, following))
        return batch

    def close(self) -> None:
        """Reads no more, and ends what runs beside."""
        self._batches.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _read(self, place: tuple[int, int]) -> Batch:
        return self._batches.read(*place, self._share)

    def _after(self, place: tuple[int, int]) -> tuple[int, int] | None:
        samples_seen, part = place
        if part + 1 < self._config.accumulate:
            return samples_seen, part + 1
        samples_seen += self._config.batch_size
        return None if samples_seen >= self._config.num_steps * self._config.batch_size else (samples_seen, 0)
