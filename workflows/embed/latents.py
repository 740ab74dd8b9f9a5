"""Latents in the cache: who writes them, and how.

A row holds the mean and the standard deviation of the autoencoder's posterior, and both of the mirrored picture too
where those are asked for. Training draws from them, so that an epoch costs no encoding.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import torch
from torch import Tensor

from workflows.data.dataset import Dataset
from workflows.data.rows import RowType
from workflows.embed.images import image_table, read_samples
from workflows.storage.shelf import Shelf
from workflows.towers.latent_format import LatentFormat

if TYPE_CHECKING:
    from workflows.towers.autoencoder import Autoencoder

_ROWS_AT_ONCE: Final = 32


@final
class LatentShardWriter:
    """Makes a shard of latents from a range of rows of a split; an actor for Ray Data's `map`.

    Args:
        dataset: the samples.
        shelf: for the shards.
        rows: the type that every picture must have.
        autoencoder: folder of what encodes.
        latents: how they are stored.
        device: where it encodes.
    """

    def __init__(
        self,
        dataset: Dataset,
        shelf: Shelf,
        rows: RowType,
        autoencoder: Path,
        latents: LatentFormat,
        device: str,
    ) -> None:
        self._dataset, self._shelf, self._rows = dataset, shelf, rows
        self._source, self._latents, self._device = autoencoder, latents, device

    @cached_property
    def _autoencoder(self) -> Autoencoder:
        """Loaded with the first shard: what fails in a constructor, Ray reports as the death of an actor."""
        from workflows.towers.autoencoder import Autoencoder

        return Autoencoder.load(self._source, self._device)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Writes the shard of one work item (`split`, `start`, `stop`, `captions`, `path`, `key`).

        Raises:
            InvalidData: a picture of another shape.
            StorageUnwritable: the folder or the store is full or read-only.
            InvalidConfig: no autoencoder lies there.
        """
        rows = read_samples(self._dataset, item, self._rows)
        parts = [self._encoded(part) for part in torch.from_numpy(rows.images).split(_ROWS_AT_ONCE)]
        table = image_table(rows, np.frombuffer(item["captions"], np.int32), torch.cat(parts).numpy())
        return asdict(self._shelf.write(item["path"], table, item["key"]))

    def _encoded(self, images: Tensor) -> Tensor:
        views = [images, images.flip(-1)] if self._latents.flips else [images]
        return torch.cat([part for view in views for part in self._autoencoder.encode(view)], dim=1).cpu()
