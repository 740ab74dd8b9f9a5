"""What is asked of a model whose samples have captions and no labels, and the real pictures of the same captions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import final

import numpy as np

from workflows.data.dataset import Dataset, Split
from workflows.evaluate.prompts import Prompts
from workflows.evaluate.real import MOST, pages, some_captions


def ask_captions(dataset: Dataset, count: int, seed: int) -> Prompts:
    """Asks for `count` pictures of held-out captions, each at least twice where that leaves any choice.

    Reads no picture, and the captions of at most `MOST` samples.
    """
    rng = np.random.default_rng(seed)
    texts = sorted({text for captions in some_captions(dataset, "held_out") for text in captions})
    order = rng.permutation(len(texts))[: max(1, count // 2)]
    chosen = order[np.arange(count) % len(order)].astype(np.int64)
    first = int(rng.integers(2**32))
    return Prompts(
        tuple(texts[number] for number in chosen),
        chosen,
        np.zeros((count, 0), np.int64),
        tuple(first + row for row in range(count)),
        np.zeros(count, np.bool_),
    )


@final
@dataclass(frozen=True)
class Real:
    """Held-out samples, each with the caption for which it stands.

    Attributes:
        split: the samples.
        texts: n captions, one of each sample's own.
    """

    split: Split
    texts: tuple[str, ...]


def real_of(dataset: Dataset, prompts: Prompts) -> Real:
    """Held-out samples of the captions that are asked for, of each caption as many as prompts at most.

    Where no held-out sample has any of them, such as prompts of combinations that are all held out elsewhere, samples
    stand for their own first caption. Memory: a page, and as many samples as there are prompts.
    """
    left = Counter(prompts.texts)
    found = _taken(dataset, left, len(prompts))
    return found if len(found.texts) else _taken(dataset, None, len(prompts))


def _taken(dataset: Dataset, left: Counter[str] | None, most: int) -> Real:
    parts: list[Split] = []
    texts: list[str] = []
    for _, page in pages(dataset, "held_out", MOST):
        rows: list[int] = []
        for row, own in enumerate(page.captions):
            text = own[0] if left is None else next((text for text in own if left[text] > 0), None)
            if text is not None and len(texts) < most:
                rows.append(row)
                texts.append(text)
                if left is not None:
                    left[text] -= 1
        parts.append(page.rows(np.array(rows, np.int64)))
    return Real(_joined(parts), tuple(texts))


def _joined(parts: list[Split]) -> Split:
    return Split(
        np.concatenate([part.sample_ids for part in parts]),
        np.concatenate([part.images for part in parts]),
        tuple(own for part in parts for own in part.captions),
        np.concatenate([part.labels for part in parts]),
        tuple(own for part in parts for own in part.attributes),
        np.concatenate([part.unseen for part in parts]),
    )
