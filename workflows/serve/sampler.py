"""The sampler deployment: one model, one `StepEngine` on its own thread, an asyncio front."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from ray.serve.handle import DeploymentHandle
from torch import Tensor

from diffusion_core.engine import StepEngine
from diffusion_core.trajectory import Trajectory
from workflows.embed.clip import EncodedText
from workflows.model import ModelPackage
from workflows.model_reference import resolve
from workflows.serve.engine_thread import EngineThread, Load
from workflows.serve.order import Menu, Order, take_order
from workflows.serve.pictures import Generated
from workflows.serve.schema import GenerationRequest, ModelCard
from workflows.serve.settings import ServeArgs
from workflows.steering import steer

_EXAMPLES: Final = 8


@final
@dataclass(frozen=True)
class Served:
    """One loaded version: what a swap replaces as a whole."""

    menu: Menu
    loaded: int
    package: ModelPackage
    engine: EngineThread


@final
class Sampler:
    """Makes pictures for many requests at once, one step of each per network call."""

    def __init__(self, args: ServeArgs, text_encoder: DeploymentHandle[Any]) -> None:
        self._text_encoder = text_encoder
        self._served = load_served(args)

    async def generate(self, request: GenerationRequest) -> Generated:
        """Carries out a request with the version that is loaded when it arrives.

        Raises:
            InvalidRequest: the loaded model cannot do what is asked.
            ModelNotFound: another model is asked for.
            Overloaded: too many pictures wait.
            NonFinite: the model gave no finite picture.
        """
        served = self._served
        order = take_order(request, served.menu)
        texts = await self._encode(served.menu, order)
        rows = trajectories(served.package, order, texts)
        samples = await served.engine.sample(rows)
        return Generated(order.settings, pixels_of(samples))

    async def card(self) -> ModelCard:
        """Describes the loaded version."""
        return card_of(self._served)

    async def load(self) -> Load:
        """What this replica has to do."""
        return self._served.engine.load

    async def check_health(self) -> None:
        """Called by Serve from time to time; an error has the replica replaced."""
        self._served.engine.check()

    async def _encode(self, menu: Menu, order: Order) -> list[EncodedText]:
        version = f"{menu.model}/{menu.version}"
        calls = [self._text_encoder.encode.remote(version, text) for text in order.texts]
        return list(await asyncio.gather(*calls))


def load_served(args: ServeArgs) -> Served:
    """Loads the model that the registry names, and has it denoise at every batch size once.

    Raises:
        ModelNotFound: the registry knows no such model, version or alias.
        TrackingUnreachable: the registry does not answer.
        InvalidBundle: the model's folder is broken.
    """
    found, buckets = resolve(args.tracking_uri, args.model), buckets_of(args.max_rows)
    package = ModelPackage.load(found.folder, device_of(args.device), buckets=buckets)
    _, height, width = package.shape
    longest = min(args.max_steps, package.schedule.num_levels)
    defaults = package.defaults
    menu = Menu(
        model=found.version.name,
        version=found.version.version,
        size=(width, height),
        class_names=package.class_names,
        scales={
            "classifier_free": defaults.guidance_scale,
            "classifier": defaults.classifier_scale,
            "clip": defaults.clip_scale,
        },
        num_steps=min(args.num_steps, longest),
        max_steps=longest,
    )
    warm(package, buckets)
    engine = StepEngine(package.denoiser, package.shape, max_rows=args.max_rows)
    return Served(menu, int(time.time()), package, EngineThread(engine, args.max_waiting_rows))


def device_of(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` stands for."""
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def buckets_of(max_rows: int) -> tuple[int, ...]:
    """Batch sizes that the network sees: powers of two, up to room for each row and its negative."""
    return tuple(2**power for power in range((2 * max_rows - 1).bit_length() + 1))


def warm(package: ModelPackage, buckets: Sequence[int]) -> None:
    """Has the network compute every batch size, and every kind of guidance, before the first client waits for it."""
    prompt = package.card.candidate_captions[0]
    sizes = [(rows, "direct") for rows in buckets] + [(1, kind) for kind in ("classifier_free", "classifier", "clip")]
    for rows, guidance in sizes:
        condition = package.condition([prompt] * rows, guidance)
        package.sample(condition, seeds=list(range(rows)), plan=package.plan("ddim", 1))


def trajectories(package: ModelPackage, order: Order, texts: Sequence[EncodedText]) -> list[Trajectory]:
    """The rows of an order, one per seed.

    Args:
        package: the model.
        order: what to make.
        texts: the encoded `order.texts`.
    """
    settings = order.settings
    condition = steer(
        settings.guidance,
        1,
        text=texts[0] if settings.prompt else None,
        labels=None if order.label is None else [order.label],
        negative=texts[1] if settings.negative_prompt else None,
        guidance_scale=settings.guidance_scale,
        classifier_scale=settings.guidance_scale,
        clip_scale=settings.guidance_scale,
    ).to(package.device)
    plan = package.plan(settings.sampler, settings.num_inference_steps, settings.eta or 0.0)
    return [
        Trajectory.start(plan, condition, seed=seed, shape=package.shape, device=package.device)
        for seed in settings.seeds
    ]


def pixels_of(samples: Sequence[Tensor]) -> NDArray[np.uint8]:
    """Samples (c, h, w) in [-1, 1] as pixels (n, h, w, c)."""
    pixels: NDArray[np.uint8] = ModelPackage.to_images(torch.stack(list(samples))).permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(pixels)


def card_of(served: Served) -> ModelCard:
    """What `GET /v1/models` says of a loaded version."""
    menu = served.menu
    return ModelCard(
        id=menu.model,
        created=served.loaded,
        version=menu.version,
        sizes=[menu.size_text],
        classes=list(menu.class_names),
        guidance=menu.guidance,
        example_prompts=list(served.package.card.candidate_captions[:_EXAMPLES]),
        default_steps=menu.num_steps,
        max_steps=menu.max_steps,
    )
