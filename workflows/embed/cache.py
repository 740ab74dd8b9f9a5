"""Reading the embedding cache while training, from its folder or from object storage."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_core.types import Data
from workflows.data.dataset import SplitName
from workflows.data.rows import RowType, rows_of
from workflows.embed.manifest import Manifest, caption_id
from workflows.errors import InvalidData
from workflows.storage.place import reason
from workflows.towers.latent_format import LatentFormat

_SHARDS_AHEAD: Final = 2
_REMEDY: Final = "run `raverse cache prune`, then the job again"


@final
@dataclass(frozen=True)
class CachedCaptions:
    """Every distinct caption.

    Attributes:
        text: m captions, normalised.
        ids: m caption ids.
        tokens: (m, n, d) in the stored dtype, zero where the mask is false.
        mask: (m, n) bool, true up to and including the end of the caption.
        pooled: (m, e) float32 unit vectors.
    """

    text: tuple[str, ...]
    ids: tuple[str, ...]
    tokens: Tensor
    mask: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return len(self.text)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, mask, pooled) of some captions, in float32."""
        return self.tokens[indices].float(), self.mask[indices], self.pooled[indices]

    @cached_property
    def index(self) -> dict[str, int]:
        """Caption id -> position."""
        return {key: i for i, key in enumerate(self.ids)}


@final
@dataclass(frozen=True)
class CachedBatch:
    """Samples as they are stored.

    Attributes:
        sample_ids: (b,) int64.
        images: (b, c, h, w) uint8, or vectors (b, d) float32, or latents as `LatentFormat` stores them;
            `EmbeddingCache.to_x0` makes them what networks see.
        captions: (b, k) int64 positions in `CachedCaptions`, -1 after a sample's last wording.
        num_captions: (b,) int64 wordings per sample.
        labels: (b,) int64, -1 where there is none.
    """

    sample_ids: Tensor
    images: Tensor
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
    """A finished cache; splits and captions are loaded when they are first asked for."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.place = manifest.place(folder)
        self._splits: dict[SplitName, CachedBatch] = {}

    @staticmethod
    def open(folder: Path) -> EmbeddingCache:
        """Opens the cache in this folder.

        Raises:
            MissingArtifact: the embed stage has not finished there.
            InvalidData: the cache has another format.
        """
        return EmbeddingCache(folder, Manifest.load(folder))

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

    def num_samples(self, split: SplitName) -> int:
        """Samples of a split."""
        return self.manifest.rows[split]

    def verify(self) -> None:
        """Compares every shard with the manifest.

        Raises:
            InvalidData: a shard is missing or was changed, or the store cannot be reached.
        """
        if damaged := self.manifest.damaged(self.folder):
            raise InvalidData(f"{', '.join(damaged)} in {self.place} missing or changed: {_REMEDY}")

    def batch(self, split: SplitName, indices: Tensor | NDArray[np.int64] | Sequence[int]) -> CachedBatch:
        """The samples at these positions of a split."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        every = self.samples(split)
        return CachedBatch(
            every.sample_ids[rows],
            every.images[rows],
            every.captions[rows],
            every.num_captions[rows],
            every.labels[rows],
        )

    def samples(self, split: SplitName) -> CachedBatch:
        """All samples of a split."""
        if split not in self._splits:
            self._splits[split] = self._load_split(split)
        return self._splits[split]

    def to_x0(self, stored: Tensor, seed: int = 0, numbers: Tensor | None = None) -> Data:
        """Stored rows as the data that is denoised; of latents a draw (`LatentFormat.draw`), or the mean."""
        if self.latents is None:
            return self.rows.to_x(stored)
        return self.latents.mean(stored) if numbers is None else self.latents.draw(stored, seed, numbers)

    @cached_property
    def captions(self) -> CachedCaptions:
        """All captions."""
        tables = list(self._read_ahead(self.manifest.paths("captions")))
        tokens = torch.cat([_tensor(table["tokens"]) for table in tables])
        return CachedCaptions(
            text=tuple(text for table in tables for text in table["caption"].to_pylist()),
            ids=tuple(key for table in tables for key in table["caption_id"].to_pylist()),
            tokens=tokens.view(torch.bfloat16) if self.manifest.dtype == "bfloat16" else tokens,
            mask=torch.cat([_lists(table["mask"]) for table in tables]),
            pooled=torch.cat([_lists(table["pooled"]) for table in tables]),
        )

    def caption_positions(self, captions: Sequence[str]) -> Tensor:
        """(len(captions),) positions of captions given as text.

        Raises:
            InvalidData: a caption that is not in the cache.
        """
        index = self.captions.index
        try:
            return torch.tensor([index[caption_id(self.manifest.encoder_key, text)] for text in captions])
        except KeyError:
            missing = [text for text in captions if caption_id(self.manifest.encoder_key, text) not in index]
            raise InvalidData(f"the caption {missing[0]!r} is not in the cache {self.folder}") from None

    def _load_split(self, split: SplitName) -> CachedBatch:
        paths = self.manifest.paths(f"{split}/images")
        table = pa.concat_tables(self._read_ahead(paths, ["sample_id", "caption_ids", "label"]))
        captions, num_captions = self._caption_table(table["caption_ids"])
        return CachedBatch(
            sample_ids=torch.tensor(table["sample_id"].to_numpy()),
            images=self._load_images(paths, self.num_samples(split)),
            captions=captions,
            num_captions=num_captions,
            labels=torch.tensor(table["label"].to_numpy()),
        )

    def _load_images(self, paths: Sequence[str], count: int) -> Tensor:
        """Fills one tensor shard by shard, so that few shards are in memory twice."""
        shape, dtype = (self.shape, self.rows.dtype) if self.latents is None else (self.latents.stored, np.float32)
        images = torch.from_numpy(np.empty((count, *shape), dtype))
        start = 0
        for table in self._read_ahead(paths, ["image"]):
            for chunk in table["image"].chunks:
                images[start : start + len(chunk)] = torch.from_numpy(np.array(chunk.to_numpy_ndarray()))
                start += len(chunk)
        return images

    def _caption_table(self, lists: Any) -> tuple[Tensor, Tensor]:
        counts = torch.tensor(pc.list_value_length(lists).to_numpy(), dtype=torch.int64)
        flat = pc.index_in(pc.list_flatten(lists), value_set=pa.array(self.captions.ids)).to_numpy()
        table = torch.full((len(counts), int(counts.max())), -1)
        columns = torch.arange(table.shape[1])[None] < counts[:, None]
        table[columns] = torch.tensor(flat, dtype=torch.int64)
        return table, counts

    def _read_ahead(self, paths: Sequence[str], columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The shards in order; the next ones are read by threads while one is used."""
        with ThreadPoolExecutor(_SHARDS_AHEAD) as pool:
            coming: deque[Future[pa.Table]] = deque()
            for path in paths:
                coming.append(pool.submit(self._read, path, columns))
                if len(coming) > _SHARDS_AHEAD:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()

    def _read(self, path: str, columns: list[str] | None = None) -> pa.Table:
        try:
            with self.place.open(path) as file:
                return pq.read_table(file, columns=columns, page_checksum_verification=True)
        except Exception as error:  # noqa: BLE001 - each kind of storage raises its own
            raise InvalidData(
                f"cannot read {self.place / path} ({reason(error)}): check access to it; if it is damaged, {_REMEDY}"
            ) from None


def _tensor(column: Any) -> Tensor:
    return torch.cat([torch.from_numpy(np.array(chunk.to_numpy_ndarray())) for chunk in column.chunks])


def _lists(column: Any) -> Tensor:
    width = column.type.list_size
    return torch.cat(
        [torch.from_numpy(np.array(chunk.flatten().to_numpy(zero_copy_only=False))) for chunk in column.chunks]
    ).view(-1, width)
