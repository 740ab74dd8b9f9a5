"""Power-function averages, stored while training runs, from which an average of any width is put together later.

ema/step-00000500-width-0.05.safetensors

weights = reconstruct(folder, sigma_rel=0.07)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion_core.ema import reconstruction
from workflows.errors import MissingArtifact
from workflows.storage.atomic import whole_file
from workflows.train.loop.trainer import Trainer
from workflows.train.parallel import whole

SNAPSHOTS: Final = "ema"
_NAME: Final = re.compile(r"step-(\d+)-width-([0-9.e-]+)\.safetensors")


@final
@dataclass(frozen=True)
class Snapshot:
    """A stored average: after which update, of which relative width, in which file."""

    update: int
    width: float
    path: Path


def write_snapshots(trainer: Trainer, folder: Path) -> None:
    """Gathers each power-function average; the first worker writes it. Every worker must call it."""
    for width, average in trainer.powers.items():
        tensors = {name: whole(value).contiguous().cpu() for name, value in average.averages.items()}
        if trainer.share.rank == 0:
            name = f"step-{average.num_updates:08d}-width-{width:g}.safetensors"
            with whole_file(folder / SNAPSHOTS / name) as partial:
                save_file(tensors, partial)


def list_snapshots(folder: Path) -> list[Snapshot]:
    """All stored averages of a training stage's folder, oldest first."""
    found = [(_NAME.fullmatch(path.name), path) for path in sorted((folder / SNAPSHOTS).glob("*.safetensors"))]
    return [Snapshot(int(match[1]), float(match[2]), path) for match, path in found if match is not None]


def reconstruct(folder: Path, sigma_rel: float, update: int | None = None) -> dict[str, Tensor]:
    """The parameters' average of any relative width, as near as the snapshots come.

    Args:
        folder: of a training stage.
        sigma_rel: the wanted width, in (0, 0.28].
        update: where the average ends; None: at the last snapshot.

    Raises:
        MissingArtifact: no snapshots up to there.
        InvalidShape: a width out of range.
    """
    end = update if update is not None else max((one.update for one in list_snapshots(folder)), default=0)
    snapshots = [one for one in list_snapshots(folder) if one.update <= end]
    if not snapshots:
        raise MissingArtifact(
            f"no snapshots of power-function averages in {folder / SNAPSHOTS} up to update {end}: "
            f"train with ema_widths and snapshot_every set"
        )
    return _weighted(snapshots, reconstruction([(one.update, one.width) for one in snapshots], end, sigma_rel))


def _weighted(snapshots: Sequence[Snapshot], factors: Sequence[float]) -> dict[str, Tensor]:
    """Adds up one file at a time: only the sum and one snapshot are in memory."""
    total: dict[str, Tensor] = {}
    for snapshot, factor in zip(snapshots, factors, strict=True):
        for name, value in load_file(snapshot.path).items():
            total[name] = total.get(name, torch.zeros_like(value, dtype=torch.float64)) + factor * value.double()
    return {name: value.float() for name, value in total.items()}
