"""Orders as rows of the engine, and rows as pictures: also edits, and rows that another replica began."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_core.condition import Condition
from diffusion_core.row import Known, Trajectory
from diffusion_core.sampler import SamplerPlan
from workflows.data.pixels import to_data
from workflows.model.guidance import steer
from workflows.model.model import ModelPackage
from workflows.serve.replica.jobs import RowState
from workflows.serve.request.messages import Kept, KeptRow, Source
from workflows.serve.request.resolve import Order, steps_made
from workflows.towers.features import EncodedText


def trajectories(
    package: ModelPackage, order: Order, texts: Sequence[EncodedText], source: Source | None = None
) -> list[Trajectory]:
    """The rows of an order, one per seed.

    Args:
        package: the model.
        order: what to make.
        texts: the encoded `order.texts`.
        source: what an edit starts from.
    """
    settings, condition = order.settings, condition_of(package, order, texts)
    plan = package.plan(settings.sampler, settings.num_inference_steps, settings.eta or 0.0)
    if source is not None:
        start = plan.num_steps - steps_made(settings)
        return [_edited(package, plan, condition, source, start, seed) for seed in settings.seeds]
    return [
        Trajectory.start(plan, condition, seed=seed, shape=package.shape, device=package.device)
        for seed in settings.seeds
    ]


def condition_of(package: ModelPackage, order: Order, texts: Sequence[EncodedText]) -> Condition:
    """What the rows of an order show, one row."""
    settings = order.settings
    return steer(
        settings.guidance,
        1,
        text=texts[0] if settings.prompt else None,
        labels=None if order.label is None else [order.label],
        negative=texts[1] if settings.negative_prompt else None,
        guidance_scale=settings.guidance_scale,
        classifier_scale=settings.guidance_scale,
        clip_scale=settings.guidance_scale,
        sees_labels=package.sees_labels,
    ).to(package.device)


def resumed(rows: Sequence[Trajectory], kept: Kept, device: torch.device) -> list[RowState]:
    """The same rows where another replica left them; those that it finished are samples already."""
    return [_resume(row, state, device) for row, state in zip(rows, kept.rows, strict=True)]


def keep(order: Order, states: Sequence[RowState]) -> Kept:
    """What has to be kept of an order on its way."""
    steps = order.settings.num_inference_steps
    return Kept(order.settings, order.label, tuple(_keep(state, steps) for state in states))


def previews_of(package: ModelPackage, states: Sequence[RowState]) -> NDArray[np.uint8]:
    """What rows on their way predict, as pixels (n, h, w, c); of latents a quick guess."""
    return channels_last(package.previews(torch.stack([seen(state) for state in states])))


def seen(state: RowState) -> Tensor:
    """A sample, or what a row on its way predicts."""
    if isinstance(state, Tensor):
        return state
    return state.x if state.x0 is None else state.x0


def channels_last(images: Tensor) -> NDArray[np.uint8]:
    """Images (n, c, h, w) as pixels (n, h, w, c)."""
    pixels: NDArray[np.uint8] = images.permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(pixels)


def _edited(
    package: ModelPackage, plan: SamplerPlan, condition: Condition, source: Source, start: int, seed: int
) -> Trajectory:
    pixels = torch.from_numpy(source.pixels).to(package.device).permute(2, 0, 1)
    x0 = package.codec.encode(to_data(pixels)[None])[0]
    row = Trajectory.start_from(plan, condition, x0, start, seed=seed)
    if source.keep is None:
        return row
    mask = package.codec.mask(torch.from_numpy(source.keep).to(x0)[None]).expand_as(x0)
    return replace(row, known=Known(x0, mask))


def _keep(state: RowState, steps: int) -> KeptRow:
    if isinstance(state, Tensor):
        return KeptRow(steps, state.cpu().numpy(), None)
    return KeptRow(state.index, state.x.cpu().numpy(), None if state.x0 is None else state.x0.cpu().numpy())


def _resume(row: Trajectory, kept: KeptRow, device: torch.device) -> RowState:
    x = torch.from_numpy(kept.x.copy()).to(device)
    if kept.index >= row.plan.num_steps:
        return x
    x0 = None if kept.x0 is None else torch.from_numpy(kept.x0.copy()).to(device)
    return replace(row, index=kept.index, x=x, x0=x0)
