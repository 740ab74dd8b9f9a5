"""Judges: classifiers of clean pictures, trained here on the real training split, that name what they see.

A judge never sees a generated picture while it is trained, and shares nothing with the models that it judges.
"""

from __future__ import annotations

from typing import Final, Protocol, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.nn import functional

from workflows.data.dataset import DataInfo, Dataset, Split
from workflows.data.pixels import to_data
from workflows.evaluate.real import some

_LARGEST_SVC: Final = 4096
_MOST: Final = 32_768
_SVC_PENALTY: Final = 10.0
_COLOR: Final = "color"
_WIDTH: Final = 16
_EPOCHS: Final = 8
_BATCH: Final = 64
_PEAK_RATE: Final = 3e-3
_WARMUP: Final = 0.2
_JUDGED_AT_ONCE: Final = 256


class Judge(Protocol):
    """Pictures in, attribute values out."""

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Names each picture.

        Args:
            images: (n, c, h, w).

        Returns:
            (n, attributes): the index of a value of each of `DataInfo.attributes`.
        """
        ...


@final
class PixelJudge:
    """A support vector machine on pixels: right for few, small pictures with one attribute.

    Args:
        split: to learn from.
        info: its attributes.
    """

    def __init__(self, split: Split, info: DataInfo) -> None:
        targets = truth(info, split.attributes)
        self._machines = [SVC(C=_SVC_PENALTY).fit(_pixels(split.images), column) for column in targets.T]

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """See `Judge`."""
        return np.stack([machine.predict(_pixels(images)) for machine in self._machines], axis=1)


@final
class ConvJudge:
    """A small convolutional network with one head per attribute.

    Half of each batch has its color channels mixed at random, and does not train the head of `color`: so the
    others do not learn which shapes came in which colors, and judge combinations that were never shown.

    Args:
        split: to learn from.
        info: its attributes.
        seed: of weights and batches.
    """

    def __init__(self, split: Split, info: DataInfo, seed: int = 0) -> None:
        self._sizes = [len(values) for values in info.attributes.values()]
        self._colored = [name == _COLOR for name in info.attributes]
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._network = _convolutions(cast(tuple[int, int, int], info.shape), sum(self._sizes))
        self._fit(torch.from_numpy(split.images), torch.from_numpy(truth(info, split.attributes)), generator)

    @torch.no_grad()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """See `Judge`."""
        parts = [self._heads(_scaled(part)) for part in torch.from_numpy(images).split(_JUDGED_AT_ONCE)]
        chosen = [torch.stack([head.argmax(dim=1) for head in heads], dim=1) for heads in parts]
        return torch.cat(chosen).numpy()

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        output: Tensor = self._network(x)
        return torch.split(output, self._sizes, dim=1)

    def _fit(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> None:
        batches = max(1, len(images) // _BATCH)
        optimizer = torch.optim.AdamW(self._network.parameters(), weight_decay=0.05)
        rate = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, _PEAK_RATE, total_steps=_EPOCHS * batches, pct_start=_WARMUP
        )
        for _ in range(_EPOCHS):
            order = torch.randperm(len(images), generator=generator)
            for rows in order[: batches * _BATCH].chunk(batches):
                loss = self._loss(_scaled(images[rows]), targets[rows], generator)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rate.step()
        self._network.eval()

    def _loss(self, x: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        mixed = 0
        if any(self._colored):
            mixed, channels = len(x) // 2, x.shape[1]
            weights = torch.rand(mixed, channels, channels, generator=generator)
            weights /= weights.sum(dim=2, keepdim=True)
            x = torch.cat([torch.einsum("bij,bjhw->bihw", weights, x[:mixed]), x[mixed:]])
        losses = [
            functional.cross_entropy(head[mixed * colored :], target[mixed * colored :, place])
            for place, (head, colored) in enumerate(zip(self._heads(x), self._colored, strict=True))
        ]
        return torch.stack(losses).sum()


def train_judge(dataset: Dataset, seed: int = 0) -> Judge:
    """The judge for a data set: a support vector machine for one attribute of small pictures, else a network.

    It learns from at most `_MOST` training pictures, which are in memory meanwhile.
    """
    split, info = some(dataset, "train", _MOST), dataset.info
    if len(info.attributes) == 1 and len(split) <= _LARGEST_SVC:
        return PixelJudge(split, info)
    return ConvJudge(split, info, seed)


def truth(info: DataInfo, attributes: tuple[tuple[str, ...], ...]) -> NDArray[np.int64]:
    """(n, attributes): the index of each sample's value of each attribute."""
    allowed = list(info.attributes.values())
    rows = [[values.index(value) for values, value in zip(allowed, row, strict=True)] for row in attributes]
    return np.array(rows, np.int64).reshape(len(attributes), len(allowed))


def judge_accuracy(judge: Judge, dataset: Dataset) -> dict[str, float]:
    """Share of held-out pictures judged right: `all` attributes, and each by its name."""
    held_out = some(dataset, "held_out")
    right = judge(held_out.images) == truth(dataset.info, held_out.attributes)
    return {"all": float(right.all(axis=1).mean())} | {
        name: float(right[:, place].mean()) for place, name in enumerate(dataset.info.attributes)
    }


def _pixels(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    return images.reshape(len(images), -1) / 255.0


def _scaled(images: Tensor) -> Tensor:
    return to_data(images).to(memory_format=torch.channels_last)


def _convolutions(shape: tuple[int, int, int], outputs: int) -> nn.Module:
    """Three convolutions, each of which halves the picture's sides and doubles its channels."""
    layers: list[nn.Module] = []
    channels, height, width = shape
    for place in range(3):
        wanted = _WIDTH * 2**place
        size = 5 if place == 0 else 3
        layers += [nn.Conv2d(channels, wanted, size, stride=2, padding=size // 2), nn.BatchNorm2d(wanted), nn.ReLU()]
        channels, height, width = wanted, -(-height // 2), -(-width // 2)
    layers += [nn.Flatten(), nn.Linear(channels * height * width, outputs)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)
