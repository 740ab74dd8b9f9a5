"""What is asked of the model: prompts spread evenly over all combinations of attribute values.

A prompt is one of the wordings that the data set has for its combination; combinations that were never
trained on take theirs from the held-out split. Rows come in rounds: every combination once, then every
combination again. So the first rows of a list are different prompts, for a list of any length.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from workflows.data.dataset import SPLITS, Dataset
from workflows.evaluate.metrics.judge import truth


@final
@dataclass(frozen=True)
class Prompts:
    """What n pictures are asked to show.

    Attributes:
        texts: n prompts.
        combinations: (n,) index into `DataInfo.candidate_captions`.
        targets: (n, attributes): index of the wanted value of each attribute.
        seeds: of the n pictures.
        unseen: (n,) bool, true where no training sample shows the combination.
    """

    texts: tuple[str, ...]
    combinations: NDArray[np.int64]
    targets: NDArray[np.int64]
    seeds: tuple[int, ...]
    unseen: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def labels(self) -> tuple[int, ...]:
        """Classes: the wanted values of the first attribute."""
        return tuple(int(value) for value in self.targets[:, 0])

    def rows(self, index: NDArray[np.int64]) -> Prompts:
        """The chosen rows, in that order."""
        return Prompts(
            tuple(self.texts[i] for i in index),
            self.combinations[index],
            self.targets[index],
            tuple(self.seeds[i] for i in index),
            self.unseen[index],
        )

    def first(self, count: int) -> Prompts:
        """The first `count` rows."""
        return self.rows(np.arange(min(count, len(self))))

    def comparable(self, count: int) -> NDArray[np.int64]:
        """Indices of about `count` rows in which each combination occurs at least twice, if it does so here.

        Few combinations are all kept, of many only the first: so the pictures of one combination can be compared.
        """
        order = list(dict.fromkeys(self.combinations.tolist()))
        each = max(2, count // len(order))
        kept = set(order[: max(1, count // each)])
        seen: Counter[int] = Counter()
        index: list[int] = []
        for row, combination in enumerate(self.combinations.tolist()):
            seen[combination] += 1
            if combination in kept and seen[combination] <= each:
                index.append(row)
        return np.array(index, np.int64)


def ask(dataset: Dataset, count: int, seed: int) -> Prompts:
    """Asks for `count` pictures.

    Args:
        dataset: gives combinations and wordings.
        count: rows.
        seed: of wordings, of pictures, and of the combinations' order where they have several attributes.
    """
    info, rng = dataset.info, np.random.default_rng(seed)
    wordings = _wordings(dataset)
    shown = sorted(wordings)
    order = shown if len(info.attributes) == 1 else rng.permutation(shown).tolist()
    chosen = [int(order[row % len(order)]) for row in range(count)]
    texts = tuple(str(rng.choice(wordings[combination])) for combination in chosen)
    values = tuple(info.values_of(combination) for combination in chosen)
    first = int(rng.integers(2**32))
    return Prompts(
        texts,
        np.array(chosen, np.int64),
        truth(info, values),
        tuple(first + row for row in range(count)),
        np.isin(chosen, info.unseen_combinations),
    )


def _wordings(dataset: Dataset) -> dict[int, list[str]]:
    """Every combination that the data shows, with its different captions in alphabetical order."""
    found: dict[int, set[str]] = {}
    for name in SPLITS:
        for batch in dataset.batches(name, ["attributes", "captions"]):
            for values, captions in zip(batch["attributes"].to_pylist(), batch["captions"].to_pylist(), strict=True):
                found.setdefault(dataset.info.combination(values), set()).update(captions)
    return {combination: sorted(texts) for combination, texts in found.items()}
