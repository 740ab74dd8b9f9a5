"""Captions that are encoded while training, for sets whose captions hardly repeat."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from workflows.embed.row_reader import RowReader, TextRows

if TYPE_CHECKING:
    from workflows.towers.features import EncodedText, TextEncoder


@final
class OnlineCaptions:
    """Captions whose text alone is in the cache; see `EncodedCaptions`.

    The frozen tower encodes each batch of a worker, so a caption is encoded as often as training meets it. Its features
    are those of the cache to 1e-5. Memory: the tower, and one batch of features.

    Args:
        reader: of the cache.
        towers: folder of the CLIP, or of a base's text tower.
        device: where the tower computes.
    """

    def __init__(self, reader: RowReader, towers: Path, device: torch.device) -> None:
        self._reader, self._towers, self._device = reader, towers, device

    def __len__(self) -> int:
        return self._reader.manifest.rows["captions"]

    @cached_property
    def _tower(self) -> TextEncoder:
        from workflows.towers.clip import load_clip

        return load_clip(self._towers, self._device).text

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `EncodedCaptions.take`; on the tower's device."""
        encoded = self._encoded(positions)
        return encoded.tokens, encoded.mask, encoded.pooled

    def pooled(self, positions: Tensor) -> Tensor:
        """See `EncodedCaptions.pooled`; on the tower's device."""
        return self._encoded(positions).pooled

    def _encoded(self, positions: Tensor) -> EncodedText:
        texts = [""] * len(positions)
        for visit, view in self._reader.visit("captions", positions, TextRows):
            for place, row in zip(visit.places, visit.rows, strict=True):
                texts[place] = view.text(int(row))
        self._reader.opened.files.touched(len(positions), sum(map(len, texts)))
        return self._tower.encode(texts)
