"""The sampler deployment: the versions of one model, each with a `StepEngine` on its own thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, final

from cachetools import LRUCache
from ray.serve.handle import DeploymentHandle
from torch import Tensor

from diffusion_core.errors import RaverseError
from diffusion_core.row import Trajectory
from workflows.serve.replica.autoscaling import QUEUED_SECONDS
from workflows.serve.replica.jobs import UNBOUNDED, Load, News, Report, RowState
from workflows.serve.replica.metrics import SamplerMetrics
from workflows.serve.replica.rows import keep, previews_of, resumed, trajectories
from workflows.serve.replica.text_encoder import TextClient
from workflows.serve.replica.versions import Served, Versions
from workflows.serve.request.messages import Call, Event, Preview
from workflows.serve.request.pictures import Generated
from workflows.serve.request.resolve import Menu, Order, preview_marks, steps_made, take_order
from workflows.serve.request.schema import ModelCard
from workflows.serve.settings import ServeArgs, UserConfig
from workflows.towers.features import EncodedText

_LOG: Final = logging.getLogger("ray.serve")
_EXAMPLES: Final = 8
_LEFT: Final = 4096
_METRICS_SECONDS: Final = 1.0


@final
class Sampler:
    """Makes pictures for many requests at once, one step of each per network call.

    It remembers the ids of the last 4096 requests whose clients have left, in less than 2 MB.
    """

    def __init__(self, args: ServeArgs, text_encoder: DeploymentHandle[Any]) -> None:
        self._args, self._texts = args, TextClient(text_encoder)
        self._versions = Versions(args)
        self._left: LRUCache[str, None] = LRUCache(_LEFT)
        self._metrics = SamplerMetrics(self._versions.present.menu.model)
        self._chores: list[asyncio.Task[None]] = []

    async def draw(self, call: Call) -> AsyncGenerator[Event, None]:
        """Carries out a call, and tells what to keep of it, previews, and at last the pictures.

        Raises:
            InvalidRequest: the model cannot do what is asked.
            ModelNotFound: another model is asked for.
            Overloaded: too much waits.
            DeadlineExceeded: it took longer than the client wanted.
            NonFinite: the model gave no finite picture.
            EngineStopped: send it again.
        """
        self._begin_chores()
        served = await self._versions.choose(call)
        order = self._order(call, served)
        texts = await self._encode(served.menu, order)
        if call.request_id in self._left:
            raise asyncio.CancelledError
        rows = trajectories(served.package, order, texts, call.source)
        states: list[RowState] = list(rows)
        if call.kept is not None:
            states = resumed(rows, call.kept, served.package.device)
        async with aclosing(self._follow(call, served, order, states)) as told:
            async for news in told:
                if news.marked:
                    yield _preview(served, order, news)
                if not news.done:
                    yield keep(order, news.states)
                else:
                    yield Generated(order.settings, await served.decoder.pixels_of(news.states))

    async def leave(self, request_id: str) -> None:
        """The client of this request has left; told to every replica, in case Serve's own cancellation is lost."""
        self._left[request_id] = None
        for served in self._versions.held:
            served.engine.leave(request_id)

    async def card(self) -> ModelCard:
        """Describes the version that new requests get."""
        return card_of(self._versions.present)

    async def load(self) -> Load:
        """What this replica has to do."""
        return self._versions.present.engine.load

    async def refresh(self) -> None:
        """Looks where the aliases are now; otherwise done every `poll_seconds`."""
        await self._versions.refresh()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes a changed `user_config`; a new version is loaded in the background.

        Raises:
            InvalidConfig: an unknown key, or a value out of range.
        """
        config = UserConfig.read(user_config)
        if config.challenger_share is not None:
            self._versions.challenger_share = config.challenger_share
        if config.model is not None:
            self._chores.append(asyncio.create_task(self._versions.refresh(config.model)))

    async def check_health(self) -> None:
        """Called by Serve from time to time; an error has the replica replaced."""
        self._begin_chores()
        for served in self._versions.held:
            served.engine.check()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `workflows.serve.replica.autoscaling` scales on."""
        return {QUEUED_SECONDS: sum(served.engine.load.seconds for served in self._versions.held)}

    def stop(self) -> None:
        """Ends the engines."""
        for served in self._versions.held:
            served.engine.stop()

    async def _follow(
        self, call: Call, served: Served, order: Order, states: list[RowState]
    ) -> AsyncGenerator[News, None]:
        """As `EngineThread.follow`, beside the rows that another replica finished already."""
        rows = [state for state in states if isinstance(state, Trajectory)]
        if not rows:
            yield News(states, done=True)
            return
        report = Report(preview_marks(call.request, steps_made(order.settings)), self._args.keep_seconds)
        deadline = call.request.deadline_seconds or UNBOUNDED
        async with aclosing(served.engine.follow(rows, report, deadline, call.request_id)) as told:
            async for news in told:
                fresh = iter(news.states)
                merged = [state if isinstance(state, Tensor) else next(fresh) for state in states]
                yield News(merged, news.marked, news.done)

    def _order(self, call: Call, served: Served) -> Order:
        if call.kept is not None:
            return Order(call.kept.settings, call.kept.label)
        inpainted = call.source is not None and call.source.keep is not None
        return take_order(call.request, served.menu, inpainted=inpainted)

    async def _encode(self, menu: Menu, order: Order) -> list[EncodedText]:
        version = f"{menu.model}/{menu.version}"
        return await self._texts.encode(version, order.texts)

    def _begin_chores(self) -> None:
        self._chores = [chore for chore in self._chores if not chore.done()]
        if not self._chores:
            self._chores.append(asyncio.create_task(self._tell_metrics()))
            if self._args.poll_seconds > 0:
                self._chores.append(asyncio.create_task(self._poll()))

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._args.poll_seconds)
            try:
                await self._versions.refresh()
            except RaverseError as error:
                # The registry is away: what is loaded goes on serving.
                _LOG.warning("cannot look for a new version: %s", error)

    async def _tell_metrics(self) -> None:
        while True:
            await asyncio.sleep(_METRICS_SECONDS)
            self._metrics.tell(self._versions.held)


def card_of(served: Served) -> ModelCard:
    """What `GET /v1/models` says of a loaded version."""
    menu = served.menu
    return ModelCard(
        id=menu.model,
        created=served.loaded,
        version=menu.version,
        sizes=[menu.size_text],
        channels=served.package.rows.shape[0],
        classes=list(menu.class_names),
        guidance=menu.guidance,
        example_prompts=list(served.package.card.candidate_captions[:_EXAMPLES]),
        default_steps=menu.num_steps,
        max_steps=menu.max_steps,
    )


def _preview(served: Served, order: Order, news: News) -> Preview:
    made = [
        order.settings.num_inference_steps - state.remaining for state in news.states if isinstance(state, Trajectory)
    ]
    return Preview(Generated(order.settings, previews_of(served.package, news.states)), min(made))
