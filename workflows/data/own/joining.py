"""Records of one picture become one sample with the captions of all, wherever in the data they are.

Two records are of one picture where their files and their labels are equal, byte for byte. They are told apart by 64
bits of a hash, so of a million pictures two are taken for one with a probability of 3e-8.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

KEY_BYTES: Final = 8


def join_key(image: bytes, label: str | None) -> bytes:
    """Equal for the records of one picture, and of one label."""
    named = b"-" if label is None else f"+{label}".encode("utf-8", "replace")
    return hashlib.sha256(hashlib.sha256(image).digest() + named).digest()[:KEY_BYTES]


@final
@dataclass(frozen=True)
class Joins:
    """Which rows are joined to which.

    The driver holds 8 bytes of a key for each row, 17 more while it sorts them, then 16 for each row that is joined.

    Attributes:
        rows: of all pieces together.
        followers: (n,) rows that are joined to another, in order of that one and then of their own.
        leaders: (n,) the row that each is joined to: the first of its picture.
    """

    rows: int
    followers: NDArray[np.int64]
    leaders: NDArray[np.int64]

    @staticmethod
    def of(keys: NDArray[np.uint64], *, wanted: bool) -> Joins:
        """Finds rows of equal keys, in the order of the pieces."""
        if not wanted or not len(keys):
            return Joins(len(keys), np.empty(0, np.int64), np.empty(0, np.int64))
        order = np.argsort(keys, kind="stable")
        first = np.ones(len(keys), np.bool_)
        np.not_equal(keys[order[1:]], keys[order[:-1]], out=first[1:])
        places = np.flatnonzero(~first)
        starts = np.flatnonzero(first)
        leaders = order[starts[np.searchsorted(starts, places, side="right") - 1]]
        followers = order[places]
        by_leader = np.lexsort((followers, leaders))
        return Joins(len(keys), followers[by_leader], leaders[by_leader])

    def __len__(self) -> int:
        return len(self.followers)

    def kept(self) -> NDArray[np.bool_]:
        """(rows,) false for those that are joined to another."""
        found = np.ones(self.rows, np.bool_)
        found[self.followers] = False
        return found

    def items(self, rows: Sequence[int], paths: Sequence[str]) -> Iterator[dict[str, Any]]:
        """For each piece: rows that stay, those to leave out, and those that others add captions to; as plain values.

        Args:
            rows: of each piece.
            paths: of their files.
        """
        ends = np.cumsum(rows)
        starts = ends - np.asarray(rows, np.int64)
        sorted_followers = np.sort(self.followers)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            low, high = np.searchsorted(sorted_followers, [start, end])
            dropped = sorted_followers[low:high] - start
            low, high = np.searchsorted(self.leaders, [start, end])
            others = self.followers[low:high]
            pieces = np.searchsorted(ends, others, side="right")
            named, index = np.unique(pieces, return_inverse=True)
            more = np.column_stack([self.leaders[low:high] - start, index.reshape(-1), others - starts[pieces]])
            yield {
                "kept": end - start - len(dropped),
                "drop": dropped.astype("<u4").tobytes().hex(),
                "more": more.astype("<u4").tobytes().hex(),
                "more_paths": [paths[number] for number in named.tolist()],
            }


@final
class Joiner:
    """Applies the joins of one piece: the captions that its rows are given are in memory, about as many as its own."""

    def __init__(self, item: dict[str, Any], folder: Path) -> None:
        self._dropped = np.frombuffer(bytes.fromhex(item["drop"]), "<u4")
        self._more: dict[int, list[str]] = {}
        rows = np.frombuffer(bytes.fromhex(item["more"]), "<u4").reshape(-1, 3)
        for number, path in enumerate(item["more_paths"]):
            captions = pq.ParquetFile(folder / path).read(["captions"])["captions"]
            for row, _, other in rows[rows[:, 1] == number].tolist():
                self._more.setdefault(row, []).extend(captions[other].as_py())

    def kept(self, start: int, count: int) -> NDArray[np.bool_]:
        """(count,) false for rows that are joined to another."""
        return ~np.isin(np.arange(start, start + count), self._dropped)

    def captions(self, row: int, own: list[str]) -> list[str]:
        """The captions of a row and of those that are joined to it, each once."""
        return list(dict.fromkeys([*own, *self._more.get(row, ())]))
