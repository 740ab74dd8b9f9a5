"""How often a CLIP finds the caption of a picture that it has never seen among those of other such pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from workflows.data.dataset import Dataset
from workflows.towers.clip import Clip

_PICTURES: Final = 512
_TOP: Final = 5
_FEWEST: Final = 2
_NEAR: Final = 0.1
"""Near chance is what has come less than this share of the way from chance to certainty."""


@final
@dataclass(frozen=True)
class Retrieval:
    """The result over held-out pictures.

    Attributes:
        count: captions to choose from.
        first: share of pictures whose own caption is the closest one.
        top: share of pictures whose own caption is among the five closest; None: not measured.
    """

    count: int
    first: float
    top: float | None = None

    @property
    def chance(self) -> float:
        """`first` of a CLIP that guesses."""
        return 1.0 / self.count

    @property
    def near_chance(self) -> bool:
        """Whether the CLIP does little better than guess."""
        return self.first - self.chance < _NEAR * (1.0 - self.chance)

    def figures(self) -> dict[str, float]:
        """As a stage reports them."""
        top = {} if self.top is None else {"retrieval_top5": self.top}
        return {"retrieval": self.first, "retrieval_chance": self.chance} | top

    def __str__(self) -> str:
        top = "" if self.top is None else f" (among the {_TOP} closest: {self.top:.1%})"
        told = (
            f"the closest of {self.count} captions is a held-out picture's own in {self.first:.1%} of cases{top}; "
            f"chance is {self.chance:.1%}"
        )
        return f"warning: {told}. {_REMEDY}" if self.near_chance else told


_REMEDY: Final = (
    "Prompts mean little to this CLIP, and so do CLIP guidance, the classifier's text head and CLIP scores: give more "
    "pictures, or captions that say more about each; raise clip.minutes; or load trained towers with clip.source"
)


@torch.no_grad()
def retrieval(clip: Clip, dataset: Dataset, device: torch.device) -> Retrieval | None:
    """Measures up to 512 held-out pictures, the first ones with captions that differ.

    In memory are 512 vectors of pictures, and the pictures of one chunk.

    Args:
        clip: the towers.
        dataset: gives the held-out pictures.
        device: where the towers run.

    Returns:
        None where no two held-out pictures have captions that differ.
    """
    found: dict[str, Tensor] = {}
    for samples in dataset.chunks("held_out"):
        new = {texts[0]: row for row, texts in reversed(list(enumerate(samples.captions))) if texts[0] not in found}
        texts = sorted(new, key=lambda text: new[text])[: _PICTURES - len(found)]
        if texts:
            images = torch.from_numpy(samples.images[[new[text] for text in texts]])
            vectors = clip.image.encode(dataset.info.rows.to_x(images.to(device)))
            found |= dict(zip(texts, vectors, strict=True))
        if len(found) >= _PICTURES:
            break
    return None if len(found) < _FEWEST else _ranked(clip, found)


def _ranked(clip: Clip, pictures: dict[str, Tensor]) -> Retrieval:
    """Captions that are equally close share their ranks: a CLIP that tells nothing apart is at chance."""
    similarity = torch.stack(list(pictures.values())) @ clip.text.encode(list(pictures)).pooled.T
    own = similarity.diagonal()[:, None]
    closer, as_close = (similarity > own).sum(dim=1), (similarity == own).sum(dim=1)
    first, top = (float(((place - closer) / as_close).clamp(0.0, 1.0).mean()) for place in (1, _TOP))
    return Retrieval(len(similarity), first, top)
