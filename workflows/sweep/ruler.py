"""What a sweep measures at every point, as suits the rows and whether they have labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, final

import numpy as np
import torch

from diffusion_core.oracle import energy_distance
from workflows.data.dataset import Dataset
from workflows.errors import InvalidClip
from workflows.evaluate.label_free import Ruler
from workflows.evaluate.measure import Drawn, asked_for, image_vectors, spread, text_vectors
from workflows.evaluate.metrics.fidelity import fidelity
from workflows.evaluate.metrics.judge import train_judge
from workflows.evaluate.metrics.matcher import train_matcher
from workflows.evaluate.metrics.scores import clip_score
from workflows.evaluate.prompts import Prompts
from workflows.evaluate.real import some
from workflows.evaluate.sampling import SampleJob
from workflows.model.model import ModelPackage
from workflows.towers.clip import Clip

_DISTANCES = ("clip_fd", "energy_distance")
_FITS = ("accuracy", "retrieval")


class SweepRuler(Protocol):
    """Measures what is drawn at each point against the same real samples."""

    def measure(self, job: SampleJob, rows: Any) -> dict[str, float]:
        """The figures of a point: a distance to real samples, and where it is seen how well prompts are met."""
        ...


def make_ruler(package: ModelPackage, dataset: Dataset, prompts: Prompts, seed: int) -> SweepRuler:
    """The ruler for a model, its data, and what every point draws.

    Raises:
        InvalidClip: a model of pictures without a CLIP that looks at them.
    """
    if not package.rows.drawable:
        return RulerOfVectors(dataset, len(prompts))
    clip = package.scorer()
    if clip is None:
        raise InvalidClip(f"{package.folder} has no CLIP that looks at pictures: sweep a fine-tune of it")
    if not dataset.info.attributes:
        ruler = Ruler.of(dataset, prompts, (train_matcher(dataset, seed),))
        return RulerOfPictures(clip, ruler.real.split.images, "retrieval", lambda drawn: _found(ruler, drawn))
    judge = train_judge(dataset, seed)
    real = asked_for(dataset, prompts).images
    return RulerOfPictures(
        clip, real, "accuracy", lambda drawn: Drawn(drawn.job, drawn.images, judge(drawn.images)).accuracy
    )


def _found(ruler: Ruler, drawn: Drawn) -> float:
    return float(ruler.matched(drawn).first.mean()) if ruler.candidates.comparable else 1.0


@final
class RulerOfPictures:
    """Distances in the eyes of the model's CLIP, and the share of pictures that are as asked.

    Args:
        clip: scores pictures.
        real: (n, c, h, w) real ones.
        fit: name of that share.
        share: says it of drawn pictures.
    """

    def __init__(self, clip: Clip, real: Any, fit: str, share: Callable[[Drawn], float]) -> None:
        self._clip, self._fit, self._share = clip, fit, share
        self._real = image_vectors(real, clip)

    def measure(self, job: SampleJob, rows: Any) -> dict[str, float]:
        """See `SweepRuler`."""
        found = Drawn(job, rows, np.zeros((len(rows), 0), np.int64))
        vectors = image_vectors(rows, self._clip)
        return fidelity(self._real, vectors) | {
            "clip_score": clip_score(vectors, text_vectors(found, self._clip)),
            self._fit: self._share(found),
            "diversity": spread(found, self._clip),
        }


@final
class RulerOfVectors:
    """The energy distance to held-out rows.

    Args:
        dataset: gives them.
        count: of them at most.
    """

    def __init__(self, dataset: Dataset, count: int) -> None:
        self._real = torch.tensor(some(dataset, "held_out", count).images)

    def measure(self, job: SampleJob, rows: Any) -> dict[str, float]:  # noqa: ARG002 - rows say all
        """See `SweepRuler`."""
        return {"energy_distance": energy_distance(torch.tensor(rows), self._real)}


def distance_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which column of a table is the distance to real samples."""
    return next(name for name in _DISTANCES if name in rows[0])


def fit_of(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Which column of a table says how well prompts are met, if any."""
    return next((name for name in _FITS if name in rows[0]), None)
