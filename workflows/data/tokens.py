"""Counts the tokens of captions, as the text tower of a CLIP that is trained here does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

FEWEST_TOKENS: Final = 16
MOST_TOKENS: Final = 77
_SHARE: Final = 0.99
_COUNTED: Final = 1024


def _no_counts() -> NDArray[np.int64]:
    return np.zeros(_COUNTED + 1, np.int64)


@final
@dataclass
class TokenCounts:
    """A histogram of captions by their number of tokens, with start and end; 8 KiB, whatever the number of captions.

    Attributes:
        counts: captions of so many tokens, `(1025,)`; the last one holds those that have more.
    """

    counts: NDArray[np.int64] = field(default_factory=_no_counts)

    def add(self, texts: Iterable[str], times: int = 1) -> None:
        """Counts captions, each so many times."""
        tokenizer = _tokenizer()
        for text in texts:
            self.counts[min(_COUNTED, len(tokenizer.encode(text)) + 2)] += times

    @property
    def total(self) -> int:
        """Captions that were counted."""
        return int(self.counts.sum())

    def over(self, length: int) -> int:
        """Counts the captions that do not fit into so many tokens."""
        return int(self.counts[min(length, _COUNTED - 1) + 1 :].sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest caption; 1024 stands for all above."""
        found = np.flatnonzero(self.counts)
        return int(found[-1]) if len(found) else 0

    @property
    def fitting(self) -> int:
        """The fewest tokens, from 16 to 77, that 99 of 100 captions fit into: `clip.context_length: auto`."""
        reached = np.cumsum(self.counts) >= _SHARE * self.total
        return int(np.clip(np.argmax(reached), FEWEST_TOKENS, MOST_TOKENS))


@cache
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()
