"""What a CLIP that is trained here takes from the data: its context length, and its size."""

from __future__ import annotations

from typing import Any, Final

import pyarrow.compute as pc

from workflows.config.schema import ClipConfig
from workflows.data.dataset import Dataset
from workflows.data.tokens import TokenCounts

_SIZES: Final[dict[int, dict[str, int]]] = {
    0: {"embed_dim": 64, "text_width": 64, "text_layers": 2, "vision_width": 96, "vision_layers": 3},
    2_000: {"embed_dim": 128, "text_width": 128, "text_layers": 3, "vision_width": 128, "vision_layers": 4},
    50_000: {"embed_dim": 192, "text_width": 192, "text_layers": 4, "vision_width": 192, "vision_layers": 6},
    1_000_000: {"embed_dim": 256, "text_width": 256, "text_layers": 6, "vision_width": 384, "vision_layers": 8},
}
"""Sizes by the least number of training pictures; the first is that of the built-in jobs."""


def fitted(clip: ClipConfig, dataset: Dataset) -> tuple[ClipConfig, list[str]]:
    """The section with a number for `context_length: auto` and the sizes for `size: auto`, and what there is to tell.

    Both depend on the data alone. Reads no picture, and holds a batch of captions.
    """
    found: dict[str, Any] = {}
    told: list[str] = []
    if clip.context_length == "auto":
        counts = token_counts(dataset)
        found["context_length"] = counts.fitting
        if over := counts.over(counts.fitting):
            told.append(f"context_length: auto is {counts.fitting}: {over:,} of {counts.total:,} captions are cut")
    return sized(clip, dataset.info.num_train).model_copy(update=found), told


def token_counts(dataset: Dataset) -> TokenCounts:
    """Of all captions of the training split."""
    counts = TokenCounts()
    for batch in dataset.batches("train", ["captions"]):
        for text in pc.value_counts(pc.list_flatten(batch["captions"])):
            counts.add([text["values"].as_py()], text["counts"].as_py())
    return counts


def sized(clip: ClipConfig, num_pictures: int) -> ClipConfig:
    """The section with the widths and numbers of blocks for so many training pictures, where `size` is auto."""
    if clip.size == "set":
        return clip
    found = next(sizes for least, sizes in reversed(_SIZES.items()) if num_pictures >= least)
    return clip.model_copy(update={"size": "set", **found})
