"""How often captions occur, in bounded memory: exactly for up to 100,000 of them, nearly beyond."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, final

import numpy as np
import pyarrow as pa

COUNTS: Final = pa.schema({"label": pa.string(), "caption": pa.string(), "count": pa.int64()})
MAX_CANDIDATES: Final = 256
_KEPT: Final = 50_000
_LEAST_CLASSES: Final = 2
_ROWS_AT_ONCE: Final = 4096


@final
@dataclass
class CaptionCounts:
    """How often each first caption occurs, by label.

    While there are at most `2 * kept` different pairs of label and caption, every count is exact. At one more, the
    `kept` most frequent pairs stay, and the count of the next one is taken off theirs (Misra-Gries). After that a count
    may be too low, by at most n / (kept + 1) for n samples, and never too high. So a caption of more than that share of
    all samples is never lost. The first 256 pairs, and the first of each label, stay too, with a count of at least 0.

    In memory are at most `2 * kept + 256` pairs, and one for each label. The result depends on the order in which
    captions are added, so parts of the data are always added in order.

    Source: J. Misra, D. Gries, "Finding repeated elements", 1982; P. Agarwal et al., "Mergeable summaries", 2012.

    Attributes:
        kept: half of the pairs that are counted exactly.
        counts: by label and caption, in the order of their first occurrence.
    """

    kept: int = _KEPT
    counts: dict[tuple[str | None, str], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._limit = 2 * self.kept

    def add(self, label: str | None, caption: str, count: int = 1) -> None:
        """Counts a caption of a sample, or of several."""
        pair = (label, caption)
        self.counts[pair] = self.counts.get(pair, 0) + count
        if len(self.counts) > self._limit:
            self._prune()

    def _prune(self) -> None:
        place = len(self.counts) - self.kept - 1
        values = np.fromiter(self.counts.values(), np.int64, len(self.counts))
        cut = int(np.partition(values, place)[place])
        kept: dict[tuple[str | None, str], int] = {}
        labels: set[str | None] = set()
        for pair, count in self.counts.items():
            if count > cut or len(kept) < MAX_CANDIDATES or pair[0] not in labels:
                kept[pair] = max(count - cut, 0)
            labels.add(pair[0])
        self.counts, self._limit = kept, len(kept) + self.kept

    def merge(self, table: pa.Table) -> None:
        """Adds the counts of the part of the data that follows, as `tables` gave them."""
        for batch in table.to_batches(_ROWS_AT_ONCE):
            for label, caption, count in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                self.add(label, caption, count)

    def table(self) -> pa.Table:
        """The counts as rows of `COUNTS`."""
        labels, captions = zip(*self.counts, strict=True) if self.counts else ((), ())
        columns = {"label": labels, "caption": captions, "count": list(self.counts.values())}
        return pa.Table.from_pydict(columns, schema=COUNTS)

    def class_names(self) -> tuple[str, ...]:
        """Labels in order; none where a sample has none, or all have the same."""
        labels = {label for label, _ in self.counts}
        if None in labels or len(labels) < _LEAST_CLASSES:
            return ()
        return tuple(sorted((str(label) for label in labels), key=_natural))

    def candidates(self) -> tuple[str, ...]:
        """A caption for each class, its most frequent one; without classes, the most frequent captions of all.

        A class whose most frequent caption is that of another class has its name instead.
        """
        if names := self.class_names():
            return tuple(self._of_classes(names))
        total: dict[str, int] = {}
        for (_, text), count in self.counts.items():
            total[text] = total.get(text, 0) + count
        return tuple(sorted(total, key=lambda text: (-total[text], text))[:MAX_CANDIDATES])

    def _of_classes(self, names: tuple[str, ...]) -> Iterator[str]:
        best: dict[str | None, tuple[int, str]] = {}
        for (label, text), count in self.counts.items():
            best[label] = min(best.get(label, (-count, text)), (-count, text))
        found: set[str] = set()
        for name in names:
            text = best[name][1]
            yield name if text in found else text
            found.add(name if text in found else text)


def counts_path(path: str) -> str:
    """Where it lies how often the captions of a piece occur."""
    return path.replace(".parquet", ".captions.parquet")


def _natural(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)
