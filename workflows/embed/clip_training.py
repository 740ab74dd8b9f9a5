"""Trains a small CLIP on captioned images.

    loss = (CE(s V U^T, identity) + CE(s U V^T, identity)) / 2

with V, U the unit vectors of a batch's pictures and captions and s the learned scale (`open_clip.ClipLoss`).
The loss takes every other caption of its batch for a wrong one, so a batch must not hold two samples that
mean the same: samples are grouped by what they show, and a batch takes at most one of each group.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch import Tensor

from workflows.config import ClipConfig
from workflows.data.dataset import Split
from workflows.embed.clip import PictureFormat

_MAX_LOGIT_SCALE: Final = math.log(100)
_WARMUP: Final = 0.1
_PIXEL_MEAN: Final = (0.5, 0.5, 0.5)


def model_config(config: ClipConfig, image_size: int) -> dict[str, Any]:
    """open_clip's configuration of the model that is trained here."""
    return {
        "embed_dim": config.embed_dim,
        "vision_cfg": {
            "image_size": image_size,
            "layers": config.vision_layers,
            "width": config.vision_width,
            "patch_size": config.patch_size,
            "head_width": min(32, config.vision_width),
        },
        "text_cfg": {
            "context_length": config.context_length,
            "vocab_size": 49408,
            "width": config.text_width,
            "heads": max(1, config.text_width // 16),
            "layers": config.text_layers,
        },
    }


def build_model(config: ClipConfig, image_size: int) -> tuple[Any, Any]:
    """A fresh open_clip model, seeded by the configuration, and its tokenizer."""
    torch.manual_seed(config.seed)
    model: Any = open_clip.CLIP(**model_config(config, image_size), output_dict=True)
    preprocess = {"size": image_size, "mean": _PIXEL_MEAN, "std": _PIXEL_MEAN, "interpolation": "bicubic"}
    open_clip.set_model_preprocess_cfg(model, {"mode": "RGB", "resize_mode": "shortest", "fill_color": 0} | preprocess)
    return model, open_clip.SimpleTokenizer(context_length=config.context_length)


@final
@dataclass(frozen=True)
class Batch:
    """Rows of one step, and which wording each takes."""

    rows: NDArray[np.int64]
    """(groups, size): no two rows of a group show the same."""
    wordings: NDArray[np.int64]
    """(groups, size) index into the row's captions."""


def distinct_batches(split: Split, batch_size: int, steps: int, seed: int) -> Iterator[Batch]:
    """Draws batches whose groups hold every meaning at most once.

    Where there are fewer meanings than `batch_size` (ten digits), a batch is several groups, each with a
    loss of its own.

    Args:
        split: the samples.
        batch_size: rows per step at most.
        steps: how many batches.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    members = _members(split)
    size = min(batch_size, len(members))
    for _ in range(steps):
        chosen = np.stack([rng.permutation(len(members))[:size] for _ in range(max(1, batch_size // size))])
        rows = np.array([[rng.choice(members[meaning]) for meaning in group] for group in chosen], np.int64)
        wordings = np.array([[rng.integers(len(split.captions[row])) for row in group] for group in rows], np.int64)
        yield Batch(rows, wordings)


def _members(split: Split) -> list[NDArray[np.int64]]:
    groups: dict[Hashable, list[int]] = {}
    for row, (values, captions) in enumerate(zip(split.attributes, split.captions, strict=True)):
        groups.setdefault(values or captions[0], []).append(row)
    return [np.array(rows, np.int64) for rows in groups.values()]


def fit(model: Any, tokenizer: Any, split: Split, config: ClipConfig, device: torch.device) -> Iterator[float]:
    """Trains the model in place; yields the loss of each step."""
    model.to(device).train()
    pictures = torch.from_numpy(split.images).to(device)
    texts, caption_ids = _tokenize(split.captions, tokenizer)
    optimizer = torch.optim.AdamW(_decayed(model), lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config.steps))
    picture = PictureFormat.of(model)
    loss_function = open_clip.ClipLoss()
    for batch in distinct_batches(split, config.batch_size, config.steps, config.seed):
        rows = torch.from_numpy(batch.rows)
        ids = texts[
            [caption_ids[row][wording] for row, wording in zip(batch.rows.flat, batch.wordings.flat, strict=True)]
        ]
        pixels = picture.prepare(pictures[rows.flatten().to(device)].float() / 127.5 - 1)
        out = model(pixels, ids.to(device))
        image, text = (out[name].unflatten(0, rows.shape) for name in ("image_features", "text_features"))
        loss = torch.stack([loss_function(v, u, out["logit_scale"]) for v, u in zip(image, text, strict=True)]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
        yield loss.item()
    model.eval()


def _tokenize(captions: Sequence[tuple[str, ...]], tokenizer: Any) -> tuple[Tensor, list[list[int]]]:
    index = {caption: i for i, caption in enumerate(dict.fromkeys(text for texts in captions for text in texts))}
    return tokenizer(list(index)), [[index[text] for text in texts] for texts in captions]


def _decayed(model: Any) -> list[dict[str, Any]]:
    weights = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": weights, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]


def _rate(step: int, steps: int) -> float:
    warmup = max(1, round(_WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
