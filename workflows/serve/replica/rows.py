"""A resolved request as rows of the engine, and rows as checkpoints and pixels."""

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
from workflows.serve.engine.queued_request import RowState
from workflows.serve.request.messages import Checkpoint, InitImage, RowCheckpoint
from workflows.serve.request.resolve import ResolvedRequest
from workflows.towers.features import EncodedText


def start_rows(
    package: ModelPackage,
    resolved: ResolvedRequest,
    texts: Sequence[EncodedText],
    init_image: InitImage | None = None,
) -> list[Trajectory]:
    """Makes the rows of a request, one per seed, at their first step.

    Args:
        package: the model.
        resolved: the request.
        texts: the encoded `resolved.texts`, one row each.
        init_image: the picture that an edit starts from.
    """
    settings, condition = resolved.settings, make_condition(package, resolved, texts)
    plan = package.plan(settings.sampler, settings.num_inference_steps, settings.eta or 0.0)
    if init_image is not None:
        first_step = plan.num_steps - resolved.num_steps
        return [_start_edit(package, plan, condition, init_image, first_step, seed) for seed in settings.seeds]
    return [
        Trajectory.start(plan, condition, seed=seed, shape=package.shape, device=package.device)
        for seed in settings.seeds
    ]


def make_condition(package: ModelPackage, resolved: ResolvedRequest, texts: Sequence[EncodedText]) -> Condition:
    """Makes the condition that all rows of a request share, as one row."""
    settings = resolved.settings
    return steer(
        resolved.guidance,
        1,
        text=texts[0] if settings.prompt else None,
        labels=None if resolved.label is None else [resolved.label],
        negative=texts[1] if settings.negative_prompt else None,
        sees_labels=package.sees_labels,
    ).to(package.device)


def resume_rows(rows: Sequence[Trajectory], checkpoint: Checkpoint, device: torch.device) -> list[RowState]:
    """Moves rows to where another replica left them; rows that it finished become samples."""
    return [_resume_row(row, saved, device) for row, saved in zip(rows, checkpoint.rows, strict=True)]


def make_checkpoint(resolved: ResolvedRequest, rows: Sequence[RowState]) -> Checkpoint:
    """Copies the state of a request's rows to the CPU: two arrays of the model's shape per row."""
    num_steps = resolved.settings.num_inference_steps
    return Checkpoint(resolved, tuple(_row_checkpoint(row, num_steps) for row in rows))


def preview_pixels(package: ModelPackage, rows: Sequence[RowState]) -> NDArray[np.uint8]:
    """The predicted x0 of rows as pixels `(n, h, w, c)`; latents go through a linear map instead of the decoder."""
    return channels_last(package.previews(torch.stack([predicted_x0(row) for row in rows])))


def predicted_x0(row: RowState) -> Tensor:
    """The sample of a finished row; of an unfinished row the last predicted x0, or x before the first step."""
    if isinstance(row, Tensor):
        return row
    return row.x if row.x0 is None else row.x0


def channels_last(images: Tensor) -> NDArray[np.uint8]:
    """Images `(n, c, h, w)` as pixels `(n, h, w, c)`."""
    pixels: NDArray[np.uint8] = images.permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(pixels)


def _start_edit(
    package: ModelPackage, plan: SamplerPlan, condition: Condition, init_image: InitImage, first_step: int, seed: int
) -> Trajectory:
    pixels = torch.from_numpy(init_image.pixels).to(package.device).permute(2, 0, 1)
    x0 = package.codec.encode(to_data(pixels)[None])[0]
    row = Trajectory.start_from(plan, condition, x0, first_step, seed=seed)
    if init_image.keep is None:
        return row
    mask = package.codec.mask(torch.from_numpy(init_image.keep).to(x0)[None]).expand_as(x0)
    return replace(row, known=Known(x0, mask))


def _row_checkpoint(row: RowState, num_steps: int) -> RowCheckpoint:
    if isinstance(row, Tensor):
        return RowCheckpoint(num_steps, row.cpu().numpy(), None)
    return RowCheckpoint(row.index, row.x.cpu().numpy(), None if row.x0 is None else row.x0.cpu().numpy())


def _resume_row(row: Trajectory, saved: RowCheckpoint, device: torch.device) -> RowState:
    x = torch.from_numpy(saved.x.copy()).to(device)
    if saved.index >= row.plan.num_steps:
        return x
    x0 = None if saved.x0 is None else torch.from_numpy(saved.x0.copy()).to(device)
    return replace(row, index=saved.index, x=x, x0=x0)
