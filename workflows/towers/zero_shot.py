"""How well a CLIP names what it has never seen: each picture gets the candidate caption it is closest to."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workflows.data.dataset import DataInfo, Dataset
from workflows.towers.clip import Clip

_BATCH: Final = 512


@torch.no_grad()
def zero_shot(clip: Clip, dataset: Dataset, device: torch.device) -> dict[str, float]:
    """Share of held-out pictures whose closest candidate caption is right; 1,024 pictures are in memory.

    Args:
        clip: the towers.
        dataset: gives the held-out pictures and one candidate caption per combination.
        device: where the towers run.

    Returns:
        `zero_shot`: all attributes right; without attributes, the caption right, of the samples whose caption is a
        candidate (left out if none is). With several attributes also `zero_shot_ATTRIBUTE` for each, and
        `zero_shot_unseen` over combinations that were never trained on, when there are some. Nothing without
        held-out pictures.
    """
    if not dataset.info.num_held_out:
        return {}
    info, candidates = dataset.info, clip.text.encode(dataset.info.candidate_captions).pooled
    chosen, wanted, unseen, truth = [], [], [], []
    for samples in dataset.chunks("held_out"):
        parts = torch.from_numpy(samples.images).split(_BATCH)
        chosen += [_closest(clip, info.rows.to_x(part.to(device)), candidates).numpy() for part in parts]
        wanted.append(dataset.combinations(samples))
        unseen.append(samples.unseen)
        truth.append(np.array(samples.attributes).reshape(len(samples), -1))
    return _figures(info, np.concatenate(chosen), np.concatenate(wanted), np.concatenate(unseen), np.concatenate(truth))


def _figures(
    info: DataInfo,
    chosen: NDArray[np.int64],
    wanted: NDArray[np.int64],
    unseen: NDArray[np.bool_],
    truth: NDArray[np.str_],
) -> dict[str, float]:
    right, known = chosen == wanted, wanted >= 0
    figures = {"zero_shot": float(right[known].mean())} if known.any() else {}
    if len(info.attributes) > 1:
        values = np.array([info.values_of(int(index)) for index in chosen])
        figures |= {
            f"zero_shot_{name}": float((values[:, i] == truth[:, i]).mean()) for i, name in enumerate(info.attributes)
        }
    if unseen.any():
        figures["zero_shot_unseen"] = float(right[unseen].mean())
    return figures


def _closest(clip: Clip, x: Tensor, candidates: Tensor) -> Tensor:
    return (clip.image.encode(x) @ candidates.T).argmax(dim=-1).cpu()
