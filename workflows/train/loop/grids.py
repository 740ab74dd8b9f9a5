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
from workflows.train.objectives import DenoiserObjective, Objective
from workflows.train.parallel import unwrapped, whole

GRIDS: Final = "grids"
_PICTURES, _COLUMNS, _STEPS, _ZOOM = 16, 4, 20, 4
_CALLS_OF_A_STEP: Final = 3


def draw_grid(trainer: Trainer, folder: Path) -> None:
    """The first worker draws `grids/step-*.png`; all workers call it, and wait. Only of what is `drawable`."""
    if not drawable(trainer.objective):
        return
    objective = cast(DenoiserObjective, trainer.objective)
    network = unwrapped(trainer.network)
    weights = {name: whole(value) for name, value in trainer.ema.weights(network).items()}
    if trainer.share.rank == 0:
        pictures = draw(objective, weights, cast(CachedBatches, trainer.batches).captions, trainer.device)
        write_grid(pictures, folder / GRIDS / f"step-{trainer.steps_done:08d}.png")


def drawable(objective: Objective) -> bool:
    """Whether there are grids of it: it is a denoiser of pictures."""
    return isinstance(objective, DenoiserObjective) and rows_of(objective.config.shape).drawable


def steps_of_a_grid(trainer: Trainer) -> float:
    """How many training steps take as long as a grid: it calls the network forward, a step calls it three times."""
    rows = trainer.config.batch_size / trainer.share.size
    return _PICTURES * _STEPS / (_CALLS_OF_A_STEP * rows)


@torch.no_grad()
def draw(
    objective: DenoiserObjective, weights: dict[str, Tensor], captions: EncodedCaptions, device: torch.device
) -> Tensor:
    """Pictures in [-1, 1] of captions spread over all of them, seeds 0, 1, ..., on the CPU; drawn on the device."""
    with torch.random.fork_rng():
        network = objective.build()
    network.load_state_dict(weights)
    network.to(device)
    rows = torch.linspace(0, len(captions) - 1, _PICTURES).long()
    denoiser = NetworkDenoiser(network.eval(), objective.schedule, objective.parameterization)
    plan = ddim(objective.schedule, trailing(objective.schedule, min(_STEPS, objective.schedule.num_levels)))
    condition = Condition.of(*captions.take(rows)).to(device)
    shape = objective.config.shape
    x0 = sample(denoiser, plan, condition, seeds=range(_PICTURES), shape=shape, device=device).cpu()
    return x0 if objective.start is None else objective.start.pictures(x0)


def write_grid(pictures: Tensor, path: Path) -> None:
    """Rows of pictures, enlarged without smoothing; renamed into place, since the driver watches the folder."""
    from PIL import Image

    image = image_of(make_grid(to_pixels(pictures), _COLUMNS)[:3].numpy())
    with whole_file(path) as partial:
        partial.write_bytes(png_of(image.resize((image.width * _ZOOM, image.height * _ZOOM), Image.Resampling.NEAREST)))
