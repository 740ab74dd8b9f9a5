"""How well a CLIP names what it has never seen: each picture gets the candidate caption it is closest to."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from workflows.data.dataset import Dataset
from workflows.towers.clip import Clip

_BATCH: Final = 512


@torch.no_grad()
def zero_shot(clip: Clip, dataset: Dataset, device: torch.device) -> dict[str, float]:
    """Share of held-out pictures whose closest candidate caption is right.

    Args:
        clip: the towers.
        dataset: gives the held-out pictures and one candidate caption per combination.
        device: where the towers run.

    Returns:
        `zero_shot`: all attributes right; without attributes, the caption right, of the samples whose caption is a
        candidate (left out if none is). With several attributes also `zero_shot_ATTRIBUTE` for each, and
        `zero_shot_unseen` over combinations that were never trained on, when there are some.
    """
    info, held_out = dataset.info, dataset.read("held_out")
    candidates = clip.text.encode(info.candidate_captions).pooled
    parts = torch.from_numpy(held_out.images).split(_BATCH)
    chosen = torch.cat([_closest(clip, info.rows.to_x(part.to(device)), candidates) for part in parts]).numpy()
    wanted = dataset.combinations(held_out)
    right, known = chosen == wanted, wanted >= 0
    figures = {"zero_shot": float(right[known].mean())} if known.any() else {}
    if len(info.attributes) > 1:
        values = np.array([info.values_of(int(index)) for index in chosen])
        truth = np.array(held_out.attributes)
        figures |= {
            f"zero_shot_{name}": float((values[:, i] == truth[:, i]).mean()) for i, name in enumerate(info.attributes)
        }
    if held_out.unseen.any():
        figures["zero_shot_unseen"] = float(right[held_out.unseen].mean())
    return figures


def _closest(clip: Clip, x: Tensor, candidates: Tensor) -> Tensor:
    return (clip.image.encode(x) @ candidates.T).argmax(dim=-1).cpu()
