"""From drawn pictures to figures: every job is judged, the scales are compared, the grid is filled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from workflows.data.dataset import Dataset, Split, SplitName
from workflows.data.pixels import to_data
from workflows.evaluate.metrics.fidelity import fidelity
from workflows.evaluate.metrics.judge import Judge, judge_accuracy
from workflows.evaluate.metrics.scores import accuracy, clip_score, diversity, histogram
from workflows.evaluate.prompts import Prompts
from workflows.evaluate.real import some
from workflows.evaluate.sampling import SampleJob
from workflows.options.guidance import DEFAULT_GUIDANCE
from workflows.towers.clip import Clip

HEADLINE: Final = DEFAULT_GUIDANCE.name
"""The kind whose pictures the headline figures are of."""
_BATCH: Final = 256


@final
@dataclass(frozen=True)
class Drawn:
    """One job's pictures, and what the judge sees in them.

    Attributes:
        job: what was asked.
        images: (n, c, h, w) uint8.
        judged: (n, attributes).
    """

    job: SampleJob
    images: NDArray[np.uint8]
    judged: NDArray[np.int64]

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """(n,) whether each is as asked; asked by label, only the class counts."""
        same = self.judged == self.job.prompts.targets
        return np.asarray(same[:, 0] if self.job.by_label else same.all(axis=1))

    @property
    def accuracy(self) -> float:
        """Share of pictures that are as asked."""
        return float(self.right.mean())

    def rows(self, index: NDArray[np.int64]) -> Drawn:
        """The chosen rows."""
        job = replace(self.job, prompts=self.job.prompts.rows(index))
        return Drawn(job, self.images[index], self.judged[index])


def measure(
    drawn: Mapping[str, Drawn], scales: Mapping[float, Drawn], dataset: Dataset, clip: Clip, judge: Judge
) -> dict[str, Any]:
    """All figures of an evaluation.

    Args:
        drawn: pictures by kind; `HEADLINE` is the one of the main figures, `none` the unconditional ones.
        scales: pictures of the same prompts and seeds at several classifier-free scales.
        dataset: names attributes, and gives real pictures to compare with.
        clip: scores pictures.
        judge: that judged.
    """
    info, headline = dataset.info, drawn[HEADLINE]
    unseen = headline.job.prompts.unseen
    figures: dict[str, Any] = {"accuracy": float(headline.right[~unseen].mean())}
    if unseen.any():
        figures["accuracy_unseen"] = float(headline.right[unseen].mean())
    others = [kind for kind in drawn if kind not in (HEADLINE, "none")]
    figures |= {f"{kind}_accuracy": drawn[kind].accuracy for kind in sorted(others)}
    shares = histogram(drawn["none"].judged, info)
    figures["unconditional_classes"] = sum(share > 0 for share in shares.values())
    figures["unconditional_largest_share"] = max(shares.values())
    figures["accuracy_at_scale"] = {f"{scale:g}": found.accuracy for scale, found in scales.items()}
    figures["diversity_at_scale"] = {f"{scale:g}": spread(found, clip) for scale, found in scales.items()}
    vectors = image_vectors(headline.images, clip)
    figures["clip_score"] = clip_score(vectors, text_vectors(headline, clip))
    figures |= _real(dataset, headline.job.prompts, clip, vectors)
    figures["judge_accuracy"] = judge_accuracy(judge, dataset)
    figures["attributes"] = {
        kind: accuracy(found.judged, found.job.prompts.targets, info) for kind, found in drawn.items() if kind != "none"
    }
    figures["unconditional_shares"] = shares
    return figures


def asked_for(dataset: Dataset, prompts: Prompts, name: SplitName = "held_out") -> Split:
    """Real samples in the mixture of combinations that is asked for.

    Held-out samples are not in that mixture where some combinations were never trained on: all of these are held out.
    A distance from all held-out pictures would measure this difference before it measures a model.

    Args:
        dataset: gives the samples.
        prompts: say how often each combination is wanted.
        name: of the split.

    Returns:
        Of each combination its first samples in proportion to its prompts, at most as many as there are among the
        `workflows.evaluate.real.MOST` that are read. The proportion is the median over combinations, so that a rare one
        does not cost samples of the others.
    """
    split = some(dataset, name)
    combinations = pd.Series(dataset.combinations(split))
    asked = pd.Series(prompts.combinations).value_counts()
    per_prompt = (combinations.value_counts() / asked).median()
    wanted = combinations.map(asked * per_prompt).fillna(0)
    place = combinations.groupby(combinations).cumcount()
    return split.rows(np.flatnonzero(place < wanted.round()))


def spread(found: Drawn, clip: Clip) -> float:
    """Diversity within the prompts of some pictures."""
    return diversity(image_vectors(found.images, clip), found.job.prompts.combinations.tolist())


def _real(dataset: Dataset, prompts: Prompts, clip: Clip, drawn: Tensor) -> dict[str, float]:
    """Distances of the headline from held-out pictures, and what a perfect model would reach."""
    split = asked_for(dataset, prompts)
    vectors = image_vectors(split.images, clip)
    captions = clip.text.encode([texts[0] for texts in split.captions]).pooled
    return fidelity(vectors, drawn) | {
        "clip_score_real": clip_score(vectors, captions.to(vectors)),
        "diversity_real": diversity(vectors, dataset.combinations(split).tolist()),
    }


@torch.no_grad()
def image_vectors(images: NDArray[np.uint8], clip: Clip) -> Tensor:
    """Unit CLIP vectors of pictures, (n, e)."""
    parts = torch.from_numpy(images).split(_BATCH)
    return torch.cat([clip.image.encode(to_data(part)) for part in parts])


def text_vectors(found: Drawn, clip: Clip) -> Tensor:
    """Unit CLIP vectors of the prompts of some pictures, (n, e)."""
    return clip.text.encode(found.job.prompts.texts).pooled
