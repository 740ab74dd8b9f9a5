"""The second judge: says how well a picture fits a text, and shares nothing with the CLIP that models read.

It is two small networks, each trained on its own half of the training pictures: convolutions for pictures, hashed words
for texts. Their unit vectors are put side by side, so that a cosine is the mean of both. It never sees a drawn picture.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
import zlib
from collections.abc import Sequence
from typing import Final, Protocol, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from workflows.data.dataset import Dataset, Split
from workflows.data.pixels import to_data
from workflows.evaluate.real import MOST, some
from workflows.towers.clip import Clip

_BUCKETS: Final = 1 << 13
_WIDTH: Final = 24
_VECTOR: Final = 32
_LEAST: Final = 16
"""A half of fewer samples would teach nothing: then both learn from all."""
_STEPS: Final = 300
_BATCH: Final = 96
_PEAK_RATE: Final = 3e-3
_WARMUP: Final = 0.2
_SCALE: Final = 12.0
_SIDE: Final = 32
_AT_ONCE: Final = 256


class Eyes(Protocol):
    """Whatever sees how well pictures fit texts: vectors of both in one space.

    Attributes:
        name: in reports.
        shared: whether models read its text tower, or are guided by it, so that they may please it without being right.
    """

    name: str
    shared: bool

    def pictures(self, images: NDArray[np.uint8]) -> Tensor:
        """Unit vectors of pictures `(n, c, h, w)`."""
        ...

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts."""
        ...


@final
class ClipEyes:
    """A CLIP. Those of a job are read by its model, and guide it."""

    name = "clip"
    shared = True

    def __init__(self, clip: Clip) -> None:
        self._clip = clip

    @torch.no_grad()
    def pictures(self, images: NDArray[np.uint8]) -> Tensor:
        """See `Eyes`."""
        parts = torch.from_numpy(images).split(_AT_ONCE)
        return torch.cat([self._clip.image.encode(to_data(part)).cpu() for part in parts])

    def texts(self, texts: Sequence[str]) -> Tensor:
        """See `Eyes`."""
        parts = [texts[start : start + _AT_ONCE] for start in range(0, len(texts), _AT_ONCE)]
        return torch.cat([self._clip.text.encode(part).pooled.cpu() for part in parts])


@final
class Matcher:
    """The judge of this module; see there.

    Args:
        split: to learn from.
        seed: of weights and batches.
    """

    name = "matcher"
    shared = False

    def __init__(self, split: Split, seed: int = 0) -> None:
        order = np.random.default_rng(seed).permutation(len(split))
        halves = [order[half::2] for half in range(2)] if len(split) >= 2 * _LEAST else [order, order]
        self._halves = [_train(split.rows(rows), seed + half) for half, rows in enumerate(halves)]

    @torch.no_grad()
    def pictures(self, images: NDArray[np.uint8]) -> Tensor:
        """See `Eyes`."""
        parts = torch.from_numpy(images).split(_AT_ONCE)
        seen = [torch.cat([half.see(_small(part)) for half in self._halves], dim=1) for part in parts]
        return torch.cat(seen) / math.sqrt(2.0)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """See `Eyes`."""
        return torch.cat([half.read(texts) for half in self._halves], dim=1) / math.sqrt(2.0)


def train_matcher(dataset: Dataset, seed: int = 0) -> Matcher:
    """The second judge for a data set, from at most `MOST` of its training pictures, which are in memory meanwhile."""
    return Matcher(some(dataset, "train", MOST), seed)


@final
class _Half(nn.Module):
    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for place in range(3):
            wanted = _WIDTH * 2**place
            layers += [nn.Conv2d(channels, wanted, 3, stride=2, padding=1), nn.BatchNorm2d(wanted), nn.ReLU()]
            channels, height, width = wanted, -(-height // 2), -(-width // 2)
        self.image = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, _VECTOR))
        self.words = nn.EmbeddingBag(_BUCKETS, _VECTOR, mode="mean")
        self.text = nn.Linear(_VECTOR, _VECTOR)

    def see(self, x: Tensor) -> Tensor:
        return functional.normalize(self.image(x), dim=1)

    def read(self, texts: Sequence[str]) -> Tensor:
        found = [_pieces(text) for text in texts]
        starts = np.cumsum([0, *(len(pieces) for pieces in found)])[:-1]
        ids = torch.tensor([piece for pieces in found for piece in pieces])
        return functional.normalize(self.text(self.words(ids, torch.from_numpy(starts))), dim=1)


def _train(split: Split, seed: int) -> _Half:
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    x = _small(torch.from_numpy(split.images))
    known = [set(texts) for texts in split.captions]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        half = _Half(*cast(tuple[int, int, int], tuple(x.shape[1:])))
    optimizer = torch.optim.AdamW(half.parameters(), weight_decay=0.1)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_RATE, total_steps=_STEPS, pct_start=_WARMUP)
    for _ in range(_STEPS):
        # A batch of one row has no spread to normalise.
        rows = rng.permutation(len(split))[:_BATCH] if len(split) > 1 else np.zeros(2, np.int64)
        texts = [split.captions[row][int(rng.integers(len(split.captions[row])))] for row in rows]
        fits = torch.tensor([[text in known[row] for text in texts] for row in rows])
        logits = _SCALE * half.see(_shifted(x[torch.from_numpy(rows)], generator)) @ half.read(texts).T
        loss = _contrast(logits, fits) + _contrast(logits.T, fits.T)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return half.eval()


def _contrast(logits: Tensor, fits: Tensor) -> Tensor:
    """The loss of a choice among all texts of a batch, of which several may be right."""
    right = logits.masked_fill(~fits, -math.inf).logsumexp(dim=1)
    return (logits.logsumexp(dim=1) - right).mean()


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """All pictures moved by a few pixels, the same for a batch: so that no place of a pixel is learnt by heart."""
    most = max(x.shape[-2:]) // 16
    if most == 0:
        return x
    down, right = (int(torch.randint(-most, most + 1, (), generator=generator)) for _ in range(2))
    padded = functional.pad(x, (most, most, most, most), mode="replicate")
    top, left = most + down, most + right
    return padded[..., top : top + x.shape[-2], left : left + x.shape[-1]]


def _small(images: Tensor) -> Tensor:
    """Pictures in [-1, 1] of about `_SIDE` pixels a side at most."""
    x = to_data(images)
    factor = max(x.shape[-2:]) // _SIDE
    return functional.avg_pool2d(x, factor) if factor > 1 else x


def _pieces(text: str) -> list[int]:
    """Buckets of a text's words, pairs of words, and letters in threes: in any language, whatever the spelling."""
    words = re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFKC", text).casefold()) or [""]
    padded = [f"<{word}>" for word in words]
    letters = [word[place : place + 3] for word in padded for place in range(max(1, len(word) - 2))]
    pairs = [f"{first} {second}" for first, second in itertools.pairwise(words)]
    return [zlib.crc32(piece.encode()) % _BUCKETS for piece in (*padded, *pairs, *letters)]
