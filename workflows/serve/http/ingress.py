"""HTTP: routes in OpenAI's shape, and the only place where errors become statuses."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import AbstractContextManager, aclosing, contextmanager
from typing import Any, Final, cast, final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.responses import Response

from diffusion_core.errors import RaverseError
from workflows import __version__
from workflows.errors import InvalidRequest, ModelNotFound
from workflows.serve.http.dispatch import Backend, SamplerBackend, finished
from workflows.serve.http.edits import FORM, form_schema, read_form
from workflows.serve.http.guard import Guard, Rules
from workflows.serve.http.keys import KeyRing, load_keys
from workflows.serve.http.pages import content_policy, prompt_page, reference_page
from workflows.serve.http.streaming import Kind, as_events
from workflows.serve.replica.metrics import IngressMetrics
from workflows.serve.request.errors import TOO_LATE, ErrorAnswer, ErrorDetail, answer_to, invalid_fields
from workflows.serve.request.messages import CHALLENGER, Call, Event, Source, Track
from workflows.serve.request.pictures import images_of
from workflows.serve.request.resolve import drawn_seed
from workflows.serve.request.schema import (
    GenerationAnswer,
    GenerationRequest,
    Health,
    ModelCard,
    ModelList,
    PictureRequest,
)
from workflows.serve.settings import ServeArgs

_LOG: Final = logging.getLogger("ray.serve")
_TRACK: Final = "x-raverse-track"
_CLIENT_LEFT: Final = 499
_FAULTS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "A field is unknown, malformed, out of range, or contradicts another; `param` names it.",
        401: "No API key, or an unknown one.",
        404: "No such model is served here.",
        413: "The body is too large.",
        422: "The model gave no finite picture for these settings.",
        429: "Too many pictures wait, or too many requests of this key; `Retry-After` says when to try again.",
        500: "The service failed.",
        503: "No sampler is ready; try again.",
        504: "The picture was not done by `deadline_seconds`.",
    }.items()
}
_OPEN_FAULTS: Final[dict[int | str, dict[str, Any]]] = {status: _FAULTS[status] for status in (500, 503)}
_UNREADY: Final[dict[int | str, dict[str, Any]]] = {status: _FAULTS[status] for status in (401, 429, 500, 503)}


class Ingress:
    """The deployment that answers HTTP; Serve asks it for its ASGI application."""

    def __init__(self, samplers: dict[str, DeploymentHandle[Any]], args: ServeArgs) -> None:
        self._metrics = IngressMetrics(samplers)
        self._backends = {name: SamplerBackend(name, handle, self._metrics) for name, handle in samplers.items()}
        self._rules = Rules(KeyRing(load_keys(args.api_keys_file)), args.require_key, args.max_body_bytes)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return http_api(self._backends, self._rules, self._metrics)


def http_api(backends: Mapping[str, Backend], rules: Rules, metrics: IngressMetrics) -> FastAPI:
    """The application's routes.

    Args:
        backends: by model name, the default first.
        rules: who may ask, and how much.
        metrics: told about every request.
    """
    api = FastAPI(title="raverse", version=__version__, docs_url=None, redoc_url=None)
    api.add_middleware(Guard, rules=rules)
    api.add_exception_handler(RequestValidationError, _refuse_fields)
    api.add_exception_handler(HTTPException, _refuse_route)
    # Errors of other processes arrive as both Ray's class and their own.
    for kind in (RaverseError, RayError, RayServeException, Exception):
        api.add_exception_handler(kind, _tell_error)
    studio = Studio(backends, metrics)
    _add_picture_routes(api, studio)
    _add_model_routes(api, studio)
    _add_pages(api)
    return api


@final
class Studio:
    """Finds the model that a request is for, and has it draw.

    Args:
        backends: by model name, the default first.
        metrics: told about every request.
    """

    def __init__(self, backends: Mapping[str, Backend], metrics: IngressMetrics) -> None:
        self.backends, self._metrics = backends, metrics

    def backend(self, model: str | None) -> tuple[str, Backend]:
        """The model of this name, or the default one.

        Raises:
            ModelNotFound: none has it.
        """
        name = next(iter(self.backends)) if model is None else model.partition("@")[0]
        if name not in self.backends:
            offered = ", ".join(repr(known) for known in self.backends)
            raise ModelNotFound(f"no model {model!r} is served here: ask for {offered}, or leave `model` out")
        return name, self.backends[name]

    async def draw(self, http: Request, request: PictureRequest, kind: Kind, source: Source | None = None) -> Response:
        """Answers a request for pictures."""
        started = time.monotonic()
        name, backend = self.backend(request.model)
        seeded = request.model_copy(update={"seed": drawn_seed(request)})
        call = Call(seeded, _request_id(http), source, _track(http, request))
        accounted = self._accounted(http, call, name, started)
        if not request.stream:
            with accounted:
                return await _all(backend, call)
        events = _told(backend, call, accounted)
        # Until something is told, an error still is a status of its own.
        first = await anext(events)
        self._metrics.first_partial(name, time.monotonic() - started)
        return StreamingResponse(as_events(first, events, kind), media_type="text/event-stream")

    @contextmanager
    def _accounted(self, http: Request, call: Call, name: str, started: float) -> Iterator[None]:
        """Tells metrics and log how a request ended, and when."""
        status = 200
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            status = _CLIENT_LEFT
            raise
        except Exception as error:
            status = answer_to(error)[0]
            raise
        finally:
            seconds = time.monotonic() - started
            self._metrics.ended(name, status, seconds)
            _log_request(http, call, name, status, seconds)


def _add_picture_routes(api: FastAPI, studio: Studio) -> None:
    streamed = {"text/event-stream": {"schema": {"type": "string"}}}
    responses = _FAULTS | {200: {"model": GenerationAnswer, "content": streamed, "description": "The pictures."}}

    @api.post("/v1/images/generations", responses=responses)
    async def generate(http: Request, request: GenerationRequest) -> Response:
        return await studio.draw(http, request, "image_generation")

    @api.post("/v1/images/edits", responses=responses, openapi_extra=FORM)
    async def edit(http: Request) -> Response:
        upload = await read_form(http)
        _, backend = studio.backend(upload.request.model)
        source = await asyncio.to_thread(upload.source, await backend.card())
        return await studio.draw(http, upload.request, "image_edit", source)


def _add_model_routes(api: FastAPI, studio: Studio) -> None:
    @api.get("/v1/models", responses=_UNREADY)
    async def list_models() -> ModelList:
        return ModelList(data=[await backend.card() for backend in studio.backends.values()])

    @api.get("/v1/models/{name}", responses=_UNREADY | {404: _FAULTS[404]})
    async def retrieve_model(name: str) -> ModelCard:
        return await studio.backend(name)[1].card()

    @api.get("/health", responses=_OPEN_FAULTS)
    @api.get("/healthz", responses=_OPEN_FAULTS)
    async def health() -> Health:
        card = await studio.backend(None)[1].card()
        return Health(model=card.id, version=card.version)


def _add_pages(api: FastAPI) -> None:
    page = prompt_page()

    @api.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": content_policy(page)})

    @api.get("/docs", include_in_schema=False)
    async def show_reference() -> HTMLResponse:
        reference = reference_page(api.openapi())
        return HTMLResponse(reference, headers={"Content-Security-Policy": content_policy(reference)})

    api.openapi()["components"]["schemas"]["EditForm"] = form_schema()


async def _told(backend: Backend, call: Call, accounted: AbstractContextManager[None]) -> AsyncGenerator[Event, None]:
    """What the backend tells; it is accounted for once it has ended, or the client has left."""
    with accounted:
        async with aclosing(backend.draw(call)) as events:
            async for event in events:
                yield event


async def _all(backend: Backend, call: Call) -> Response:
    async with aclosing(backend.draw(call)) as events:
        generated = await finished(events)
    images = await asyncio.to_thread(images_of, generated, call.request.response_format)
    answer = GenerationAnswer(created=int(time.time()), data=images, settings=generated.settings)
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


def _track(http: Request, request: PictureRequest) -> Track | None:
    asked = http.headers.get(_TRACK)
    if asked is None:
        _, _, alias = (request.model or "").partition("@")
        return CHALLENGER if alias == CHALLENGER else "champion" if alias else None
    if asked not in ("champion", CHALLENGER):
        raise InvalidRequest(f"header {_TRACK}: found {asked[:40]!r}, wanted champion or challenger", _TRACK)
    return cast("Track", asked)


def _request_id(http: Request) -> str:
    """What the client calls the request, beside something of ours: two clients may choose the same."""
    return f"{http.headers.get('x-request-id', '')[:100]}/{uuid.uuid4().hex[:12]}"


def _log_request(http: Request, call: Call, model: str, status: int, seconds: float) -> None:
    request = call.request
    told = {
        "event": "pictures",
        "request_id": call.request_id,
        "key": getattr(http.state, "key_name", None),
        "model": model,
        "status": status,
        "seconds": round(seconds, 4),
        "n": request.n,
        "steps": request.num_inference_steps,
        "sampler": request.sampler,
        "guidance": request.guidance,
        "seed": request.seed,
        "stream": request.stream,
    }
    _LOG.info("%s", json.dumps(told))


async def _tell_error(request: Request, error: Exception) -> JSONResponse:
    status, body, headers = answer_to(error)
    if status >= 500 and status != TOO_LATE:
        _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse(body.model_dump(), status, headers)


async def _refuse_fields(_: Request, error: Exception) -> JSONResponse:
    faults = error.errors() if isinstance(error, RequestValidationError) else []
    return JSONResponse(invalid_fields(faults).model_dump(), 400)


async def _refuse_route(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    text = f"{request.method} {request.url.path}: {getattr(error, 'detail', 'failed')}"
    body = ErrorAnswer(error=ErrorDetail(message=text, type="invalid_request_error"))
    return JSONResponse(body.model_dump(), status, getattr(error, "headers", None))
