"""The way from the front to a replica, and to another replica when one is lost.

A replica sends a checkpoint of a request from time to time. When the replica dies, the request is sent again with the
last checkpoint, which holds the seeds and settings. So the pictures are the same.
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
from workflows.serve.engine.load import EngineLoad
from workflows.serve.http.metrics import IngressMetrics
from workflows.serve.request.messages import Checkpoint, Refusal, SamplerRequest
from workflows.serve.request.pictures import Generated
from workflows.serve.request.schema import ModelCard

_LOG: Final = logging.getLogger("ray.serve")
_ATTEMPTS: Final = 5
_LOST: Final = (RayActorError, ReplicaUnavailableError, EngineStopped)


class Backend(Protocol):
    """One served model, as the routes use it."""

    def generate(self, request: SamplerRequest) -> AsyncGenerator[Generated, None]:
        """Generates the pictures of a request; yields previews, and at last the finished pictures."""
        ...

    async def model_card(self, alias: str | None = None) -> ModelCard:
        """Describes the version that new requests get, or the one of an alias.

        Raises:
            ModelNotFound: the alias is not served.
        """
        ...

    async def loads(self) -> list[EngineLoad]:
        """The load of each of its samplers, as far as they answer."""
        ...


@final
class DeploymentBackend:
    """The sampler deployment of one model, through its handle; it resends a request whose replica was lost.

    It holds the last checkpoint of each open request: two arrays of the model's shape per picture.

    Args:
        model: name of the model.
        sampler: handle of the deployment.
        metrics: counts the requests that were handed over.
    """

    def __init__(self, model: str, sampler: DeploymentHandle[Any], metrics: IngressMetrics) -> None:
        self._model, self._sampler, self._metrics = model, sampler, metrics
        self._streaming = sampler.options(stream=True)
        self._cancellations: set[asyncio.Task[None]] = set()

    async def generate(self, request: SamplerRequest) -> AsyncGenerator[Generated, None]:
        """Implements `Backend.generate`.

        Raises:
            RayActorError, ReplicaUnavailableError, EngineStopped: five replicas in a row were lost.
            RaverseError: the error of the replica.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with aclosing(self._attempt(request)) as messages:
                    async for message in messages:
                        if isinstance(message, Checkpoint):
                            request = replace(request, checkpoint=message)
                        else:
                            yield message
                return
            except _LOST as error:
                if attempt == _ATTEMPTS:
                    raise
                self._metrics.handed_over(self._model)
                _log_handover(request, error)

    async def model_card(self, alias: str | None = None) -> ModelCard:
        """Implements `Backend.model_card`."""
        card: ModelCard | Refusal = await self._sampler.model_card.remote(alias)
        if isinstance(card, Refusal):
            raise card.error
        return card

    async def loads(self) -> list[EngineLoad]:
        """Implements `Backend.loads`."""
        # Ray Serve has no replica to ask while none runs.
        with contextlib.suppress(DeploymentUnavailableError):
            loads = await self._sampler.broadcast("load").results_async(return_exceptions=True)
            return [load for load in loads if isinstance(load, EngineLoad)]
        return []

    async def _attempt(self, request: SamplerRequest) -> AsyncGenerator[Checkpoint | Generated, None]:
        stream = self._streaming.generate.remote(request)
        ended, message = False, None
        try:
            async for message in stream:
                if isinstance(message, Refusal):
                    break
                ended = isinstance(message, Generated) and message.finished
                yield message
            _check_finished(message)
        except Exception:
            ended = True
            raise
        finally:
            if not ended:
                stream.cancel()
                cancellation = asyncio.create_task(self._cancel(request.request_id))
                self._cancellations.add(cancellation)
                cancellation.add_done_callback(self._cancellations.discard)

    async def _cancel(self, request_id: str) -> None:
        """Cancels a request at every replica, since Ray Serve's own cancellation can get lost."""
        # Ray Serve sends a broadcast only when its results are awaited. A replica that is gone has no rows to drop.
        with contextlib.suppress(DeploymentUnavailableError):
            await self._sampler.broadcast("cancel", request_id).results_async(return_exceptions=True)


async def last_pictures(generated: AsyncIterator[Generated]) -> Generated:
    """Returns the finished pictures, and drops the previews.

    Raises:
        EngineStopped: the stream ended before the pictures were finished.
    """
    last: Generated | None = None
    async for pictures in generated:
        last = pictures
    return _check_finished(last)


def _check_finished(message: Checkpoint | Generated | Refusal | None) -> Generated:
    if isinstance(message, Refusal):
        raise message.error
    if not isinstance(message, Generated) or not message.finished:
        raise EngineStopped("a sampler ended its answer before the picture was made: send the request again")
    return message


def _log_handover(request: SamplerRequest, error: Exception) -> None:
    checkpoint = request.checkpoint
    place = "from its start" if checkpoint is None else f"from step {checkpoint.rows[0].index}"
    _LOG.warning("request %s goes on elsewhere %s (%s)", request.request_id, place, type(error).__name__)
