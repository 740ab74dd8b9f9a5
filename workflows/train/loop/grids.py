"""Grids of pictures of the averaged weights, with the same captions and seeds every time."""

from __future__ import annotations

from pathlib import Path
from typing import Final, cast

import torch
from torch import Tensor
from torchvision.utils import make_grid

from diffusion_core.condition import Condition
from diffusion_core.denoiser import NetworkDenoiser
from diffusion_core.sampler import ddim
from diffusion_core.spacing import trailing
from diffusion_core.trajectory import sample
from workflows.data.pixels import to_pixels
from workflows.data.png import image_of, png_of
from workflows.data.rows import rows_of
from workflows.embed.cached_captions import EncodedCaptions
from workflows.storage.atomic import whole_file
from workflows.train.batches import CachedBatches
from workflows.train.loop.trainer import Trainer
from workflows.train.objectives import DenoiserObjective
from workflows.train.parallel import unwrapped, whole

GRIDS: Final = "grids"
_PICTURES, _COLUMNS, _STEPS, _ZOOM = 16, 4, 20, 4


def draw_grid(trainer: Trainer, folder: Path) -> None:
    """The first worker draws `grids/step-*.png`; all workers call it, and wait. Only for denoisers of pictures."""
    objective = trainer.objective
    if not isinstance(objective, DenoiserObjective) or not rows_of(objective.config.shape).drawable:
        return
    network = unwrapped(trainer.network)
    weights = {name: whole(value).cpu() for name, value in trainer.ema.weights(network).items()}
    if trainer.share.rank == 0:
        pictures = draw(objective, weights, cast(CachedBatches, trainer.batches).captions)
        write_grid(pictures, folder / GRIDS / f"step-{trainer.steps_done:08d}.png")


@torch.no_grad()
def draw(objective: DenoiserObjective, weights: dict[str, Tensor], captions: EncodedCaptions) -> Tensor:
    """Pictures in [-1, 1] of captions spread over all of them, seeds 0, 1, ..., on the CPU."""
    with torch.random.fork_rng():
        network = objective.build()
    network.load_state_dict(weights)
    rows = torch.linspace(0, len(captions) - 1, _PICTURES).long()
    denoiser = NetworkDenoiser(network.eval(), objective.schedule, objective.parameterization)
    plan = ddim(objective.schedule, trailing(objective.schedule, min(_STEPS, objective.schedule.num_levels)))
    condition = Condition.of(*captions.take(rows))
    x0 = sample(denoiser, plan, condition, seeds=range(_PICTURES), shape=objective.config.shape)
    return x0 if objective.start is None else objective.start.pictures(x0)


def write_grid(pictures: Tensor, path: Path) -> None:
    """Rows of pictures, enlarged without smoothing; renamed into place, since the driver watches the folder."""
    from PIL import Image

    image = image_of(make_grid(to_pixels(pictures), _COLUMNS)[:3].numpy())
    with whole_file(path) as partial:
        partial.write_bytes(png_of(image.resize((image.width * _ZOOM, image.height * _ZOOM), Image.Resampling.NEAREST)))
