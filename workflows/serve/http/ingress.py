"""The ingress deployment: routes in OpenAI's shape, and the handlers that turn errors into statuses."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from diffusion_core.errors import RaverseError
from workflows import __version__
from workflows.serve.http.account import Capacity
from workflows.serve.http.dispatch import Backend, DeploymentBackend
from workflows.serve.http.edits import FORM, decode_init_image, form_schema, read_form
from workflows.serve.http.errors import TOO_LATE, ErrorAnswer, ErrorDetail, error_answer, invalid_fields_answer
from workflows.serve.http.guard import AccessRules, Guard
from workflows.serve.http.keys import KeyRing, load_keys
from workflows.serve.http.metrics import IngressMetrics
from workflows.serve.http.pages import content_policy, prompt_page, reference_page
from workflows.serve.http.router import ModelRouter
from workflows.serve.request.schema import (
    GenerationAnswer,
    GenerationRequest,
    Health,
    ModelCard,
    ModelList,
    StreamEvent,
)
from workflows.serve.settings import ServeArgs

_LOG: Final = logging.getLogger("ray.serve")
_CAPACITY: Final = Capacity(rows=256, seconds=300.0)
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
    """The deployment that answers HTTP; Ray Serve takes its ASGI application from it.

    Args:
        samplers: handle of the sampler deployment by model name, the default model first.
        args: the keys and the limits of requests.
    """

    def __init__(self, samplers: dict[str, DeploymentHandle[Any]], args: ServeArgs) -> None:
        self._metrics = IngressMetrics(samplers)
        self._backends = {name: DeploymentBackend(name, handle, self._metrics) for name, handle in samplers.items()}
        self._rules = AccessRules(
            KeyRing(load_keys(args.api_keys_file)),
            args.require_key,
            args.max_body_bytes,
            args.max_requests,
            args.allowed_hosts,
        )
        self._cors_origins = args.cors_origins
        self._capacity = Capacity(args.max_waiting_rows, args.max_waiting_seconds, steps=args.num_steps)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return http_api(self._backends, self._rules, self._metrics, self._capacity, self._cors_origins)


def http_api(
    backends: Mapping[str, Backend],
    rules: AccessRules,
    metrics: IngressMetrics,
    capacity: Capacity = _CAPACITY,
    cors_origins: tuple[str, ...] = (),
) -> FastAPI:
    """Builds the application with all its routes.

    Args:
        backends: by model name, the default first.
        rules: the keys and the limits of requests.
        metrics: counts and times every request for pictures.
        capacity: the room of one sampler of each model.
        cors_origins: sites whose pages may ask the service, such as `https://example.org`.
    """
    # Relative to the document, the server is right behind every proxy and prefix.
    servers = [{"url": ".", "description": "This service."}]
    api = FastAPI(
        title="raverse",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        servers=servers,
        root_path_in_servers=False,
    )
    router = ModelRouter(backends, metrics, capacity)
    rules = replace(rules, allowed_hosts=(*rules.allowed_hosts, *_names(cors_origins))) if cors_origins else rules
    api.add_middleware(Guard, rules=rules, ended=partial(_record_refusal, metrics), capacities=router.capacities)
    if cors_origins:
        # Outside of the guard, since a browser sends no key when it asks whether it may ask.
        api.add_middleware(
            CORSMiddleware,
            allow_origins=cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        )
    api.add_exception_handler(RequestValidationError, _refuse_fields)
    api.add_exception_handler(HTTPException, _refuse_route)
    # An error of another process is an instance of both Ray's class and its own.
    for kind in (RaverseError, RayError, RayServeException, Exception):
        api.add_exception_handler(kind, _answer_error)
    _add_picture_routes(api, router)
    _add_model_routes(api, router)
    _add_pages(api)
    return api


def _names(origins: Iterable[str]) -> Iterator[str]:
    return (urlsplit(origin).hostname or origin for origin in origins)


def _add_picture_routes(api: FastAPI, router: ModelRouter) -> None:
    streamed = {"text/event-stream": {"schema": {"$ref": "#/components/schemas/StreamEvent"}}}
    responses = _FAULTS | {200: {"model": GenerationAnswer, "content": streamed, "description": "The pictures."}}

    @api.post("/v1/images/generations", responses=responses)
    async def generate(http: Request, request: GenerationRequest) -> Response:
        return await router.answer(http, request, "image_generation")

    @api.post("/v1/images/edits", responses=responses, openapi_extra=FORM)
    async def edit(http: Request) -> Response:
        request, image, mask = await read_form(http)
        _, alias, backend = router.backend(request.model)
        init_image = await asyncio.to_thread(decode_init_image, image, mask, await backend.model_card(alias))
        return await router.answer(http, request, "image_edit", init_image)


def _add_model_routes(api: FastAPI, router: ModelRouter) -> None:
    @api.get("/v1/models", responses=_UNREADY)
    async def list_models() -> ModelList:
        return ModelList(data=await router.cards())

    @api.get("/v1/models/{name}", responses=_UNREADY | {404: _FAULTS[404]})
    async def retrieve_model(name: str) -> ModelCard:
        _, alias, backend = router.backend(name)
        return await backend.model_card(alias)

    @api.get("/health", responses=_OPEN_FAULTS)
    @api.get("/healthz", responses=_OPEN_FAULTS)
    async def health() -> Health:
        card = await router.backend(None)[2].model_card()
        return Health(model=card.id, version=card.version)


def _add_pages(api: FastAPI) -> None:
    page = prompt_page()

    @api.get("/", include_in_schema=False)
    async def show_page(http: Request) -> Response:
        prefix = http.scope.get("root_path", "")
        if prefix and http.scope["path"] == prefix:
            # The page's own links are relative, so its address has to end in a slash.
            return RedirectResponse(f"{prefix.rpartition('/')[2]}/")
        return HTMLResponse(page, headers={"Content-Security-Policy": content_policy(page)})

    @api.get("/docs", include_in_schema=False)
    async def show_reference() -> HTMLResponse:
        reference = reference_page(api.openapi())
        return HTMLResponse(reference, headers={"Content-Security-Policy": content_policy(reference)})

    _complete(api.openapi())


def _complete(document: dict[str, Any]) -> None:
    """Adds to the OpenAPI document what the routes read and write themselves: the form, the events and the key."""
    parts = document["components"]
    parts["schemas"]["EditForm"] = form_schema()
    event = StreamEvent.model_json_schema(ref_template="#/components/schemas/{model}")
    parts["schemas"] |= {name: schema for name, schema in event.pop("$defs").items() if name not in parts["schemas"]}
    parts["schemas"]["StreamEvent"] = event
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "See `raverse api-key`."}}
    # A service without keys needs none, and the health routes never do.
    for path, kinds in document["paths"].items():
        for route in kinds.values():
            route["security"] = [{}] if path.startswith("/health") else [{"key": []}, {}]


def _record_refusal(metrics: IngressMetrics, scope: Scope, status: int, seconds: float) -> None:
    """Counts and logs, in one line, a request that was refused before it reached a model."""
    metrics.request_refused(status)
    entry = {
        "event": "refused",
        "key": scope.get("state", {}).get("key_name"),
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": status,
        "seconds": round(seconds, 4),
    }
    _LOG.info("%s", json.dumps(entry))


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    status, body, headers = error_answer(error)
    if status >= 500 and status != TOO_LATE:
        _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse(body.model_dump(), status, headers)


async def _refuse_fields(_: Request, error: Exception) -> JSONResponse:
    faults = error.errors() if isinstance(error, RequestValidationError) else []
    return JSONResponse(invalid_fields_answer(faults).model_dump(), 400)


async def _refuse_route(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    text = f"{request.method} {request.url.path}: {getattr(error, 'detail', 'failed')}"
    body = ErrorAnswer(error=ErrorDetail(message=text, type="invalid_request_error"))
    return JSONResponse(body.model_dump(), status, getattr(error, "headers", None))
