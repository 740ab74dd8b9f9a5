"""HTTP: routes in OpenAI's shape, and the only place where errors become statuses."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final, Protocol, final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from diffusion_core.errors import RaverseError
from workflows.errors import ModelNotFound
from workflows.serve.errors import ErrorAnswer, ErrorDetail, answer_to, invalid_fields
from workflows.serve.pictures import Generated, images_of
from workflows.serve.schema import GenerationAnswer, GenerationRequest, Health, ModelCard, ModelList

_LOG: Final = logging.getLogger("ray.serve")
_FAULTS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "A field is unknown, malformed, out of range, or contradicts another; `param` names it.",
        404: "No such model is served here.",
        422: "The model gave no finite picture for these settings.",
        429: "Too many pictures wait; `Retry-After` says when to try again.",
        500: "The service failed.",
        503: "No sampler is ready; try again.",
    }.items()
}
_UNREADY: Final[dict[int | str, dict[str, Any]]] = {status: _FAULTS[status] for status in (500, 503)}


class Backend(Protocol):
    """What the routes need from the deployments behind them."""

    async def generate(self, request: GenerationRequest) -> Generated:
        """Makes the pictures."""
        ...

    async def card(self) -> ModelCard:
        """Describes the loaded model."""
        ...


@final
class SamplerBackend:
    """The sampler deployment, through its handle; a cancelled call is cancelled there too."""

    def __init__(self, sampler: DeploymentHandle[Any]) -> None:
        self._sampler = sampler

    async def generate(self, request: GenerationRequest) -> Generated:
        """See `Backend`."""
        generated: Generated = await self._sampler.generate.remote(request)
        return generated

    async def card(self) -> ModelCard:
        """See `Backend`."""
        card: ModelCard = await self._sampler.card.remote()
        return card


class Ingress:
    """The deployment that answers HTTP; Serve asks it for its ASGI application."""

    def __init__(self, sampler: DeploymentHandle[Any]) -> None:
        self._backend = SamplerBackend(sampler)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return http_api(self._backend)


def http_api(backend: Backend) -> FastAPI:
    """The application's routes.

    Args:
        backend: makes the pictures.
    """
    api = FastAPI(title="raverse", docs_url=None, redoc_url=None)
    api.add_exception_handler(RequestValidationError, _refuse_fields)
    api.add_exception_handler(HTTPException, _refuse_route)
    # Errors of other processes arrive as both Ray's class and their own.
    for kind in (RaverseError, RayError, RayServeException, Exception):
        api.add_exception_handler(kind, _tell_error)

    @api.post("/v1/images/generations", response_model_exclude_none=True, responses=_FAULTS)
    async def generate(request: GenerationRequest) -> GenerationAnswer:
        generated = await backend.generate(request)
        images = await asyncio.to_thread(images_of, generated, request.response_format)
        return GenerationAnswer(created=int(time.time()), data=images, settings=generated.settings)

    @api.get("/v1/models", responses=_UNREADY)
    async def list_models() -> ModelList:
        return ModelList(data=[await backend.card()])

    @api.get("/v1/models/{name}", responses=_UNREADY | {404: _FAULTS[404]})
    async def retrieve_model(name: str) -> ModelCard:
        card = await backend.card()
        if name != card.id:
            raise ModelNotFound(f"no model {name!r} is served here: ask for {card.id!r}")
        return card

    @api.get("/health", responses=_UNREADY)
    @api.get("/healthz", responses=_UNREADY)
    async def health() -> Health:
        card = await backend.card()
        return Health(model=card.id, version=card.version)

    return api


async def _tell_error(request: Request, error: Exception) -> JSONResponse:
    status, body, headers = answer_to(error)
    if status >= 500:
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
