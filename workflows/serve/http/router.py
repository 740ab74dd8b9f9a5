"""The answer to a request for pictures: its model is found, its pictures are awaited, and its end is recorded."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import AbstractContextManager, aclosing, contextmanager
from typing import Final, cast, final

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.responses import Response

from workflows.errors import InvalidRequest, ModelNotFound
from workflows.serve.http.dispatch import Backend, last_pictures
from workflows.serve.http.errors import error_answer
from workflows.serve.http.metrics import IngressMetrics
from workflows.serve.http.streaming import Route, event_stream
from workflows.serve.request.messages import CHALLENGER, InitImage, SamplerRequest, Track
from workflows.serve.request.pictures import Generated, images_of
from workflows.serve.request.resolve import first_seed
from workflows.serve.request.schema import GenerationAnswer, PictureRequest

_LOG: Final = logging.getLogger("ray.serve")
_TRACK: Final = "x-raverse-track"
_CLIENT_LEFT: Final = 499


@final
class ModelRouter:
    """Sends each request to the backend of its model, and answers with the pictures.

    Args:
        backends: by model name, the default first.
        metrics: counts and times every request.
    """

    def __init__(self, backends: Mapping[str, Backend], metrics: IngressMetrics) -> None:
        self.backends, self._metrics = backends, metrics

    def backend(self, model: str | None) -> tuple[str, Backend]:
        """Finds the model of a name or NAME@ALIAS; None means the default model.

        Raises:
            ModelNotFound: no served model has this name.
        """
        name = next(iter(self.backends)) if model is None else model.partition("@")[0]
        if name not in self.backends:
            offered = ", ".join(repr(known) for known in self.backends)
            raise ModelNotFound(f"no model {model!r} is served here: ask for {offered}, or leave `model` out")
        return name, self.backends[name]

    async def answer(
        self, http: Request, body: PictureRequest, route: Route, init_image: InitImage | None = None
    ) -> Response:
        """Answers a request for pictures, with JSON or with a stream of events."""
        arrived = time.monotonic()
        name, backend = self.backend(body.model)
        seeded = body.model_copy(update={"seed": first_seed(body)})
        request = SamplerRequest(seeded, _request_id(http), init_image, _track(http, body))
        recording = self._recording(http, request, name, arrived)
        if not body.stream:
            with recording:
                return await _json_answer(backend, request)
        generated = _generate(backend, request, recording)
        # Until the first pictures are here, an error still is a status.
        first = await anext(generated)
        self._metrics.first_partial(name, time.monotonic() - arrived)
        return StreamingResponse(event_stream(first, generated, route), media_type="text/event-stream")

    @contextmanager
    def _recording(self, http: Request, request: SamplerRequest, name: str, arrived: float) -> Iterator[None]:
        """Records the status and the duration of the request in metrics and log, when the block ends."""
        status = 200
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            status = _CLIENT_LEFT
            raise
        except Exception as error:
            status = error_answer(error)[0]
            raise
        finally:
            seconds = time.monotonic() - arrived
            self._metrics.request_ended(name, status, seconds)
            _log_request(http, request, name, status, seconds)


async def _generate(
    backend: Backend, request: SamplerRequest, recording: AbstractContextManager[None]
) -> AsyncGenerator[Generated, None]:
    """Yields from the backend; the recording ends when the backend has ended, or when the client has left."""
    with recording:
        async with aclosing(backend.generate(request)) as generated:
            async for pictures in generated:
                yield pictures


async def _json_answer(backend: Backend, request: SamplerRequest) -> Response:
    async with aclosing(backend.generate(request)) as generated:
        pictures = await last_pictures(generated)
    images = await asyncio.to_thread(images_of, pictures, request.body.response_format)
    answer = GenerationAnswer(created=int(time.time()), data=images, settings=pictures.settings)
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


def _track(http: Request, body: PictureRequest) -> Track | None:
    track = http.headers.get(_TRACK)
    if track is None:
        _, _, alias = (body.model or "").partition("@")
        return CHALLENGER if alias == CHALLENGER else "champion" if alias else None
    if track not in ("champion", CHALLENGER):
        raise InvalidRequest(f"header {_TRACK}: found {track[:40]!r}, wanted champion or challenger", _TRACK)
    return cast("Track", track)


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
