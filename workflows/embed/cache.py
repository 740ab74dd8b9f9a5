"""Reading the embedding cache while training, row by row, from its folder or from object storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_core.types import Data
from workflows.data.dataset import SplitName
from workflows.data.rows import RowType, rows_of
from workflows.embed.cached_captions import CachedCaptions, EncodedCaptions
from workflows.embed.manifest import Manifest, caption_id
from workflows.embed.online_captions import OnlineCaptions
from workflows.embed.row_reader import ImageRows, Indices, RowReader
from workflows.errors import InvalidData
from workflows.storage.copies import REMEDY, CopySettings
from workflows.towers.latent_format import LatentFormat

_NO_CAPTION: Final = -1


@final
@dataclass(frozen=True)
class CachedBatch:
    """Samples as they are stored.

    Attributes:
        sample_ids: (b,) int64.
        captions: (b, k) int64 positions in the cache's captions, -1 after a sample's last wording.
        num_captions: (b,) int64 wordings per sample.
        labels: (b,) int64, -1 where there is none.
    """

    sample_ids: Tensor
    captions: Tensor
    num_captions: Tensor
    labels: Tensor

    def pick(self, draws: Tensor) -> Tensor:
        """(b,) one caption of each sample: its wording number `draws` modulo its number of wordings.

        Args:
            draws: (b,) non-negative int64, such as random bits that depend on (seed, epoch, sample id).
        """
        return self.captions.gather(1, (draws % self.num_captions)[:, None])[:, 0]


@final
class EmbeddingCache:
    """A finished cache. A row is read from its shard when it is asked for; memory is that of `RowReader`.

    Args:
        folder: of the manifest.
        manifest: what there is.
        copies: where copies of a store's shards go.
        device: where captions are encoded that are not in the cache (`embed.mode: online`).
    """

    def __init__(self, folder: Path, manifest: Manifest, copies: CopySettings, device: torch.device) -> None:
        self.folder, self.manifest, self._device = folder, manifest, device
        self.reader = RowReader(folder, manifest, copies)

    @staticmethod
    def open(folder: Path, copies: CopySettings | None = None, device: torch.device | None = None) -> EmbeddingCache:
        """Opens the cache in this folder.

        Raises:
            MissingArtifact: the embed stage has not finished there.
            InvalidData: the cache has another format.
        """
        return EmbeddingCache(
            folder, Manifest.load(folder), copies or CopySettings(), torch.device("cpu") if device is None else device
        )

    @property
    def key(self) -> str:
        """What the cache was made from, as one hash."""
        return self.manifest.key

    @property
    def shape(self) -> tuple[int, ...]:
        """(c, h, w) of every image or of its latent, or (d,) of vectors."""
        return self.manifest.shape

    @property
    def rows(self) -> RowType:
        """The type of the rows that networks see; latents count as pictures of their shape."""
        return rows_of(self.shape)

    @cached_property
    def latents(self) -> LatentFormat | None:
        """How images are stored; None: as pixels."""
        return None if self.manifest.latents is None else LatentFormat.of(self.manifest.latents)

    @cached_property
    def captions(self) -> EncodedCaptions:
        """All captions."""
        if self.manifest.towers is None:
            return CachedCaptions(self.reader)
        return OnlineCaptions(self.reader, self.folder / self.manifest.towers, self._device)

    def num_samples(self, split: SplitName) -> int:
        """Samples of a split."""
        return self.manifest.rows[split]

    def verify(self) -> None:
        """Compares every shard with the manifest.

        Raises:
            InvalidData: a shard is missing or was changed, or the store cannot be reached.
        """
        if damaged := self.manifest.damaged(self.folder):
            raise InvalidData(f"{', '.join(damaged)} in {self.reader.place} missing or changed: {REMEDY}")

    def batch(self, split: SplitName, indices: Indices) -> CachedBatch:
        """The samples at these positions of a split, without their images.

        Raises:
            InvalidData: a shard is missing or damaged.
        """
        captions: list[NDArray[np.int32]] = [np.empty(0, np.int32)] * len(indices)
        ids, labels = np.empty(len(indices), np.int64), np.empty(len(indices), np.int64)
        for visit, view in self.reader.visit(f"{split}/images", indices, ImageRows):
            for place, row in zip(visit.places, visit.rows, strict=True):
                ids[place], labels[place], captions[place] = view.sample(int(row))
        self.reader.opened.files.touched(len(indices), 0)
        counts = torch.tensor([len(own) for own in captions], dtype=torch.int64)
        table = np.full((len(indices), max(map(len, captions), default=0)), _NO_CAPTION, np.int64)
        for place, own in enumerate(captions):
            table[place, : len(own)] = own
        return CachedBatch(torch.from_numpy(ids), torch.from_numpy(table), counts, torch.from_numpy(labels))

    def images(self, split: SplitName, indices: Indices) -> Tensor:
        """The stored images at these positions of a split; `to_x0` makes them what networks see.

        Returns:
            (b, c, h, w) uint8, or vectors (b, d) float32, or latents as `LatentFormat` stores them.

        Raises:
            InvalidData: a shard is missing or damaged.
        """
        shape, dtype = (self.shape, self.rows.dtype) if self.latents is None else (self.latents.stored, np.float32)
        images = np.empty((len(indices), *shape), dtype)
        for visit, view in self.reader.visit(f"{split}/images", indices, ImageRows):
            images[visit.places] = view.images(visit.rows, shape)
        self.reader.opened.files.touched(len(images), images.nbytes)
        return torch.from_numpy(images)

    def to_x0(self, stored: Tensor, seed: int = 0, numbers: Tensor | None = None) -> Data:
        """Stored rows as the data that is denoised; of latents a draw (`LatentFormat.draw`), or the mean."""
        if self.latents is None:
            return self.rows.to_x(stored)
        return self.latents.mean(stored) if numbers is None else self.latents.draw(stored, seed, numbers)

    def caption_positions(self, captions: Sequence[str]) -> Tensor:
        """(len(captions),) positions of captions given as text; reads the ids of all captions, shard by shard.

        Raises:
            InvalidData: a caption that is not in the cache.
        """
        wanted = {caption_id(self.manifest.encoder_key, text): text for text in captions}
        found: dict[bytes, int] = {}
        for number, shard in enumerate(self.reader.shards("captions")):
            ids = self.reader.opened.open(shard).column("caption_id")
            places = pc.indices_nonzero(pc.is_in(ids, value_set=pa.array(list(wanted), ids.type))).to_pylist()
            first = number * self.reader.shard_rows("captions")
            found |= {ids[place].as_py(): first + place for place in places}
            if len(found) == len(wanted):  # candidate captions come first
                break
        if missing := [text for key, text in wanted.items() if key not in found]:
            raise InvalidData(f"the caption {missing[0]!r} is not in the cache {self.folder}")
        return torch.tensor([found[caption_id(self.manifest.encoder_key, text)] for text in captions])
