"""Draws what a `DrawRequest` asks for, in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import torch
from torch import Tensor

from diffusion_core.condition import Condition
from diffusion_core.errors import NonFinite
from diffusion_core.row import Trajectory
from diffusion_core.sampler import SamplerPlan
from diffusion_core.strength import DEFAULT_STRENGTH
from diffusion_core.trajectory import image_to_image, inpaint, invert, run
from diffusion_core.types import Data
from workflows.draw.files import read_mask, read_picture
from workflows.draw.request import DrawRequest
from workflows.model.model import ModelPackage

_REFINEMENTS: Final = 3


@final
@dataclass(frozen=True)
class Drawing:
    """What was drawn.

    Attributes:
        images: (n, c, h, w) uint8.
        frames: the predicted x0 after each step, (steps, n, c, h, w) uint8.
        seeds: of the pictures.
    """

    images: Tensor
    frames: Tensor
    seeds: tuple[int, ...]


def draw(package: ModelPackage, request: DrawRequest, on_step: Callable[[int], None] | None = None) -> Drawing:
    """Draws the pictures of a request.

    Args:
        package: the model.
        request: what is asked.
        on_step: told the number of finished steps.

    Raises:
        InvalidRequest: fields that do not fit together, or a picture that cannot be read; names the field.
        InvalidPlan: a strength outside (0, 1].
        NonFinite: the model gives no number.
    """
    condition = _condition(package, request, request.prompt)
    plan = package.plan(request.sampler, request.steps, request.eta)
    seeds = tuple(request.seed + row for row in range(request.num))
    frames: list[Tensor] = []

    def keep(step: int, x0: Data) -> None:
        frames.append(package.previews(x0))
        if on_step is not None:
            on_step(step + 1)

    x = _sampled(package, request, condition, plan, seeds, keep)
    if not bool(torch.isfinite(x).all()):
        raise NonFinite(f"the model draws no finite picture for {request.prompt!r}: train it longer")
    return Drawing(package.drawn(x), torch.stack(frames), seeds)


def _sampled(
    package: ModelPackage,
    request: DrawRequest,
    condition: Condition,
    plan: SamplerPlan,
    seeds: tuple[int, ...],
    on_step: Callable[[int, Data], None],
) -> Data:
    denoiser = package.denoiser
    if request.invert is not None:
        given = _given(package, request.invert, "invert", 1)
        shown = condition if request.invert_prompt is None else _condition(package, request, request.invert_prompt)
        latent = invert(denoiser, plan, given, shown, refinements=_REFINEMENTS)
        return run(denoiser, [Trajectory.start_at(plan, condition, latent[0], seed=seeds[0])], on_step)
    if request.init is None:
        return package.sample(condition, seeds=seeds, plan=plan, on_step=on_step)
    given = _given(package, request.init, "init", request.num)
    if request.mask is not None:
        kept = package.codec.mask(1.0 - read_mask(request.mask, package.rows.shape).to(package.device))
        return inpaint(denoiser, plan, condition, given, kept, seeds=seeds, on_step=on_step)
    strength = DEFAULT_STRENGTH if request.strength is None else request.strength
    return image_to_image(denoiser, plan, condition, given, strength=strength, seeds=seeds, on_step=on_step)


def _given(package: ModelPackage, path: Path, param: str, count: int) -> Data:
    picture = read_picture(path, package.rows.shape, param).to(package.device)
    row = package.codec.encode(picture[None])[0]
    return row.expand(count, *row.shape)


def _condition(package: ModelPackage, request: DrawRequest, prompt: str) -> Condition:
    return package.condition(
        request.num if request.guidance.kinds == ("none",) else [prompt] * request.num,
        request.guidance,
        negative_prompts=None if request.negative is None else [request.negative] * request.num,
    )
