"""From the ingress to a sampler, and to another one when that is lost.

A sampler tells from time to time where a call's rows are. When its replica dies, the call is sent again with
what was kept last; seeds and settings are part of it, so the picture is the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, Protocol, final

from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from workflows.errors import EngineStopped
from workflows.serve.replica.metrics import IngressMetrics
from workflows.serve.request.messages import Call, Event, Kept
from workflows.serve.request.pictures import Generated
from workflows.serve.request.schema import ModelCard

_LOG: Final = logging.getLogger("ray.serve")
_ATTEMPTS: Final = 5
_LOST: Final = (RayActorError, ReplicaUnavailableError, EngineStopped)


class Backend(Protocol):
    """What the routes need from the deployments behind them."""

    def draw(self, call: Call) -> AsyncGenerator[Event, None]:
        """Makes the pictures, and tells of them on the way."""
        ...

    async def card(self) -> ModelCard:
        """Describes the loaded model."""
        ...


@final
class SamplerBackend:
    """The sampler deployment of one model, through its handle.

    Args:
        model: its name.
        sampler: the handle.
        metrics: told about lost replicas.
    """

    def __init__(self, model: str, sampler: DeploymentHandle[Any], metrics: IngressMetrics) -> None:
        self._model, self._sampler, self._metrics = model, sampler, metrics
        self._streaming = sampler.options(stream=True)
        self._leaving: set[asyncio.Task[None]] = set()

    async def draw(self, call: Call) -> AsyncGenerator[Event, None]:
        """See `Backend`; what is kept stays here."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with aclosing(self._attempt(call)) as events:
                    async for event in events:
                        if isinstance(event, Kept):
                            call = replace(call, kept=event)
                        else:
                            yield event
                return
            except _LOST as error:
                if attempt == _ATTEMPTS:
                    raise
                self._metrics.handed_over(self._model)
                made = "from its start" if call.kept is None else f"from step {call.kept.rows[0].index}"
                _LOG.warning("request %s goes on elsewhere %s (%s)", call.request_id, made, type(error).__name__)

    async def card(self) -> ModelCard:
        """See `Backend`."""
        card: ModelCard = await self._sampler.card.remote()
        return card

    async def _attempt(self, call: Call) -> AsyncGenerator[Event, None]:
        stream = self._streaming.draw.remote(call)
        ended, last = False, None
        try:
            async for event in stream:
                last = event
                ended = isinstance(event, Generated)
                yield event
            _whole(last)
        except Exception:
            ended = True
            raise
        finally:
            if not ended:
                stream.cancel()
                leaving = asyncio.create_task(self._leave(call.request_id))
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)

    async def _leave(self, request_id: str) -> None:
        """Tells every replica that the client has left: Serve loses a cancellation now and then."""
        # Nothing is sent before the results are asked for. A replica that is gone has no rows to drop.
        with contextlib.suppress(DeploymentUnavailableError):
            await self._sampler.broadcast("leave", request_id).results_async(return_exceptions=True)


async def finished(events: AsyncIterator[Event]) -> Generated:
    """The pictures, without what is told on the way."""
    last: Event | None = None
    async for event in events:
        last = event
    return _whole(last)


def _whole(last: Event | None) -> Generated:
    if not isinstance(last, Generated):
        raise EngineStopped("a sampler ended its answer before the picture was made: send the request again")
    return last
