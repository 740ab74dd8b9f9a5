"""Batches of captioned pictures in which a contrastive loss finds no wrong answer that is right.

The loss takes every other caption of its group for a wrong one, so a group must not hold two samples that mean the
same: samples are told apart by what they show, and a group takes at most one of each meaning.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from workflows.data.dataset import Dataset
from workflows.errors import InvalidConfig
from workflows.storage.copies import CopySettings
from workflows.train.batches import Share
from workflows.train.clip.samples import MappedSamples

Rows: TypeAlias = NDArray[np.int64]
_WORDINGS: Final = 1 << 24
_TEXTS: Final = ("captions", "attributes")
_HASH_BYTES: Final = 16
_HASH: Final = pa.binary(_HASH_BYTES)


@final
class DistinctPlan:
    """Groups that hold every meaning at most once; a pure function of the number of rows seen.

    Where there are fewer meanings than rows in a batch (ten digits), a batch is several groups, each with a loss of
    its own.

    Args:
        meanings: which samples mean the same, `(n,)`: an index in 0 .. m-1 with every value used.
        batch_size: rows per step at most.
        seed: of the draws.
    """

    def __init__(self, meanings: Rows, batch_size: int, seed: int) -> None:
        self._seed, self._counts = seed, np.bincount(meanings)
        self._order = np.argsort(meanings, kind="stable")
        self._starts = np.cumsum(self._counts) - self._counts
        self.size = min(batch_size, len(self._counts))
        self.num_groups = max(1, batch_size // self.size)

    @property
    def batch_size(self) -> int:
        """Rows per step: of whole groups."""
        return self.num_groups * self.size

    def batch(self, samples_seen: int) -> tuple[Rows, Rows]:
        """Samples `(groups, size)` and, of the same shape, non-negative draws that choose their captions.

        Meanings are drawn evenly, and so are the samples of a meaning.
        """
        rng = np.random.default_rng([self._seed, samples_seen])
        meanings = np.stack([rng.choice(len(self._counts), self.size, replace=False) for _ in range(self.num_groups)])
        samples = self._order[self._starts[meanings] + rng.integers(self._counts[meanings])]
        return samples, rng.integers(_WORDINGS, size=samples.shape)


def meanings_of(dataset: Dataset) -> Rows:
    """Which samples of the training split show the same, `(n,)`.

    They have the same attributes, or the same first caption where there are none. Reads no picture. Holds 4 bytes a
    sample, 60 while they are found: a hash of each text, and no text.
    """
    found = [_hashed(_meant(batch["captions"], batch["attributes"])) for batch in dataset.batches("train", _TEXTS)]
    meanings = pa.chunked_array(found, _HASH).combine_chunks().dictionary_encode().indices
    return np.asarray(meanings.to_numpy())


def _meant(captions: pa.ListArray, attributes: pa.ListArray) -> pa.StringArray:
    named = pc.greater(pc.list_value_length(attributes), 0)
    values = pc.binary_join(attributes, "\x1f")
    return pc.if_else(named, pc.binary_join_element_wise("\x1e", values, ""), pc.list_element(captions, 0))


def _hashed(texts: pa.StringArray) -> pa.FixedSizeBinaryArray:
    found = texts.dictionary_encode()
    hashes = [hashlib.sha256(text.encode()).digest()[:_HASH_BYTES] for text in found.dictionary.to_pylist()]
    return pa.array(hashes, _HASH).take(found.indices)


def vocabulary_of(dataset: Dataset, tokenizer: Any) -> Tensor:
    """Token ids that occur in the captions of the training split, ascending, `(v,)`; holds a batch of captions."""
    found: set[int] = set()
    for batch in dataset.batches("train", _TEXTS):
        texts = pc.unique(pc.list_flatten(batch["captions"])).to_pylist()
        found |= set(tokenizer(texts).unique().tolist())
    return torch.tensor(sorted(found))


@final
@dataclass(frozen=True, eq=False)
class ClipBatch:
    """One worker's rows.

    Attributes:
        sample_ids: as the data names them, `(b,)` int64, on the CPU.
        x: pictures in [-1, 1], `(b, c, h, w)`, or normalised vectors `(b, d)`.
        ids: token ids of their captions, `(b, n)`, as places in the vocabulary of those that occur.
        groups: which rows of all workers stand against each other, `(B,)`.
        share: which of those rows are this worker's.
    """

    sample_ids: Tensor
    x: Tensor
    ids: Tensor
    groups: Tensor
    share: Share

    def __len__(self) -> int:
        return len(self.x)


@final
class ClipBatches:
    """Batches of the data's training split.

    Memory: 24 bytes a sample for `DistinctPlan`, and what `MappedSamples` and `meanings_of` state.

    Args:
        folder: of the data.
        tokenizer: captions to token ids.
        vocabulary: of the ids that occur, ascending, `(v,)`.
        batch_size: rows per step.
        accumulate: parts of a step.
        seed: of the draws.
        device: where batches go.
        copies: where decoded samples go.

    Raises:
        InvalidConfig: more parts than groups.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Any,
        vocabulary: Tensor,
        *,
        batch_size: int,
        accumulate: int,
        seed: int,
        device: torch.device,
        copies: CopySettings,
    ) -> None:
        data = Dataset.open(folder)
        self._samples, self._rows = MappedSamples(data, copies), data.info.rows
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._plan = DistinctPlan(meanings_of(data), batch_size, seed)
        self._parts, self._device = accumulate, device
        if accumulate > self._plan.num_groups:
            raise InvalidConfig(
                f"clip.accumulate {accumulate}: a batch of {batch_size} is {self._plan.num_groups} groups of distinct "
                f"meanings, and a part holds whole groups: set clip.accumulate to at most {self._plan.num_groups}"
            )

    @property
    def num_tokens(self) -> int:
        """See `Batches.num_tokens`."""
        return int(self._tokenizer.context_length)

    def close(self) -> None:
        """Does nothing: no thread runs beside the training."""

    def read(self, samples_seen: int, part: int, share: Share) -> ClipBatch:
        """See `Batches.read`."""
        samples, wordings = (drawn[part :: self._parts] for drawn in self._plan.batch(samples_seen))
        groups = torch.arange(len(samples)).repeat_interleave(self._plan.size)
        ids, stored, texts = self._samples.take(samples.ravel()[share.rows], wordings.ravel()[share.rows])
        return ClipBatch(
            ids,
            self._rows.to_x(stored.to(self._device)),
            torch.searchsorted(self._vocabulary, self._tokenizer(texts)).to(self._device),
            groups.to(self._device),
            share,
        )
