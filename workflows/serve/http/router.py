"""The answer to a request for pictures: its model is found, its pictures are awaited, and its end is recorded."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import AbstractContextManager, aclosing, contextmanager
from typing import Final, final

from fastapi import Request
from fastapi.responses import StreamingResponse
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.responses import Response

from workflows.errors import InvalidRequest, ModelNotFound
from workflows.serve.http.account import Capacity, WorkAccount, work_of
from workflows.serve.http.dispatch import Backend, last_pictures
from workflows.serve.http.errors import CLIENT_LEFT, error_answer
from workflows.serve.http.guard import RECORDED
from workflows.serve.http.metrics import IngressMetrics
from workflows.serve.http.streaming import Route, event_stream
from workflows.serve.request.messages import InitImage, SamplerRequest
from workflows.serve.request.pictures import Generated, images_of
from workflows.serve.request.resolve import first_seed
from workflows.serve.request.schema import GenerationAnswer, ModelCard, PictureRequest

_LOG: Final = logging.getLogger("ray.serve")
_TRACK: Final = "x-raverse-track"
_WATCH_SECONDS: Final = 1.0
_NO_BUFFERING: Final = {"X-Accel-Buffering": "no"}
"""Else nginx keeps the events of a stream back until it has a few kilobytes."""


@final
class ModelRouter:
    """Sends each request to the backend of its model, and answers with the pictures.

    Args:
        backends: by model name, the default first.
        metrics: counts and times every request.
        capacity: the room of one sampler.

    Attributes:
        backends: see the arguments.
        accounts: the open requests of each model.
    """

    def __init__(self, backends: Mapping[str, Backend], metrics: IngressMetrics, capacity: Capacity) -> None:
        self.backends, self._metrics, self._capacity = backends, metrics, capacity
        self.accounts = {name: WorkAccount(capacity) for name in backends}
        self._watching: dict[str, asyncio.Task[None]] = {}

    def backend(self, model: str | None) -> tuple[str, str | None, Backend]:
        """Finds the model of a name or NAME@ALIAS; None means the default model.

        Returns:
            Its name, the alias, and its backend.

        Raises:
            ModelNotFound: no served model has this name.
        """
        name, _, alias = (next(iter(self.backends)) if model is None else model).partition("@")
        if name not in self.backends or (model or "").endswith("@"):
            offered = ", ".join(repr(known) for known in self.backends)
            raise ModelNotFound(f"no model {model!r} is served here: ask for {offered}, or leave `model` out", "model")
        return name, alias or None, self.backends[name]

    def capacities(self) -> str:
        """The room of the samplers of each model, as JSON, the default model first."""
        return json.dumps({name: account.capacity.plain() for name, account in self.accounts.items()})

    async def cards(self) -> list[ModelCard]:
        """Describes every model; the first time, it also learns how quick their samplers are."""
        for name in self.backends:
            if not self.accounts[name].capacity.pace:
                await self._measure(name)
        return [await backend.model_card() for backend in self.backends.values()]

    async def answer(
        self, http: Request, body: PictureRequest, route: Route, init_image: InitImage | None = None
    ) -> Response:
        """Answers a request for pictures, with JSON or with a stream of events."""
        arrived = time.monotonic()
        name, alias, backend = self.backend(body.model)
        seeded = body.model_copy(update={"seed": first_seed(body)})
        request = SamplerRequest(seeded, _request_id(http), init_image, _alias(http, alias))
        recording = self._recording(http, request, name, arrived)
        if not body.stream:
            with recording, self._room(name, body):
                return await _json_answer(backend, request)
        generated = _generate(backend, request, recording, self._room(name, body))
        # Until the first pictures are here, an error still is a status.
        first = await anext(generated)
        self._metrics.first_partial(name, time.monotonic() - arrived)
        events = event_stream(first, generated, route)
        return StreamingResponse(events, media_type="text/event-stream", headers=_NO_BUFFERING)

    @contextmanager
    def _room(self, name: str, body: PictureRequest) -> Iterator[None]:
        """Counts the request's work while it is open.

        Raises:
            Overloaded: there is no room for it.
        """
        account = self.accounts[name]
        with account.entered(work_of(vars(body), account.capacity)):
            if name not in self._watching:
                self._watching[name] = asyncio.create_task(self._watch(name))
            yield

    async def _watch(self, name: str) -> None:
        """Asks the samplers of a model how quick they are, while they have work."""
        try:
            while len(self.accounts[name]):
                await self._measure(name)
                await asyncio.sleep(_WATCH_SECONDS)
        finally:
            del self._watching[name]

    async def _measure(self, name: str) -> None:
        try:
            loads = await self.backends[name].loads()
        except (RayError, RayServeException) as error:
            _LOG.warning("cannot ask the samplers of %s for their load (%s)", name, type(error).__name__)
            return
        pace = max((load.pace for load in loads), default=0.0)
        account = self.accounts[name]
        account.capacity = account.capacity.with_samplers(len(loads), pace)

    @contextmanager
    def _recording(self, http: Request, request: SamplerRequest, name: str, arrived: float) -> Iterator[None]:
        """Records the status and the duration of the request in metrics and log, when the block ends."""
        status = 200
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            status = CLIENT_LEFT
            raise
        except Exception as error:
            status = error_answer(error)[0]
            raise
        finally:
            seconds = time.monotonic() - arrived
            self._metrics.request_ended(name, status, seconds)
            _log_request(http, request, name, status, seconds)
            http.scope.setdefault("state", {})[RECORDED] = True


async def _generate(
    backend: Backend,
    request: SamplerRequest,
    recording: AbstractContextManager[None],
    room: AbstractContextManager[None],
) -> AsyncGenerator[Generated, None]:
    """Yields from the backend; recording and room end when the backend has ended, or when the client has left."""
    with recording, room:
        async with aclosing(backend.generate(request)) as generated:
            async for pictures in generated:
                yield pictures


async def _json_answer(backend: Backend, request: SamplerRequest) -> Response:
    async with aclosing(backend.generate(request)) as generated:
        pictures = await last_pictures(generated)
    images = await asyncio.to_thread(images_of, pictures, request.body.response_format)
    answer = GenerationAnswer(
        created=int(time.time()), data=images, size=pictures.settings.size, settings=pictures.settings
    )
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


def _alias(http: Request, alias: str | None) -> str | None:
    track = http.headers.get(_TRACK)
    if track is None:
        return alias
    if track not in ("champion", "challenger"):
        raise InvalidRequest(f"header {_TRACK}: found {track[:40]!r}, wanted champion or challenger", _TRACK)
    # The served version is the champion, whatever its alias is called.
    return track if track == "challenger" else ""


def _request_id(http: Request) -> str:
    """The client's id of the request with a suffix of ours, since two clients may choose the same id."""
    return f"{http.headers.get('x-request-id', '')[:100]}/{uuid.uuid4().hex[:12]}"


def _log_request(http: Request, request: SamplerRequest, model: str, status: int, seconds: float) -> None:
    body = request.body
    entry = {
        "event": "pictures",
        "request_id": request.request_id,
        "key": getattr(http.state, "key_name", None),
        "model": model,
        "status": status,
        "seconds": round(seconds, 4),
        "n": body.n,
        "steps": body.num_inference_steps,
        "sampler": body.sampler,
        "guidance": body.guidance,
        "seed": body.seed,
        "stream": body.stream,
    }
    _LOG.info("%s", json.dumps(entry))
