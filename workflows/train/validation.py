"""How often the noisy-image classifier is right on held-out samples, at several noise levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, cast, final

import torch
from torch import Tensor, nn

from diffusion_core import noise
from diffusion_core.bundle import ModelBundle
from diffusion_core.networks import NoisyFeatures
from workflows.embed.cache import EmbeddingCache

_LEVELS: Final = 8
_BINS: Final = 10
_SAMPLES: Final = 512
_ROWS_AT_ONCE: Final = 128


@final
@dataclass(frozen=True)
class LevelAccuracy:
    """How often the classifier is right at one level.

    Attributes:
        level: in 1 .. T.
        label: share of samples whose label has the highest probability; NaN without a label head, as `confidence`.
        text: share of samples whose own meaning has the highest similarity among the candidate captions.
        confidence: mean probability that the label head gives to its answer: equal to `label` if calibrated.
        calibration_error: expected difference between the two among samples of like confidence.
    """

    level: int
    label: float
    text: float
    confidence: float
    calibration_error: float


@torch.no_grad()
def accuracy_by_level(bundle: ModelBundle, cache: EmbeddingCache, meanings: Tensor) -> list[LevelAccuracy]:
    """Measures the averaged weights.

    Args:
        bundle: of the classifier.
        cache: whose held-out samples are judged.
        meanings: index of each held-out sample's candidate caption, `(n,)`; -1: it has none and is left out.

    Returns:
        One entry per level; none where no sample has a candidate caption.
    """
    network, last = bundle.network(), bundle.schedule.num_levels
    known = (meanings >= 0).nonzero().flatten()
    if not len(known):
        return []
    rows = known[:: max(1, len(known) // _SAMPLES)]
    samples, truth = cache.batch("held_out", rows), meanings[rows]
    x0 = cache.to_x0(cache.images("held_out", rows))
    eps = noise.normal(0, noise.TRAIN_NOISE, rows, x0.shape[1:])
    measured = []
    for level in (max(1, round(last * i / _LEVELS)) for i in range(_LEVELS + 1)):
        levels = torch.full((len(rows),), level)
        logits, similarity = _answers(network, bundle.schedule.q_sample(x0, levels, eps), levels)
        confidence, answer = logits.softmax(dim=1).max(dim=1)
        measured.append(
            LevelAccuracy(
                level,
                _share(answer == samples.labels),
                _share(similarity.argmax(dim=1) == truth),
                float(confidence.mean()),
                calibration_error(confidence, answer == samples.labels),
            )
        )
    return measured


def _answers(network: nn.Module, x_t: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    logits, similarities = [], []
    for x, level in zip(x_t.split(_ROWS_AT_ONCE), levels.split(_ROWS_AT_ONCE), strict=True):
        features: NoisyFeatures = network(x, level.float())
        logits.append(torch.full((len(x), 1), torch.nan) if features.logits is None else features.logits)
        similarities.append(cast(Tensor, features.embedding) @ cast(Tensor, network.candidates).T)
    return torch.cat(logits), torch.cat(similarities)


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """`sum_bins (rows in bin / rows) |accuracy - mean confidence|`, over equal bins of confidence.

    Args:
        confidence: in [0, 1], `(n,)`.
        right: whether each answer was, `(n,)` bool.

    References:
        Guo et al., On Calibration of Modern Neural Networks (2017), eq. 3.
    """
    place = (confidence.double().nan_to_num() * _BINS).long().clamp(max=_BINS - 1)
    gap = torch.zeros(_BINS, dtype=torch.float64).index_add_(0, place, right.double() - confidence.double())
    return float(gap.abs().sum() / len(confidence))


def _share(right: Tensor) -> float:
    return float(right.float().mean())
