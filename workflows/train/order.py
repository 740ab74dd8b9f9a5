"""In which order an epoch visits the samples: shards in a permuted order, and rows mixed within a window of shards.

So training reads a few shards at a time, whatever the number of samples. The order is a pure function of the seed and
the epoch. It holds the rows of two windows, 8 bytes each, and nothing that grows with the samples.

With one window it is a permutation of all samples. With more, each has `num_shards / num_windows` shards, and two rows
of a batch come from the same shard with a probability of one over that number.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

_ORDER_STREAM: Final = 17
_ROUNDS: Final = 4


@final
@dataclass(frozen=True)
class Order:
    """The order of the samples in each epoch.

    The last shard may be shorter than the others. It comes last in every epoch, so all others have a known place.

    Args:
        seed: of the order.
        num_samples: how many there are.
        shard_rows: samples of a shard, except the last one.
        shuffle_rows: samples of a window, about: windows are made of whole shards, and are equally large.
    """

    seed: int
    num_samples: int
    shard_rows: int
    shuffle_rows: int

    @property
    def num_shards(self) -> int:
        """How many shards there are."""
        return -(-self.num_samples // self.shard_rows)

    @property
    def num_windows(self) -> int:
        """How many windows an epoch has."""
        return -(-self.num_shards // max(1, round(self.shuffle_rows / self.shard_rows)))

    def stretch(self, epoch: int, place: int, count: int) -> NDArray[np.int64]:
        """Samples of an epoch from a place on, at most so many: as far as one window goes."""
        window = self.window_at(place)
        offset = place - self._first(window) * self.shard_rows
        return _mixed(self, epoch, window)[offset : offset + count]

    def window_at(self, place: int) -> int:
        """The window with the row at a place of an epoch."""
        return ((place // self.shard_rows + 1) * self.num_windows - 1) // self.num_shards

    def shards(self, epoch: int, window: int) -> list[int]:
        """The shards of a window, as they come."""
        places = range(self._first(window), self._first(window + 1))
        if self.num_windows == 1:
            return list(places)
        last = self.num_shards - 1
        key = f"{self.seed}/{_ORDER_STREAM}/{epoch}"
        return [place if place == last else permuted(place, last, key) for place in places]

    def _first(self, window: int) -> int:
        """How many shards come before a window."""
        return window * self.num_shards // self.num_windows


@lru_cache(maxsize=2)
def _mixed(order: Order, epoch: int, window: int) -> NDArray[np.int64]:
    """The samples of a window, mixed."""
    starts = np.array(order.shards(epoch, window), np.int64) * order.shard_rows
    rows = (starts[:, None] + np.arange(min(order.shard_rows, order.num_samples))).ravel()
    rows = rows[rows < order.num_samples]
    draws = [order.seed, _ORDER_STREAM, epoch, *([window] if window else [])]
    return rows[np.random.default_rng(draws).permutation(len(rows))]


def permuted(index: int, size: int, key: str) -> int:
    """The place of an index in a pseudo-random permutation of `range(size)`, in constant time and memory.

    A Feistel network permutes the numbers of an even count of bits; where it leaves the range it is applied again.

    Args:
        index: in the range.
        size: of the range.
        key: chooses the permutation.

    References:
        Black and Rogaway, Ciphers with Arbitrary Finite Domains (2002), section 4, for the repetition.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    while True:
        left, right = index >> half, index & ((1 << half) - 1)
        for turn in range(_ROUNDS):
            digest = hashlib.blake2b(f"{key}/{turn}/{right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & ((1 << half) - 1))
        index = (left << half) | right
        if index < size:
            return index
