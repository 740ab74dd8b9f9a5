"""The fixed split into training and held-out samples: by a draw within each group, or by the rank of a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

_AT_ONCE: Final = 1 << 16


def stratified_held_out(groups: NDArray[np.int64], fraction: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Marks the same share of every group, drawn at random.

    Args:
        groups: (n,) group of each sample, such as its class.
        fraction: share to mark, in [0, 1]; rounded to whole samples in each group.
        rng: source of the draw.

    Returns:
        (n,) bool, true for held-out samples.
    """
    held_out = np.zeros(len(groups), np.bool_)
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        held_out[members[: round(fraction * len(members))]] = True
    return held_out


def ranks(digests: Iterable[bytes], seed: int) -> NDArray[np.uint64]:
    """(n,) the first 8 bytes of a hash of the seed and of each picture's digest.

    Two pictures in 2^64 have the same rank. They land on the same side of the split, which does no harm.
    """
    salt = str(seed).encode()
    hashes = b"".join(hashlib.sha256(salt + digest).digest()[:8] for digest in digests)
    return np.frombuffer(hashes, ">u8").astype(np.uint64)


@final
@dataclass(frozen=True)
class RankSplit:
    """Holds out the pictures with the lowest ranks.

    A sample's side depends on its own picture, the seed and one number. So equal pictures are on the same side, a few
    new samples move few old ones, and any process can split its own samples.

    Attributes:
        seed: of the ranks.
        last: the largest rank that is held out; None: nothing is.
    """

    seed: int
    last: int | None

    @staticmethod
    def of(found: NDArray[np.uint64], fraction: float, seed: int) -> RankSplit:
        """Holds out a share of the distinct pictures.

        Args:
            found: (n,) rank of every sample, in ascending order. One more byte for each is in memory meanwhile.
            fraction: share to hold out, in [0, 1].
            seed: of the ranks.
        """
        first = np.ones(len(found), np.bool_)
        np.not_equal(found[1:], found[:-1], out=first[1:])
        distinct = int(np.count_nonzero(first))
        # A share above 0 holds out one picture of a few, and a share below 1 leaves one.
        wanted = min(max(round(fraction * distinct), int(fraction > 0)), distinct - int(fraction < 1))
        wanted = max(wanted, 0)
        return RankSplit(seed, int(found[_place(first, wanted)]) if wanted else None)

    def held_out(self, digests: Iterable[bytes]) -> NDArray[np.bool_]:
        """(n,) bool, true for samples that are held out."""
        found = ranks(digests, self.seed)
        return np.zeros(len(found), np.bool_) if self.last is None else found <= np.uint64(self.last)

    def count(self, found: NDArray[np.uint64]) -> int:
        """How many samples are held out, of ranks in ascending order."""
        return 0 if self.last is None else int(np.searchsorted(found, np.uint64(self.last), side="right"))


def _place(marks: NDArray[np.bool_], number: int) -> int:
    """Where the mark of this number (from 1) is; looked for bit by bit, since all places would take 8 bytes each."""
    for start in range(0, len(marks), _AT_ONCE):
        part = marks[start : start + _AT_ONCE]
        if (count := int(np.count_nonzero(part))) >= number:
            return start + int(np.flatnonzero(part)[number - 1])
        number -= count
    raise AssertionError("fewer marks than wanted")
