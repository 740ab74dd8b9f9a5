"""Captions of a cache by their position: tokens, masks and pooled vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol, final

import numpy as np
import torch
from torch import Tensor

from workflows.embed.row_reader import CaptionRows, RowReader, Visit

_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class EncodedCaptions(Protocol):
    """Captions by their position, encoded."""

    def __len__(self) -> int: ...

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (b, n, d) float32, zero where the mask is false; mask (b, n) bool; pooled (b, e) float32, unit."""
        ...

    def pooled(self, positions: Tensor) -> Tensor:
        """Pooled vectors (b, e) float32, of unit length."""
        ...


@final
class CachedCaptions:
    """Captions whose features are in the cache; see `EncodedCaptions`.

    Args:
        reader: of the cache.
    """

    def __init__(self, reader: RowReader) -> None:
        self._reader, self._clip = reader, reader.manifest.clip
        self._dtype = _DTYPES[reader.manifest.dtype]

    def __len__(self) -> int:
        return self._reader.manifest.rows["captions"]

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `EncodedCaptions.take`."""
        tokens = torch.zeros(len(positions), self._clip["context_length"], self._clip["width"])
        mask = np.empty(tokens.shape[:2], np.uint8)
        pooled = np.empty((len(positions), self._clip["embed_dim"]), np.float32)
        count = 0
        for visit, view in self._visit(positions):
            mask[visit.places], pooled[visit.places] = view.mask[visit.rows], view.pooled[visit.rows]
            for place, row in zip(visit.places, visit.rows, strict=True):
                stored = torch.from_numpy(np.array(view.tokens(int(row))))
                count += stored.nbytes
                tokens[place, torch.from_numpy(mask[place]).bool()] = _as(stored, self._dtype)
        self._reader.opened.files.touched(len(positions), count)
        return tokens, torch.from_numpy(mask).bool(), torch.from_numpy(pooled)

    def pooled(self, positions: Tensor) -> Tensor:
        """See `EncodedCaptions.pooled`."""
        pooled = np.empty((len(positions), self._clip["embed_dim"]), np.float32)
        count = 0
        for visit, view in self._visit(positions):
            pooled[visit.places] = view.pooled[visit.rows]
            for row in visit.rows:
                count += view.tokens(int(row)).nbytes  # checks the row
        self._reader.opened.files.touched(len(positions), count)
        return torch.from_numpy(pooled)

    def _visit(self, positions: Tensor) -> Iterator[tuple[Visit, CaptionRows]]:
        for visit, view in self._reader.visit("captions", positions, CaptionRows):
            clip = self._clip
            view.check_columns(clip["context_length"], clip["width"], clip["embed_dim"], self._reader.manifest.dtype)
            yield visit, view


def _as(stored: Tensor, dtype: torch.dtype) -> Tensor:
    return (stored.view(dtype) if dtype == torch.bfloat16 else stored).float()
