"""An embedding cache of random rows, written directly: no towers, no Ray."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.nn import functional

from workflows.data.dataset import Split
from workflows.embed.captions import caption_table
from workflows.embed.checksums import sample_checks
from workflows.embed.images import image_table
from workflows.embed.manifest import Manifest
from workflows.storage.mapped import hashed_path
from workflows.storage.shards import Shard
from workflows.towers.features import EncodedText
from workflows.towers.latent_format import LatentFormat

SHARD_BYTES = 64 << 20
POSITIONS, KEPT, POOLED = 77, 14, 64


@final
@dataclass(frozen=True)
class Rows:
    """A synthetic row holds a latent (z, side, side) with its deviation, and a caption of its own."""

    width: int
    side: int
    channels: int = 4

    @property
    def latents(self) -> LatentFormat:
        """How images are stored."""
        return LatentFormat("random", (self.channels, self.side, self.side))

    @property
    def caption_bytes(self) -> int:
        """The tokens of a caption take so many bytes in bfloat16."""
        return KEPT * self.width * 2


def write(folder: Path, count: int, rows: Rows) -> Path:
    """Writes a cache of `count` training samples with one caption each, and one held-out sample.

    The images and tokens of all shards are the same random numbers; ids and positions are each row's own. So writing
    costs what the disk costs, and no page of one shard is a page of another.
    """
    size = max(1, SHARD_BYTES // rows.latents.row_bytes)
    captions = max(1, SHARD_BYTES // (POSITIONS * rows.width * 4))
    images, texts = _images(size, rows), _captions(captions, rows)
    shards = [
        _put(folder, f"train/images/shard-{number:06d}.arrow", _numbered(images, start, min(start + size, count)))
        for number, start in enumerate(range(0, count, size))
    ]
    shards.append(_put(folder, "held_out/images/shard-000000.arrow", _numbered(images, 0, 1)))
    for number, start in enumerate(range(0, count, captions)):
        shards.append(_put(folder, f"captions/shard-{number:06d}.arrow", texts[: min(captions, count - start)]))
    clip = {"model": "random", "context_length": POSITIONS, "width": rows.width, "embed_dim": POOLED}
    numbers = {"train": count, "held_out": 1, "captions": count}
    Manifest(
        "synthetic", "encoder", "data", clip, "bfloat16", rows.latents.shape, numbers,
        {"images": size, "captions": captions}, tuple(shards), rows.latents.describe(),
    ).save(folder)  # fmt: skip
    return folder


def _images(size: int, rows: Rows) -> pa.Table:
    stored = np.random.default_rng(0).standard_normal((size, *rows.latents.stored), np.float32)
    blank = Split(
        np.arange(size), np.zeros((size, 1), np.uint8), (("x",),) * size, np.zeros(size, np.int64), ((),) * size,
        np.zeros(size, np.bool_),
    )  # fmt: skip
    return image_table(blank, np.zeros(size, np.int32), stored)


def _captions(size: int, rows: Rows) -> pa.Table:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(size, POSITIONS, rows.width, generator=generator)
    mask = (torch.arange(POSITIONS) < KEPT).expand(size, -1)
    pooled = functional.normalize(torch.randn(size, POOLED, generator=generator), dim=1)
    encoded = EncodedText(tokens * mask[..., None], mask, pooled)
    return caption_table([bytes(16)] * size, ["x"] * size, encoded, "bfloat16")


def _numbered(images: pa.Table, start: int, stop: int) -> pa.Table:
    """The rows of a shard that begins with sample `start`, whose caption has the same number."""
    numbers: NDArray[np.int64] = np.arange(start, stop)
    table, positions = images[: stop - start], numbers.astype(np.int32)
    lists = pa.ListArray.from_arrays(np.arange(len(numbers) + 1, dtype=np.int32), pa.array(positions))
    checks = sample_checks(numbers, np.zeros_like(numbers), positions[:, None])
    for name, column in (("sample_id", pa.array(numbers)), ("captions", lists), ("check", pa.array(checks))):
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def _put(folder: Path, path: str, table: pa.Table) -> Shard:
    sha256 = uuid.uuid4().hex * 2  # local shards are checked row by row
    target = folder / hashed_path(path, sha256)
    target.parent.mkdir(parents=True, exist_ok=True)
    table = table.combine_chunks()
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return Shard(str(target.relative_to(folder)), table.num_rows, sha256)
