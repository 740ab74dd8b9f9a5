"""How well pictures fit what was asked: the prompt is looked for among captions, by a judge that sees both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray

from workflows.evaluate.metrics.estimate import Estimate, Floats, bounds, mean_of, resampled_rows
from workflows.evaluate.metrics.matcher import Eyes

_TOP: Final = 5
CANDIDATES: Final = 512
"""Captions at most among which a prompt is looked for."""


@final
@dataclass(frozen=True)
class Candidates:
    """Captions among which a prompt is looked for.

    A picture whose prompt is `red heart` is also right with the other captions of pictures that have that one.

    Attributes:
        texts: m different captions.
        same: (m, m) bool, whether a picture has both captions.
    """

    texts: tuple[str, ...]
    same: NDArray[np.bool_]

    @staticmethod
    def of(captions: Sequence[Sequence[str]], asked: Sequence[str]) -> Candidates:
        """The prompts, and captions of pictures until there are `CANDIDATES`.

        Args:
            captions: those of each real picture.
            asked: prompts.
        """
        every = dict.fromkeys([*asked, *(text for own in captions for text in own)])
        texts = tuple(every)[: max(CANDIDATES, len(set(asked)))]
        place = {text: number for number, text in enumerate(texts)}
        same = np.eye(len(texts), dtype=np.bool_)
        for own in captions:
            known = [place[text] for text in own if text in place]
            same[np.ix_(known, known)] = True
        return Candidates(texts, same)

    @property
    def comparable(self) -> bool:
        """Whether there is a wrong answer: not where all captions are equal."""
        return not bool(self.same.all())

    def chance(self, asked: Sequence[str]) -> float:
        """Share of right answers of a judge that guesses."""
        return float(self.same[self.places(asked)].mean())

    def places(self, asked: Sequence[str]) -> NDArray[np.int64]:
        """(n,) the place of each prompt among the candidates."""
        place = {text: number for number, text in enumerate(self.texts)}
        return np.array([place[text] for text in asked], np.int64)


@final
@dataclass(frozen=True)
class Matched:
    """What a judge sees in pictures and their prompts.

    Attributes:
        first: (n,) 1 where the closest caption is right.
        five: (n,) 1 where one of the five closest is.
        scores: (n,) 100 cos(picture, prompt), at least 0.
        chance: what `first` is by guessing.
    """

    first: Floats
    five: Floats
    scores: Floats
    chance: float

    @property
    def above_chance(self) -> bool:
        """Whether `first` is beyond doubt better than guessing."""
        return above_chance(self.first, self.chance)

    def estimates(self, suffix: str = "") -> dict[str, Estimate]:
        """`retrieval`, `retrieval_top5`."""
        return {f"retrieval{suffix}": mean_of(self.first), f"retrieval_top5{suffix}": mean_of(self.five)}


def above_chance(right: Floats, chance: float) -> bool:
    """Whether a share of right answers is beyond doubt better than guessing."""
    low, _ = bounds(right[resampled_rows(len(right))].mean(axis=1))
    return low > chance


@torch.no_grad()
def match(eyes: Eyes, images: NDArray[np.uint8], asked: Sequence[str], candidates: Candidates) -> Matched:
    """Looks for the prompt of each picture among captions.

    Args:
        eyes: the judge.
        images: (n, c, h, w).
        asked: n prompts, each among the candidates.
        candidates: captions.
    """
    places = candidates.places(asked)
    texts, pictures = eyes.texts(candidates.texts), eyes.pictures(images)
    cosines = pictures @ texts.T
    order = cosines.topk(min(_TOP, len(candidates.texts)), dim=1).indices.numpy()
    right = candidates.same[places[:, None], order]
    own = cosines[torch.arange(len(places)), torch.from_numpy(places)].double().numpy()
    return Matched(
        right[:, 0].astype(np.float64),
        right.any(axis=1).astype(np.float64),
        100.0 * np.maximum(own, 0.0),
        candidates.chance(asked),
    )


def judged_by(eyes: Sequence[Eyes]) -> dict[str, Any]:
    """What reports say about the judges."""
    shared = "the model reads its texts and CLIP guidance follows it: high figures may flatter"
    own = "trained for the evaluation on both halves of the training pictures; no model has seen it"
    return {one.name: shared if one.shared else own for one in eyes}
