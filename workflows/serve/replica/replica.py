"""The sampler deployment: a replica denoises the rows of many requests together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, final

from cachetools import LRUCache
from ray.serve.handle import DeploymentHandle
from torch import Tensor

from diffusion_core.errors import RaverseError
from workflows.errors import ModelNotFound
from workflows.serve.engine.load import EngineLoad
from workflows.serve.engine.queued_request import UNBOUNDED, RowState, Update
from workflows.serve.replica.autoscaling import QUEUED_SECONDS
from workflows.serve.replica.metrics import ReplicaMetrics
from workflows.serve.replica.rows import make_checkpoint, preview_pixels, resume_rows, start_rows
from workflows.serve.replica.text_encoder import TextClient
from workflows.serve.replica.versions import LoadedVersion, LoadedVersions
from workflows.serve.request.messages import Checkpoint, Refusal, SamplerRequest
from workflows.serve.request.pictures import Generated
from workflows.serve.request.resolve import ResolvedRequest, preview_points, resolve
from workflows.serve.request.schema import ModelCard
from workflows.serve.settings import ServeArgs, UserConfig

_LOG: Final = logging.getLogger("ray.serve")
_CANCELLED_IDS: Final = 4096
_METRICS_SECONDS: Final = 1.0


@final
class Replica:
    """Serves one model: each network call makes one step of the rows of many requests.

    It remembers the ids of the last 4096 cancelled requests, in less than 2 MB.

    Args:
        args: the model, and the limits of the replica.
        text_encoder: handle of the text encoder deployment.
    """

    def __init__(self, args: ServeArgs, text_encoder: DeploymentHandle[Any]) -> None:
        self._args, self._texts = args, TextClient(text_encoder)
        self._versions = LoadedVersions(args)
        self._cancelled: LRUCache[str, None] = LRUCache(_CANCELLED_IDS)
        self._metrics = ReplicaMetrics(self._versions.current.capabilities.model)
        self._background: list[asyncio.Task[None]] = []

    async def generate(self, request: SamplerRequest) -> AsyncGenerator[Checkpoint | Generated | Refusal, None]:
        """Generates the pictures of a request; yields checkpoints, previews, and at last the finished pictures.

        A request that cannot be served ends with a `Refusal` instead:

            InvalidRequest: the model cannot serve the request.
            ModelNotFound: the request names another model, or a version that is not there.
            Overloaded: too much waits.
            DeadlineExceeded: the pictures were not done by the request's deadline.
            NonFinite: the model gave no finite picture.
            EngineStopped: the engine has ended; another replica can continue.
        """
        try:
            async with aclosing(self._generate(request)) as messages:
                async for message in messages:
                    yield message
        except RaverseError as error:
            yield Refusal(error)

    async def _generate(self, request: SamplerRequest) -> AsyncGenerator[Checkpoint | Generated, None]:
        self._start_background()
        version = await self._versions.choose(request)
        resolved = await asyncio.to_thread(_count_tokens, _resolve(request, version), version)
        rows = await self._make_rows(request, resolved, version)
        reports = version.engine.follow(
            rows,
            request_id=request.request_id,
            preview_points=preview_points(request.body, resolved.num_steps),
            checkpoint_seconds=self._args.keep_seconds,
            deadline_seconds=request.body.deadline_seconds or UNBOUNDED,
        )
        async with aclosing(reports):
            async for progress in reports:
                if progress.preview_due:
                    yield _preview(version, resolved, progress)
                if not progress.done:
                    yield make_checkpoint(resolved, progress.rows)
                else:
                    pixels = await version.decoder.decode(progress.rows)
                    yield Generated(resolved.settings, pixels, resolved.settings.num_inference_steps)

    async def cancel(self, request_id: str) -> None:
        """Drops the rows of a request whose client has left.

        The front sends this to every replica, since Ray Serve's own cancellation can get lost.
        """
        self._cancelled[request_id] = None
        for version in self._versions.loaded:
            version.engine.cancel(request_id)

    async def model_card(self, alias: str | None = None) -> ModelCard | Refusal:
        """Describes the version that new requests get, or the one of an alias."""
        try:
            return (await self._versions.of_alias(alias)).model_card()
        except ModelNotFound as error:
            return Refusal(error)

    async def load(self) -> EngineLoad:
        """The load of the version that new requests get."""
        return self._versions.current.engine.load

    async def refresh(self) -> None:
        """Loads the versions to which the aliases point now; a replica does this every `poll_seconds`."""
        await self._versions.refresh()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Applies a changed `user_config`; a new version is loaded in the background.

        Raises:
            InvalidConfig: an unknown key, or a value out of range.
        """
        config = UserConfig.read(user_config)
        if config.challenger_share is not None:
            self._versions.challenger_share = config.challenger_share
        if config.model is not None:
            self._background.append(asyncio.create_task(self._versions.refresh(config.model)))

    async def check_health(self) -> None:
        """Fails once an engine has ended; Ray Serve calls this from time to time, and then replaces the replica."""
        self._start_background()
        for version in self._versions.loaded:
            version.engine.check()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The seconds of denoising that wait, for `workflows.serve.replica.autoscaling`."""
        return {QUEUED_SECONDS: sum(version.engine.load.queued_seconds for version in self._versions.loaded)}

    def stop(self) -> None:
        """Ends the engines."""
        for version in self._versions.loaded:
            version.engine.stop()

    async def _make_rows(
        self, request: SamplerRequest, resolved: ResolvedRequest, version: LoadedVersion
    ) -> list[RowState]:
        """Makes the rows of a request, at their start or at the request's checkpoint."""
        texts = await self._texts.encode(version.reference, resolved.texts)
        # The cancellation may arrive before the request.
        if request.request_id in self._cancelled:
            raise asyncio.CancelledError
        rows = start_rows(version.package, resolved, texts, request.init_image)
        if request.checkpoint is None:
            return list(rows)
        return resume_rows(rows, request.checkpoint, version.package.device)

    def _start_background(self) -> None:
        self._background = [task for task in self._background if not task.done()]
        if not self._background:
            self._background.append(asyncio.create_task(self._record_metrics()))
            if self._args.poll_seconds > 0:
                self._background.append(asyncio.create_task(self._poll()))

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._args.poll_seconds)
            try:
                await self._versions.refresh()
            except RaverseError as error:
                # Without the registry, the loaded versions go on serving.
                _LOG.warning("cannot look for a new version: %s", error)

    async def _record_metrics(self) -> None:
        while True:
            await asyncio.sleep(_METRICS_SECONDS)
            self._metrics.record(self._versions.loaded)


def _resolve(request: SamplerRequest, version: LoadedVersion) -> ResolvedRequest:
    if request.checkpoint is not None:
        return request.checkpoint.resolved
    inpainted = request.init_image is not None and request.init_image.keep is not None
    return resolve(request.body, version.capabilities, inpainted=inpainted)


def _count_tokens(resolved: ResolvedRequest, version: LoadedVersion) -> ResolvedRequest:
    """Says in the settings how much of its texts the model does not read."""
    settings = resolved.settings
    cut = {
        f"{name}_tokens_cut": version.package.tokens_cut(text)
        for name, text in (("prompt", settings.prompt), ("negative_prompt", settings.negative_prompt))
        if text
    }
    update = {name: number for name, number in cut.items() if number}
    return replace(resolved, settings=settings.model_copy(update=update)) if update else resolved


def _preview(version: LoadedVersion, resolved: ResolvedRequest, progress: Update) -> Generated:
    num_left = max(row.remaining for row in progress.rows if not isinstance(row, Tensor))
    pixels = preview_pixels(version.package, progress.rows)
    return Generated(resolved.settings, pixels, resolved.settings.num_inference_steps - num_left)
