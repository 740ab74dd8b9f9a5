"""The service and its two rivals: the same model, text encoder and HTTP front; only the batching differs."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import torch
from ray import serve
from torch import Tensor

from diffusion_core.bundle import ModelBundle
from diffusion_core.networks import DiT, DiTConfig
from diffusion_core.row import Trajectory
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.trajectory import run
from tests.workflows.conftest import tiny_card, write_tiny_classifier, write_tiny_clip
from tests.workflows.serve.conftest import MODEL, free_port, make_config, register_package
from workflows.package.files import assemble
from workflows.serve.http.ingress import Ingress
from workflows.serve.replica.replica import Replica
from workflows.serve.replica.rows import preview_pixels, start_rows
from workflows.serve.replica.text_encoder import TextClient, TextEncoder
from workflows.serve.replica.versions import load_version
from workflows.serve.request.messages import SamplerRequest
from workflows.serve.request.pictures import Generated
from workflows.serve.request.resolve import resolve
from workflows.serve.request.schema import ModelCard
from workflows.serve.settings import ServeArgs

BATCH = 32
WAIT_SECONDS = 0.02
"""Of `@serve.batch`: with 0 it would begin with the first request of a crowd alone."""
_OPEN = 4096


def write_package(folder: Path) -> Path:
    """The digits' sizes (8x8, width 96, 3 blocks), random weights."""
    config = DiTConfig((1, 8, 8), patch=2, width=96, depth=3, num_heads=4, token_dim=16, pooled_dim=16)
    torch.manual_seed(0)
    weights = {name: torch.randn_like(value) * 0.05 for name, value in DiT(config).state_dict().items()}
    schedule = NoiseSchedule.cosine(1000)
    ModelBundle.save(
        folder / "denoiser", config, weights, schedule=schedule, parameterization="v", clip={"model": "tiny"}
    )
    write_tiny_classifier(folder / "classifier", num_levels=1000)
    parts = {"denoiser": folder / "denoiser", "classifier": folder / "classifier"}
    assemble(folder / "package", tiny_card(), clip=write_tiny_clip(folder / "clip"), **parts)
    return folder / "package"


class Lockstep(ABC):
    """Stands where `Replica` stands, with rows that begin together and end together."""

    def __init__(self, args: ServeArgs, text_encoder: Any) -> None:
        self._texts, self._version = TextClient(text_encoder), load_version(args, args.model)

    async def model_card(self) -> ModelCard:
        """As `Replica.model_card`."""
        return self._version.model_card()

    async def cancel(self, request_id: str) -> None:  # noqa: B027 -- there is nothing to do
        """A row cannot leave its batch."""

    async def generate(self, request: SamplerRequest) -> AsyncGenerator[Generated, None]:
        """As `Replica.generate`, without checkpoints and previews."""
        package = self._version.package
        resolved = resolve(request.body, self._version.capabilities)
        texts = await self._texts.encode(self._version.reference, resolved.texts)
        sample = await self.make(start_rows(package, resolved, texts)[0])
        pixels = preview_pixels(package, [sample])
        yield Generated(resolved.settings, pixels, resolved.settings.num_inference_steps)

    @abstractmethod
    async def make(self, row: Trajectory) -> Tensor:
        """The sample of one row."""

    def run(self, rows: Sequence[Trajectory]) -> list[Tensor]:
        """Rows from start to end; those that are done take no more time, but wait for the others."""
        return list(run(self._version.package.denoiser, rows))


class Batched(Lockstep):
    """Behind `@serve.batch`."""

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_SECONDS)
    async def make(self, rows: list[Trajectory]) -> list[Tensor]:  # type: ignore[override]
        """See `Lockstep.make`."""
        return await asyncio.to_thread(self.run, rows)


class Single(Lockstep):
    """One request at a time."""

    def __init__(self, args: ServeArgs, text_encoder: Any) -> None:
        super().__init__(args, text_encoder)
        self._turn = asyncio.Lock()

    async def make(self, row: Trajectory) -> Tensor:
        """See `Lockstep.make`."""
        async with self._turn:
            return (await asyncio.to_thread(self.run, [row]))[0]


ARMS: dict[str, type] = {"ours": Replica, "batch": Batched, "single": Single}


def deploy(folder: Path) -> dict[str, str]:
    """Starts the arms, and says where each answers."""
    package, config = write_package(folder / "model"), make_config(folder / "registry")
    register_package(config, package)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    args = ServeArgs(
        model=f"{MODEL}@champion",
        tracking_uri=f"sqlite:///{config.root_folder / 'mlflow.db'}",
        max_rows=BATCH,
        max_waiting_rows=_OPEN,
        max_waiting_seconds=86400.0,
    )
    for name, kind in ARMS.items():
        serve.run(_application(kind, args), name=name, route_prefix=f"/{name}")
    return {name: f"http://127.0.0.1:{port}/{name}/v1/images/generations" for name in ARMS}


def _application(kind: type, args: ServeArgs) -> serve.Application:
    waits: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}, "max_ongoing_requests": _OPEN}
    text = serve.deployment(TextEncoder, name="text-encoder", **waits).bind(args)
    sampler = serve.deployment(kind, name="sampler", max_ongoing_requests=_OPEN).bind(args, text)
    return serve.deployment(serve.ingress()(Ingress), name="ingress", **waits).bind({MODEL: sampler}, args)
