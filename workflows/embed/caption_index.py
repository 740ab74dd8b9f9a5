"""Every distinct caption of a data set, in order of first use: the candidate captions, then those of the samples.

So the captions of neighbouring samples lie near each other, and a reader of some samples needs few shards of captions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from workflows.data.dataset import SPLITS, Dataset, SplitName
from workflows.embed.manifest import ID_BYTES, caption_id, normalise

_ID: Final = pa.binary(ID_BYTES)
_ROWS_AT_ONCE: Final = 1 << 14


@final
@dataclass(frozen=True, eq=False)
class CaptionIndex:
    """The captions of a data set, and which sample has which.

    Rows count through the training split, then the held-out one; uses of captions count through the captions of all
    rows. Memory: 44 bytes a use and 20 a row at most while it is made, no text. There may be 2^31 captions.

    Attributes:
        candidates: the candidate captions, each once, normalised: they have the first positions.
        ids: of the m captions, in order of first use.
        positions: which of the m each use is, (u,) int32.
        firsts: the use that is the first of each caption behind the candidates, ascending.
        row_starts: the first use of each row, and u, (rows + 1,).
    """

    candidates: tuple[str, ...]
    ids: pa.FixedSizeBinaryArray
    positions: NDArray[np.int32]
    firsts: NDArray[np.int64]
    row_starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    @staticmethod
    def read(dataset: Dataset, encoder: str) -> CaptionIndex:
        """Reads the captions of all samples, and no picture."""
        candidates = tuple(dict.fromkeys(normalise(text) for text in dataset.info.candidate_captions))
        ids, lengths = [_ids(encoder, list(candidates))], [np.zeros(1, np.int64)]
        for split in SPLITS:
            for batch in dataset.batches(split, ["captions"]):
                texts = pc.list_flatten(batch["captions"]).dictionary_encode()
                ids.append(_ids(encoder, texts.dictionary.to_pylist()).take(texts.indices))
                lengths.append(pc.list_value_length(batch["captions"]).to_numpy().astype(np.int64))
        every = pa.chunked_array(ids, _ID).combine_chunks().dictionary_encode()
        positions = every.indices.to_numpy()
        newest = np.maximum.accumulate(positions)
        new = np.flatnonzero(np.diff(newest, prepend=-1))
        return CaptionIndex(
            candidates,
            every.dictionary,
            positions[len(candidates) :],
            new[len(candidates) :].astype(np.int64) - len(candidates),
            np.cumsum(np.concatenate(lengths)),
        )

    def key(self, start: int, stop: int) -> str:
        """Hash of the captions at these positions."""
        return hashlib.sha256(b"".join(self.ids[start:stop].to_pylist())).hexdigest()

    def uses(self, start: int, stop: int) -> NDArray[np.int32]:
        """Positions of the captions of rows start..stop-1, row after row."""
        return self.positions[self.row_starts[start] : self.row_starts[stop]]

    def item(self, start: int, stop: int) -> dict[str, Any]:
        """A work item, from which `texts_of` finds the text of the captions at these positions."""
        given, count = list(self.candidates[start:stop]), len(self.candidates)
        firsts = self.firsts[max(0, start - count) : max(0, stop - count)]
        if not len(firsts):
            return {"given": given, "start": 0, "stop": 0, "uses": b""}
        first, last = np.searchsorted(self.row_starts, firsts[[0, -1]], side="right") - 1
        return {
            "given": given,
            "start": int(first),
            "stop": int(last) + 1,
            "uses": (firsts - self.row_starts[first]).astype(np.int64).tobytes(),
        }


def texts_of(dataset: Dataset, item: dict[str, Any]) -> list[str]:
    """The captions of a work item, normalised, in order; holds the captions of 16,384 rows at a time."""
    found, offset = list(item["given"]), 0
    uses = np.frombuffer(item["uses"], np.int64)
    for table in _stretches(dataset, item["start"], item["stop"]):
        texts = pc.list_flatten(table["captions"])
        wanted = uses[np.searchsorted(uses, offset) : np.searchsorted(uses, offset + len(texts))] - offset
        found += [normalise(text) for text in texts.take(pa.array(wanted)).to_pylist()]
        offset += len(texts)
    return found


def _stretches(dataset: Dataset, start: int, stop: int) -> Iterator[pa.Table]:
    first = 0
    for split in SPLITS:
        count = dataset.info.num_samples(split)
        yield from _within(dataset, split, max(start - first, 0), min(stop - first, count))
        first += count


def _within(dataset: Dataset, split: SplitName, start: int, stop: int) -> Iterator[pa.Table]:
    for row in range(start, stop, _ROWS_AT_ONCE):
        yield dataset.table(split, row, min(row + _ROWS_AT_ONCE, stop), ["captions"])


def _ids(encoder: str, texts: list[str]) -> pa.FixedSizeBinaryArray:
    return pa.array([caption_id(encoder, text) for text in texts], _ID)
