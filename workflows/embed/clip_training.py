"""Trains a small CLIP on captioned images.

    loss = (CE(s V U^T, identity) + CE(s U V^T, identity)) / 2

with V, U the unit vectors of a batch's pictures and captions and s the learned scale (`open_clip.ClipLoss`).
The loss takes every other caption of its batch for a wrong one, so a batch must not hold two samples that
mean the same: samples are grouped by what they show, and a batch takes at most one of each group.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, final

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch import Tensor

from workflows.config import ClipConfig
from workflows.data.dataset import Split
from workflows.embed.clip import PictureFormat
from workflows.embed.pixels import to_x
from workflows.errors import InvalidClip

Rows: TypeAlias = NDArray[np.int64]

_MAX_LOGIT_SCALE: Final = math.log(100)
_WARMUP: Final = 0.1
_VOCABULARY: Final = 49408
_VISION_HEAD_WIDTH: Final = 32
_TEXT_HEAD_WIDTH: Final = 16
_PIXEL_MEAN: Final = (0.5, 0.5, 0.5)


def model_config(config: ClipConfig, image_size: int) -> dict[str, Any]:
    """open_clip's configuration of the model that is trained here.

    Raises:
        InvalidClip: patches that do not fill the picture.
    """
    if image_size % config.patch_size:
        raise InvalidClip(
            f"clip.patch_size {config.patch_size} does not divide the {image_size} pixels of a side: give one that does"
        )
    return {
        "embed_dim": config.embed_dim,
        "vision_cfg": {
            "image_size": image_size,
            "layers": config.vision_layers,
            "width": config.vision_width,
            "patch_size": config.patch_size,
            "head_width": config.vision_width // _num_heads(config.vision_width, _VISION_HEAD_WIDTH),
        },
        "text_cfg": {
            "context_length": config.context_length,
            "vocab_size": _VOCABULARY,
            "width": config.text_width,
            "heads": _num_heads(config.text_width, _TEXT_HEAD_WIDTH),
            "layers": config.text_layers,
        },
    }


def _num_heads(width: int, head_width: int) -> int:
    """About `width / head_width` heads, as many as divide the width."""
    return math.gcd(width, max(1, width // head_width))


def tower_side(config: ClipConfig, shape: Sequence[int]) -> int:
    """Pixels of a side of what the image tower takes: a picture's own, or a patch for each number of a vector."""
    return shape[-1] if len(shape) > 1 else config.patch_size * math.isqrt(shape[0] - 1) + config.patch_size


def build_model(config: ClipConfig, image_size: int) -> tuple[Any, Any]:
    """A fresh open_clip model, seeded by the configuration, and its tokenizer."""
    torch.manual_seed(config.seed)
    model: Any = open_clip.CLIP(**model_config(config, image_size), output_dict=True)
    preprocess = {"size": image_size, "mean": _PIXEL_MEAN, "std": _PIXEL_MEAN, "interpolation": "bicubic"}
    open_clip.set_model_preprocess_cfg(model, {"mode": "RGB", "resize_mode": "shortest", "fill_color": 0} | preprocess)
    return model, open_clip.SimpleTokenizer(context_length=config.context_length)


def distinct_batches(
    meanings: NDArray[np.int64], batch_size: int, steps: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Draws batches whose groups hold every meaning at most once.

    Where there are fewer meanings than `batch_size` (ten digits), a batch is several groups, each with a
    loss of its own.

    Args:
        meanings: (n,) which samples mean the same: an index in 0..m-1 with every value used.
        batch_size: rows per step at most.
        steps: how many batches.
        seed: of the draw.

    Yields:
        (groups, min(batch_size, m)) rows; meanings are drawn evenly, and so are the rows of a meaning.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(meanings, kind="stable")
    counts = np.bincount(meanings)
    starts = np.cumsum(counts) - counts
    size = min(batch_size, len(counts))
    for _ in range(steps):
        chosen = np.stack([rng.permutation(len(counts))[:size] for _ in range(max(1, batch_size // size))])
        yield order[starts[chosen] + rng.integers(counts[chosen])]


def meanings_of(split: Split) -> Rows:
    """(n,) which samples show the same: same attributes, or same first caption where there are none."""
    keys: dict[Hashable, int] = {}
    values = zip(split.attributes, split.captions, strict=True)
    return np.array(
        [keys.setdefault(attributes or captions[0], len(keys)) for attributes, captions in values], np.int64
    )


def fit(model: Any, tokenizer: Any, split: Split, config: ClipConfig, device: torch.device) -> Iterator[float]:
    """Trains the model in place; yields the loss of each step."""
    model.to(device).train()
    texts = _tokenize(split.captions, tokenizer)
    rng = np.random.default_rng(config.seed)
    batches = distinct_batches(meanings_of(split), config.batch_size, config.steps, config.seed)
    with _used_vocabulary(model, texts.ids.to(device)) as ids:
        optimizer = torch.optim.AdamW(_decayed(model), lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config.steps))
        for rows in batches:
            captions = texts.pick(rows.ravel(), rng).to(device)
            images = torch.from_numpy(split.images[rows.ravel()]).to(device)
            loss = _loss(model, to_x(images), ids[captions], groups=len(rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
            yield loss.item()
    model.eval()


def _loss(model: Any, images: Tensor, ids: Tensor, groups: int) -> Tensor:
    out = model(PictureFormat.of(model).prepare(images), ids)
    pairs = zip(out["image_features"].chunk(groups), out["text_features"].chunk(groups), strict=True)
    contrast = open_clip.ClipLoss()
    return torch.stack([contrast(image, text, out["logit_scale"]) for image, text in pairs]).mean()


@final
@dataclass(frozen=True)
class _Texts:
    """Token ids (m, n) of distinct captions, and which of them each sample has."""

    ids: Tensor
    of_sample: list[list[int]]

    def pick(self, rows: Rows, rng: np.random.Generator) -> Tensor:
        return torch.tensor([rng.choice(self.of_sample[row]) for row in rows])


def _tokenize(captions: Sequence[tuple[str, ...]], tokenizer: Any) -> _Texts:
    index = {text: i for i, text in enumerate(dict.fromkeys(text for texts in captions for text in texts))}
    return _Texts(tokenizer(list(index)), [[index[text] for text in texts] for texts in captions])


@contextlib.contextmanager
def _used_vocabulary(model: Any, ids: Tensor) -> Iterator[Tensor]:
    """Trains the embeddings of the tokens that occur, and puts them back into the whole table at the end.

    AdamW over the whole table of 49,408 tokens would be a fifth of a step, to move what has no gradient.
    The new ids keep the order of the old ones, so that the end of a text is still the largest.
    """
    table = model.token_embedding
    used, compact = ids.unique(return_inverse=True)
    model.token_embedding = torch.nn.Embedding.from_pretrained(table.weight.detach()[used], freeze=False)
    try:
        yield compact
    finally:
        with torch.no_grad():
            table.weight[used] = model.token_embedding.weight
        model.token_embedding = table


def _decayed(model: Any) -> list[dict[str, Any]]:
    weights = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": weights, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]


def _rate(step: int, steps: int) -> float:
    warmup = max(1, round(_WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
