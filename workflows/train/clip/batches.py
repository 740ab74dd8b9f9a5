"""Batches of captioned pictures in which a contrastive loss finds no wrong answer that is right.

The loss takes every other caption of its group for a wrong one, so a group must not hold two samples that mean the
same: samples are told apart by what they show, and a group takes at most one of each meaning.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workflows.data.dataset import Dataset
from workflows.errors import InvalidConfig
from workflows.train.batches import Share

Rows: TypeAlias = NDArray[np.int64]
_WORDINGS: Final = 1 << 24


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


def meanings_of(attributes: Iterable[Sequence[str]], captions: Iterable[Sequence[str]]) -> Rows:
    """Which samples show the same, `(n,)`: same attributes, or same first caption where there are none."""
    keys: dict[Hashable, int] = {}
    pairs = zip(attributes, captions, strict=True)
    return np.array([keys.setdefault(tuple(values) or texts[0], len(keys)) for values, texts in pairs], np.int64)


@final
@dataclass(frozen=True, eq=False)
class Texts:
    """What the samples of the training split say and mean.

    Attributes:
        ids: token ids of its distinct captions, `(m, n)` int64.
        of_sample: which of them each sample has.
        meanings: see `meanings_of`.
    """

    ids: Tensor
    of_sample: list[list[int]]
    meanings: Rows

    @staticmethod
    def read(data: Dataset, tokenizer: Any) -> Texts:
        """Reads and tokenizes the captions, and no pictures."""
        table = data.table("train", 0, data.info.num_train, ["captions", "attributes"])
        captions: list[list[str]] = table["captions"].to_pylist()
        index = {text: i for i, text in enumerate(dict.fromkeys(text for texts in captions for text in texts))}
        of_sample = [[index[text] for text in texts] for texts in captions]
        return Texts(tokenizer(list(index)), of_sample, meanings_of(table["attributes"].to_pylist(), captions))

    def pick(self, samples: Rows, wordings: Rows) -> Tensor:
        """Which caption each sample gets, `(b,)`."""
        pairs = zip((self.of_sample[sample] for sample in samples), wordings, strict=True)
        return torch.tensor([own[wording % len(own)] for own, wording in pairs], dtype=torch.int64)


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
    """Batches of the data's training split, which every worker holds in memory.

    Args:
        folder: of the data.
        tokenizer: captions to token ids.
        vocabulary: of the ids that occur, ascending, `(v,)`.
        batch_size: rows per step.
        accumulate: parts of a step.
        seed: of the draws.
        device: where batches go.

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
    ) -> None:
        data = Dataset.open(folder)
        self._split, self._texts = data.read("train"), Texts.read(data, tokenizer)
        self._rows = data.info.rows
        self._ids = torch.searchsorted(vocabulary, self._texts.ids)
        self._plan = DistinctPlan(self._texts.meanings, batch_size, seed)
        self._parts, self._device = accumulate, device
        if accumulate > self._plan.num_groups:
            raise InvalidConfig(
                f"clip.accumulate {accumulate}: a batch of {batch_size} is {self._plan.num_groups} groups of distinct "
                f"meanings, and a part holds whole groups: set clip.accumulate to at most {self._plan.num_groups}"
            )

    @property
    def num_tokens(self) -> int:
        """See `Batches.num_tokens`."""
        return self._ids.shape[1]

    def read(self, samples_seen: int, part: int, share: Share) -> ClipBatch:
        """See `Batches.read`."""
        samples, wordings = (drawn[part :: self._parts] for drawn in self._plan.batch(samples_seen))
        groups = torch.arange(len(samples)).repeat_interleave(self._plan.size)
        rows = samples.ravel()[share.rows]
        return ClipBatch(
            torch.from_numpy(self._split.sample_ids[rows]),
            self._rows.to_x(torch.from_numpy(self._split.images[rows]).to(self._device)),
            self._ids[self._texts.pick(rows, wordings.ravel()[share.rows])].to(self._device),
            groups.to(self._device),
            share,
        )
